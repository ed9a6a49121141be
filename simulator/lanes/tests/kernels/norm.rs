use crate::common::{BOTH, Element, Random, arg, assert_close, launch};
use half::{bf16, f16};
use std::ptr;

fn normed(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

fn rms_norm<T: Element>() {
    let mut random = Random(3);
    // Covers one warp and several; rows shorter and longer than the block; and lengths that are no multiple of four.
    for (rows, hidden, threads) in [(1, 8, 32), (3, 64, 256), (5, 1032, 64), (2, 513, 128), (4, 1, 32), (0, 8, 32)] {
        let weight: Vec<f32> = random.vector(hidden);
        let mut x: Vec<f32> = random.vector((rows + 2) * hidden);
        // Each row has a different magnitude; one is all zeros.
        x.iter_mut().enumerate().for_each(|(i, x)| *x *= [1.0, 1e-4, 300.0, 0.0][i / hidden % 4]);
        let ids: Vec<u32> = (0..rows).map(|_| random.below(rows + 2) as u32).collect();
        for row_ids in [None, Some(&ids)] {
            let mut expected = Vec::new();
            for row in 0..rows {
                let row = row_ids.map_or(row, |ids| ids[row] as usize);
                expected.extend(normed(&x[row * hidden..][..hidden], &weight, 1e-6));
            }
            expected.extend([9.0; 4]);
            for lanes in BOTH {
                let mut out = vec![T::of(9.0); rows * hidden + 4];
                launch(
                    &format!("rms_norm_{}", T::NAME),
                    [rows as u32 + 1, 1, 1],
                    threads,
                    threads as usize / 32 * 4,
                    &[
                        arg(&x.as_ptr()),
                        arg(&row_ids.map_or(ptr::null(), |ids| ids.as_ptr())),
                        arg(&weight.as_ptr()),
                        arg(&out.as_mut_ptr()),
                        arg(&(rows as u32)),
                        arg(&(hidden as u32)),
                        arg(&1e-6f32),
                    ],
                    lanes,
                );
                assert_close(&out, &expected, T::EPSILON + 2e-6, "rms_norm");
            }
        }
    }
}

#[test]
fn rms_norm_of_every_type() {
    rms_norm::<f32>();
    rms_norm::<bf16>();
    rms_norm::<f16>();
}

#[test]
fn rms_norm_in_place_and_rows_that_do_not_depend_on_others() {
    let mut random = Random(4);
    let (rows, hidden) = (6usize, 520usize);
    let (x, weight): (Vec<f32>, Vec<f32>) = (random.vector(rows * hidden), random.vector(hidden));
    let run = |x: &[f32], lanes| {
        let mut out = x.to_vec();
        launch(
            "rms_norm_float",
            [(x.len() / hidden) as u32, 1, 1],
            128,
            16,
            &[
                arg(&out.as_ptr()),
                arg(&ptr::null::<u32>()),
                arg(&weight.as_ptr()),
                arg(&out.as_mut_ptr()),
                arg(&((x.len() / hidden) as u32)),
                arg(&(hidden as u32)),
                arg(&1e-5f32),
            ],
            lanes,
        );
        out
    };
    for lanes in BOTH {
        let all = run(&x, lanes);
        for row in 0..rows {
            let range = row * hidden..(row + 1) * hidden;
            assert_eq!(run(&x[range.clone()], lanes), all[range.clone()], "the same bits alone");
            assert_close(&all[range.clone()], &normed(&x[range], &weight, 1e-5), 2e-6, "in place");
        }
    }
}
