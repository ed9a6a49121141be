//! Packs rows into the batch that a model runs: those of a plan, or of a measurement.

use super::table::Running;
use crate::backend::{Batch, SeqSpan};
use crate::kv::BlockTable;
use crate::scheduler::Plan;

/// Fills `batch` with the rows of `plan`, in its order.
pub(super) fn build(plan: &Plan, running: &Running, block_tokens: usize, batch: &mut Batch) {
    clear(batch);
    for item in &plan.items {
        let sequence = &running[&item.seq];
        let row = batch.tokens.len() as u32;
        let positions = item.start as u32..(item.start + item.len) as u32;
        batch.tokens.extend_from_slice(&sequence.snapshot().tokens[item.start..item.start + item.len]);
        push_rope_lens(&sequence.snapshot().prompts, positions.clone(), &mut batch.rope_lens);
        let table = batch.tables.len() as u32;
        let needed = (positions.end as usize).div_ceil(block_tokens);
        batch.tables.extend_from_slice(&sequence.blocks().ids()[..needed]);
        batch.spans.push(SeqSpan {
            row,
            rows: item.len as u32,
            position: positions.start,
            table,
            table_len: needed as u32,
        });
        batch.positions.extend(positions);
        if item.samples {
            batch.logit_rows.push(batch.tokens.len() as u32 - 1);
        }
    }
}

/// Fills `batch` with the first `tokens` tokens of an arbitrary prompt, whose KV goes to `table`. No logits are wanted.
pub(super) fn build_probe(tokens: usize, vocab_size: u32, table: &BlockTable, batch: &mut Batch) {
    let n = tokens as u32;
    clear(batch);
    batch.tokens.extend((0..n).map(|i| (u64::from(i) * 7919 % u64::from(vocab_size.max(1))) as u32));
    batch.positions.extend(0..n);
    batch.rope_lens.resize(tokens, n);
    batch.tables.extend_from_slice(table.blocks());
    let table_len = batch.tables.len() as u32;
    batch.spans.push(SeqSpan { row: 0, rows: n, position: 0, table: 0, table_len });
}

/// Empties `batch` and keeps its memory.
fn clear(batch: &mut Batch) {
    let Batch { tokens, positions, rope_lens, spans, tables, logit_rows } = batch;
    tokens.clear();
    positions.clear();
    rope_lens.clear();
    spans.clear();
    tables.clear();
    logit_rows.clear();
}

/// Appends, for each position, the sequence length that a length-dependent rope uses there: the end of the prompt that
/// contains the position, otherwise the position + 1. It depends on the sequence alone, so neither chunking nor recomputation
/// changes it.
fn push_rope_lens(prompts: &[(u32, u32)], positions: std::ops::Range<u32>, out: &mut Vec<u32>) {
    let mut ranges = prompts.iter().peekable();
    for position in positions {
        while ranges.next_if(|p| p.1 <= position).is_some() {}
        out.push(match ranges.peek() {
            Some(&&(begin, end)) if begin <= position => end,
            _ => position + 1,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::push_rope_lens;

    #[test]
    fn rope_lengths_follow_the_prompts() {
        let mut lens = Vec::new();
        push_rope_lens(&[(0, 3), (5, 7)], 0..9, &mut lens);
        assert_eq!(lens, [3, 3, 3, 4, 5, 7, 7, 8, 9]);
        let mut part = Vec::new();
        push_rope_lens(&[(0, 3), (5, 7)], 4..6, &mut part);
        assert_eq!(part, [5, 7]);
    }
}
