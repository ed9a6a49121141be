use crate::common::{BOTH, Element, Random, arg, assert_close, launch};
use half::{bf16, f16};
use simulated_kernels as kernels;

fn silu_mul<T: Element>() {
    let mut random = Random(1);
    for (rows, columns, gap) in [(1, 8, 0), (3, 48, 16), (70, 256, 0)] {
        let (gate_stride, up_stride) = ((columns + gap) as u32, (columns + 2 * gap) as u32);
        let gate: Vec<T> = random.vector(rows * gate_stride as usize);
        let up: Vec<T> = random.vector(rows * up_stride as usize);
        let mut expected: Vec<f64> = gate.iter().map(|x| x.get()).collect();
        for row in 0..rows {
            for column in 0..columns {
                let x = gate[row * gate_stride as usize + column].get();
                let product = x / (1.0 + (-x).exp()) * up[row * up_stride as usize + column].get();
                expected[row * gate_stride as usize + column] = product;
            }
        }
        for lanes in BOTH {
            let mut out = gate.clone();
            let pieces = rows * columns * size_of::<T>() / 16;
            let grid = [pieces.div_ceil(64) as u32, 1, 1];
            launch(
                &format!("silu_mul_{}", T::NAME),
                grid,
                64,
                0,
                &[
                    arg(&out.as_mut_ptr()),
                    arg(&gate_stride),
                    arg(&up.as_ptr()),
                    arg(&up_stride),
                    arg(&(rows as u32)),
                    arg(&(columns as u32)),
                ],
                lanes,
            );
            assert_close(&out, &expected, 4.0 * T::EPSILON, "silu_mul");
        }
    }
}

#[test]
fn the_registry_knows_the_parameters() {
    assert_eq!(kernels::params("silu_mul_bf16"), Some(vec![8, 4, 8, 4, 4, 4]));
    assert_eq!(kernels::params("silu_mul"), None);
    let kernels = kernels::kernels();
    assert!(kernels.is_sorted() && kernels.iter().any(|name| name == "silu_mul_f16"));
}

#[test]
fn silu_mul_of_every_type() {
    silu_mul::<f32>();
    silu_mul::<bf16>();
    silu_mul::<f16>();
}
