//! Compares every fixture with transformers' logits, at every instruction level of this machine.
//!
//! The error of a row is max |a - b| / max |b| over the vocabulary. The bound is 2e-5 where arithmetic is f32 (f32 and
//! f16 weights; KV is always f32). With bf16 weights, inputs are rounded to bf16, so the bound is the error of
//! transformers' own bf16 run against the same f32 reference. Within a level, the chunking of a prompt, the rest of the
//! batch and the number of threads must not change a single bit.

mod model_support;

use std::sync::Arc;

use cleave::backend::cpu::{CpuBackend, CpuConfig, CpuDevice, KvSlab, Level};
use cleave::backend::{Batch, Linear, SeqSpan};
use cleave::model::decoder::{Decoder, Executor};
use cleave::model::{Model, safetensors};
use cleave::tensor::Dtype;
use model_support::{copy, edit_bytes, fixture, fixtures, levels, run};

const BLOCK_TOKENS: usize = 8;
const TOLERANCE: f32 = 2e-5;

struct Reference {
    prompt: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
    greedy_logits: Vec<f32>,
    logits_bf16: Option<Vec<f32>>,
}

impl Reference {
    fn read(name: &str) -> Self {
        let tensors = safetensors::open(&fixture(name).join("reference.safetensors")).unwrap();
        let find = |name: &str| tensors.iter().find(|t| t.name == name);
        let ids = |name: &str| -> Vec<u32> {
            let chunks = find(name).unwrap().bytes().as_chunks::<8>().0;
            chunks.iter().map(|b| i64::from_le_bytes(*b) as u32).collect()
        };
        let floats = |name: &str| -> Option<Vec<f32>> {
            Some(find(name)?.bytes().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        Reference {
            prompt: ids("prompt"),
            logits: floats("logits").unwrap(),
            greedy: ids("greedy"),
            greedy_logits: floats("greedy_logits").unwrap(),
            logits_bf16: floats("logits_bf16"),
        }
    }
}

/// A decoder with its own KV pool.
struct Rig {
    decoder: Decoder<CpuBackend>,
    blocks: usize,
}

impl Rig {
    fn new(model: &Arc<Model>, level: Level, threads: usize, tokens: usize) -> Self {
        let blocks = tokens.div_ceil(BLOCK_TOKENS);
        let backend = CpuBackend::new(CpuConfig { threads, level: Some(level), ..CpuConfig::default() }).unwrap();
        let geometry = model.kv_geometry(BLOCK_TOKENS as u32, Dtype::F32);
        let kv = Arc::new(KvSlab::new(geometry, 2 * blocks).unwrap());
        let weights = model.weights(&CpuDevice, false, &mut |_, _| Ok(())).unwrap();
        Rig { decoder: Decoder::new(model.clone(), weights, backend, kv).unwrap(), blocks }
    }

    /// Block ids of one of two sequences, interleaved and in descending order.
    fn table(&self, sequence: usize) -> Vec<u32> {
        (0..self.blocks).rev().map(|i| (2 * i + sequence) as u32).collect()
    }

    fn add(&self, batch: &mut Batch, sequence: usize, tokens: &[u32], position: usize, rope_len: Option<usize>) {
        let table = self.table(sequence);
        batch.spans.push(SeqSpan {
            row: batch.tokens.len() as u32,
            rows: tokens.len() as u32,
            position: position as u32,
            table: batch.tables.len() as u32,
            table_len: table.len() as u32,
        });
        batch.tables.extend(table);
        for (i, token) in tokens.iter().enumerate() {
            batch.logit_rows.push(batch.tokens.len() as u32);
            batch.tokens.push(*token);
            batch.positions.push((position + i) as u32);
            batch.rope_lens.push(rope_len.unwrap_or(position + i + 1) as u32);
        }
    }

    fn run(&mut self, batch: &Batch) -> Vec<f32> {
        let mut logits = Vec::new();
        run(&mut self.decoder, batch, &mut logits).unwrap();
        assert_eq!(logits.len(), batch.logit_rows.len() * self.decoder.vocab_size());
        logits
    }

    /// Returns the logits of all prompt rows, with the prompt cut into chunks.
    fn prefill(&mut self, prompt: &[u32], chunk: usize) -> Vec<f32> {
        let mut logits = Vec::new();
        for (i, tokens) in prompt.chunks(chunk).enumerate() {
            let mut batch = Batch::default();
            self.add(&mut batch, 0, tokens, i * chunk, Some(prompt.len()));
            logits.extend(self.run(&batch));
        }
        logits
    }

    /// Returns the logits that choose each greedy token, given the tokens before it.
    fn decode(&mut self, prefill: &[f32], prompt: &[u32], greedy: &[u32]) -> Vec<f32> {
        let vocab = self.decoder.vocab_size();
        let mut logits = prefill[prefill.len() - vocab..].to_vec();
        for (i, token) in greedy[..greedy.len() - 1].iter().enumerate() {
            let mut batch = Batch::default();
            self.add(&mut batch, 0, &[*token], prompt.len() + i, None);
            logits.extend(self.run(&batch));
        }
        logits
    }
}

/// Returns the largest error of any row.
fn error(found: &[f32], expected: &[f32], vocab: usize) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|x| x.is_finite()));
    let rows = found.chunks(vocab).zip(expected.chunks(vocab));
    let row_error = |(a, b): (&[f32], &[f32])| {
        let difference = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        difference / b.iter().map(|b| b.abs()).fold(0.0, f32::max)
    };
    rows.map(row_error).fold(0.0, f32::max)
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn all_fixtures_at_all_levels() {
    let mut worst = (0.0, String::new());
    for entry in fixtures() {
        let name = entry["name"].as_str().unwrap();
        let model = Model::load(fixture(name).to_str().unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let reference = Reference::read(name);
        let vocab = model.config().vocab_size as usize;
        let tokens = reference.prompt.len() + reference.greedy.len();
        for level in levels() {
            let what = format!("{name} at {}", level.name());
            let mut rig = Rig::new(&model, level, 1, tokens);
            let prefill = rig.prefill(&reference.prompt, usize::MAX);
            let decode = rig.decode(&prefill, &reference.prompt, &reference.greedy);
            let found = error(&prefill, &reference.logits, vocab).max(error(&decode, &reference.greedy_logits, vocab));
            println!("{what}: {found:.2e}");
            let exact = match &reference.logits_bf16 {
                Some(bf16) => {
                    let allowed = error(bf16, &reference.logits, vocab);
                    assert!(found <= allowed, "{what}: error {found}: transformers' bf16 has {allowed}");
                    false
                }
                None => {
                    assert!(found <= TOLERANCE, "{what}: error {found}");
                    true
                }
            };
            if exact {
                let chosen: Vec<u32> = decode.chunks(vocab).map(argmax).collect();
                assert_eq!(chosen, reference.greedy, "{what}");
                if found > worst.0 {
                    worst = (found, what.clone());
                }
            }

            for (chunk, threads) in [(5, 1), (1, 1), (usize::MAX, 2), (7, 2)] {
                let mut other = Rig::new(&model, level, threads, tokens);
                let cut = other.prefill(&reference.prompt, chunk);
                assert!(same_bits(&cut, &prefill), "{what}: chunks of {chunk} on {threads} threads differ");
                let continued = other.decode(&cut, &reference.prompt, &reference.greedy);
                assert!(same_bits(&continued, &decode), "{what}: decode after chunks of {chunk} differs");
            }
        }
    }
    assert!(worst.0 > 0.0, "nothing was compared");
}

/// A decode row and a prefill chunk in one batch give the same bits as each alone. Rows without logits produce none.
#[test]
fn mixed_batches() {
    for name in ["qwen3-sliding-bias", "rope-dynamic-cross", "llama-bf16"] {
        let model = Model::load(fixture(name).to_str().unwrap()).unwrap();
        let reference = Reference::read(name);
        let vocab = model.config().vocab_size as usize;
        let (prompt, greedy) = (&reference.prompt, &reference.greedy);
        let (half, tokens) = (prompt.len() / 2, prompt.len() + greedy.len());
        for level in levels() {
            let mut alone = Rig::new(&model, level, 1, tokens);
            let prefill = alone.prefill(prompt, usize::MAX);
            let decode = alone.decode(&prefill, prompt, greedy);

            let mut rig = Rig::new(&model, level, 2, tokens);
            let mut batch = Batch::default();
            rig.add(&mut batch, 0, prompt, 0, Some(prompt.len()));
            rig.add(&mut batch, 1, &prompt[..half], 0, Some(prompt.len()));
            // Requests only the last row of the first sequence, then no rows at all.
            batch.logit_rows = vec![prompt.len() as u32 - 1];
            let last = rig.run(&batch);
            assert!(same_bits(&last, &prefill[prefill.len() - vocab..]), "{name} at {}", level.name());

            let mut batch = Batch::default();
            rig.add(&mut batch, 1, &prompt[half..prompt.len() - 1], half, Some(prompt.len()));
            batch.logit_rows.clear();
            assert!(rig.run(&batch).is_empty());

            let mut batch = Batch::default();
            rig.add(&mut batch, 0, &greedy[..1], prompt.len(), None);
            rig.add(&mut batch, 1, &prompt[prompt.len() - 1..], prompt.len() - 1, Some(prompt.len()));
            let both = rig.run(&batch);
            assert!(same_bits(&both[..vocab], &decode[vocab..2 * vocab]), "{name} at {}: decode row", level.name());
            assert!(same_bits(&both[vocab..], &last), "{name} at {}: prefill row", level.name());
        }
    }
}

#[test]
fn refused_batches() {
    let model = Model::load(fixture("llama2-mha").to_str().unwrap()).unwrap();
    let mut rig = Rig::new(&model, Level::Portable, 1, 16);
    let mut logits = vec![1.0];
    let mut batch = Batch::default();
    run(&mut rig.decoder, &batch, &mut logits).unwrap();
    assert!(logits.is_empty());
    rig.add(&mut batch, 0, &[1, 80], 0, None);
    let e = run(&mut rig.decoder, &batch, &mut logits).unwrap_err();
    assert_eq!(e.status, cleave::error::Status::InvalidArgument);
    assert!(e.message.contains("token 80"), "{e}");

    let other = Model::load(fixture("qwen3").to_str().unwrap()).unwrap();
    let kv = Arc::new(KvSlab::new(other.kv_geometry(8, Dtype::F16), 1).unwrap());
    let backend = CpuBackend::new(CpuConfig { threads: 1, ..CpuConfig::default() }).unwrap();
    let e = Decoder::new(model.clone(), model.weights(&CpuDevice, false, &mut |_, _| Ok(())).unwrap(), backend, kv)
        .err()
        .unwrap();
    assert_eq!(e.status, cleave::error::Status::Incompatible);
}

/// A second engine makes no copy: both use the same weights object, which refers to the file mapping.
#[test]
fn weights_are_shared() {
    let model = Model::load(fixture("llama-gqa-tied").to_str().unwrap()).unwrap();
    let (a, b) = (
        model.weights(&CpuDevice, false, &mut |_, _| Ok(())).unwrap(),
        model.weights(&CpuDevice, false, &mut |_, _| Ok(())).unwrap(),
    );
    assert!(Arc::ptr_eq(&a, &b));
    assert!(std::ptr::eq(a.embed(), &a.head().weight), "tied");
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = |linear: &Linear<CpuBackend>| {
        let at = linear.weight.bytes().as_ptr() as usize;
        maps.lines().filter(|line| line.ends_with("/llama-gqa-tied/model.safetensors")).any(|line| {
            let (begin, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let [begin, end] = [begin, end].map(|hex| usize::from_str_radix(hex, 16).unwrap());
            (begin..end).contains(&at)
        })
    };
    let linears = a.layers.iter().flat_map(|layer| layer.qkv.iter().chain(&layer.gate_up).chain([&layer.down]));
    assert!(linears.clone().count() > 0 && linears.into_iter().all(mapped));
}

/// If a tied config comes with an output projection in the file, the projection is used (as transformers 5 does).
/// Tensor data at an odd address works like any other.
#[test]
fn stored_head_and_odd_alignment() {
    let name = "llama-gqa-tied";
    let reference = Reference::read(name);
    let logits = |dir: &std::path::Path| {
        let model = Model::load(dir.to_str().unwrap()).unwrap_or_else(|e| panic!("{e}"));
        Rig::new(&model, Level::best(), 1, reference.prompt.len()).prefill(&reference.prompt, usize::MAX)
    };
    let good = logits(&fixture(name));

    let dir = copy(name);
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embed = tensors.tensor("model.embed_tokens.weight").unwrap();
    // The embedding with all signs inverted.
    let negated: Vec<u8> =
        embed.data().iter().enumerate().map(|(i, b)| b ^ if i % 4 == 3 { 0x80 } else { 0 }).collect();
    let head = ::safetensors::tensor::TensorView::new(embed.dtype(), embed.shape().to_vec(), &negated).unwrap();
    let mut all = tensors.tensors();
    all.push(("lm_head.weight".to_owned(), head));
    std::fs::write(&path, ::safetensors::serialize(all, None).unwrap()).unwrap();
    let turned = logits(dir.path());
    assert!(turned.iter().zip(&good).all(|(a, b)| *a == -b));

    let dir = copy(name);
    edit_bytes(&dir.path().join("model.safetensors"), |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        bytes.insert(8 + length as usize, b' ');
        bytes[..8].copy_from_slice(&(length + 1).to_le_bytes());
    });
    assert!(same_bits(&logits(dir.path()), &good));
}

/// Checks properties of the fixtures' configs that logits alone do not show.
#[test]
fn infos() {
    let load = |name: &str| Model::load(fixture(name).to_str().unwrap()).unwrap();
    let model = load("llama-gqa-tied");
    assert_eq!(model.eos_ids().len(), 3);
    let info = model.info();
    assert_eq!(info.architecture, "LlamaForCausalLM");
    assert_eq!(info.kv_bytes_per_token, 2 * 4 * u64::from(info.n_layers * info.n_kv_heads * info.head_dim));
    assert_eq!(load("llama-bf16").info().weight_dtype, Dtype::Bf16);
    assert!(load("rope-dynamic-beyond").rope_depends_on_length().is_some());
    assert_eq!(load("rope-yarn-v5").rope_depends_on_length(), None);
    // Scaled from 256 and from 24; the last has an original length of 64 and already states 256.
    for (name, tokens) in [("rope-linear-v4", 1024), ("rope-dynamic-beyond", 48), ("rope-yarn-v5", 256)] {
        assert_eq!(load(name).info().max_context_tokens, tokens, "{name}");
    }
    let mut prints: Vec<_> = fixtures().iter().map(|f| load(f["name"].as_str().unwrap()).fingerprint()).collect();
    let n = prints.len();
    prints.sort_unstable();
    prints.dedup();
    assert_eq!(prints.len(), n, "fingerprints collide");
}
