use crate::common::{BOTH, Element, Random, arg, assert_close, launch};
use half::{bf16, f16};

fn embed<W: Element>() {
    let mut random = Random(2);
    for (vocabulary, rows, hidden) in [(1, 1, 1), (7, 3, 8), (20, 9, 260), (5, 2, 131), (3, 0, 8)] {
        let table: Vec<W> = random.vector(vocabulary * hidden);
        let tokens: Vec<u32> = (0..rows).map(|_| random.below(vocabulary) as u32).collect();
        let mut expected = Vec::new();
        for &token in &tokens {
            expected.extend(table[token as usize * hidden..][..hidden].iter().map(|x| x.get()));
        }
        expected.extend([9.0; 4]); // nothing is written past the end
        for lanes in BOTH {
            let mut out = vec![9.0f32; rows * hidden + 4];
            launch(
                &format!("embed_{}", W::NAME),
                [rows as u32 + 2, 1, 1],
                32,
                0,
                &[
                    arg(&table.as_ptr()),
                    arg(&tokens.as_ptr()),
                    arg(&out.as_mut_ptr()),
                    arg(&(rows as u32)),
                    arg(&(hidden as u32)),
                ],
                lanes,
            );
            assert_close(&out, &expected, 0.0, "embed");
        }
    }
}

#[test]
fn embed_of_every_type() {
    embed::<f32>();
    embed::<bf16>();
    embed::<f16>();
}
