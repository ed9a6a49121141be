//! Matrix products: gemm.cu and gemv.cu.

use crate::common::{BOTH, Element, Random, arg, assert_close, launch};
use cleave_kernels::shapes;
use half::{bf16, f16};
use simulated_kernels::Lanes;
use std::ptr::null;

#[derive(Clone, Copy, Debug)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    bias: bool,
    accumulate: bool,
}

const fn shape(m: usize, n: usize, k: usize, bias: bool, accumulate: bool) -> Shape {
    Shape { m, n, k, bias, accumulate }
}

/// Operands of one product and the product in f64. Rows of x and y have gaps between them.
struct Product<T, O> {
    shape: Shape,
    x: Vec<T>,
    x_stride: u32,
    w: Vec<T>,
    bias: Vec<f32>,
    y: Vec<O>,
    y_stride: u32,
    expected: Vec<f64>,
    /// Tolerance for float sums and for the rounding to O.
    tolerance: f64,
}

fn dot<T: Element>(x: &[T], w: &[T]) -> f64 {
    x.iter().zip(w).map(|(x, w)| x.get() * w.get()).sum()
}

impl<T: Element, O: Element> Product<T, O> {
    /// Creates random operands with `y_gap` unused elements between the rows of y.
    fn new(shape: Shape, y_gap: usize, random: &mut Random) -> Self {
        let Shape { m, n, k, .. } = shape;
        let (x_stride, y_stride) = (k + 8, n + y_gap);
        let (x, w): (Vec<T>, Vec<T>) = (random.vector(m * x_stride), random.vector(n * k));
        let (bias, y): (Vec<f32>, Vec<O>) = (random.vector(n), random.vector(m * y_stride));
        let mut expected: Vec<f64> = y.iter().map(|y| y.get()).collect();
        for row in 0..m {
            for column in 0..n {
                let at = &mut expected[row * y_stride + column];
                let sum = dot(&x[row * x_stride..][..k], &w[column * k..][..k]);
                let bias = if shape.bias { f64::from(bias[column]) } else { 0.0 };
                *at = sum + bias + if shape.accumulate { *at } else { 0.0 };
            }
        }
        let tolerance = O::EPSILON * 1.01 + k as f64 * <f32 as Element>::EPSILON;
        let (x_stride, y_stride) = (x_stride as u32, y_stride as u32);
        Product { shape, x, x_stride, w, bias, y, y_stride, expected, tolerance }
    }

    /// Runs `kernel` for the first `m` rows and returns y.
    fn run(&self, kernel: &str, m: usize, grid: [u32; 3], threads: u32, shared: usize, lanes: Lanes) -> Vec<O> {
        let mut y = self.y.clone();
        let bias = if self.shape.bias { self.bias.as_ptr() } else { null() };
        launch(
            kernel,
            grid,
            threads,
            shared,
            &[
                arg(&y.as_mut_ptr()),
                arg(&self.y_stride),
                arg(&self.x.as_ptr()),
                arg(&self.x_stride),
                arg(&self.w.as_ptr()),
                arg(&bias),
                arg(&(m as u32)),
                arg(&(self.shape.n as u32)),
                arg(&(self.shape.k as u32)),
                arg(&u32::from(self.shape.accumulate)),
            ],
            lanes,
        );
        y
    }

    fn tiles(&self, m: u32, n: u32) -> [u32; 3] {
        [(self.shape.m as u32).div_ceil(m), (self.shape.n as u32).div_ceil(n), 1]
    }
}

const GEMMS: [Shape; 7] = [
    shape(1, 1, 8, true, true),
    shape(3, 130, 136, false, false),
    shape(130, 33, 40, true, false),
    shape(64, 31, 200, true, true),
    shape(129, 129, 72, false, true),
    shape(7, 64, 512, false, false),
    shape(5, 9, 0, true, true),
];

fn gemm_mma<T: Element, O: Element>() {
    let mut random = Random(3);
    for (i, shape) in GEMMS.into_iter().enumerate() {
        // Covers an odd and an even stride of y.
        let product = Product::<T, O>::new(shape, 3 + i % 2, &mut random);
        let [wide, flat] = ["gemm", "gemm_flat"].map(|gemm| format!("{gemm}_{}_{}", T::NAME, O::NAME));
        for lanes in BOTH {
            let found = product.run(
                &wide,
                shape.m,
                product.tiles(shapes::GEMM_ROWS, shapes::GEMM_COLUMNS),
                shapes::GEMM_THREADS,
                shapes::GEMM_SHARED as usize,
                lanes,
            );
            assert_close(&found, &product.expected, product.tolerance, &format!("{wide} {shape:?}"));
            let same = product.run(
                &flat,
                shape.m,
                product.tiles(shapes::GEMM_FLAT_ROWS, shapes::GEMM_FLAT_COLUMNS),
                shapes::GEMM_FLAT_THREADS,
                shapes::GEMM_FLAT_SHARED as usize,
                lanes,
            );
            assert!(found == same, "{flat} {shape:?} has other bits");
        }
    }
    // A row's bits do not depend on the number of rows or on its index. Surplus blocks do nothing.
    let mut product = Product::<T, O>::new(shape(66, 40, 136, true, false), 0, &mut random);
    let stride = product.x_stride as usize;
    product.x.copy_within(..stride, 65 * stride);
    let name = format!("gemm_{}_{}", T::NAME, O::NAME);
    let all = product.run(&name, 66, [2, 2, 1], shapes::GEMM_THREADS, shapes::GEMM_SHARED as usize, Lanes::Ascending);
    let one = product.run(&name, 1, [2, 2, 1], shapes::GEMM_THREADS, shapes::GEMM_SHARED as usize, Lanes::Ascending);
    assert!(all[..40] == one[..40] && all[65 * 40..] == one[..40]);
    assert!(one[40..] == product.y[40..], "rows beyond m stay as they are");
}

#[test]
fn gemm_on_tensor_cores() {
    gemm_mma::<bf16, bf16>();
    gemm_mma::<bf16, f32>();
    gemm_mma::<f16, f16>();
    gemm_mma::<f16, f32>();
}

#[test]
fn gemm_of_float() {
    let mut random = Random(4);
    for shape in GEMMS.into_iter().chain([shape(65, 66, 20, true, false), shape(2, 70, 4, true, true)]) {
        let product = Product::<f32, f32>::new(shape, 5, &mut random);
        for lanes in BOTH {
            let found = product.run(
                "gemm_float_float",
                shape.m,
                product.tiles(shapes::GEMM_FLOAT_ROWS, shapes::GEMM_FLOAT_COLUMNS),
                shapes::GEMM_FLOAT_THREADS,
                shapes::GEMM_FLOAT_SHARED as usize,
                lanes,
            );
            assert_close(&found, &product.expected, product.tolerance, &format!("gemm_float_float {shape:?}"));
        }
    }
}

/// Block size in rows of W, and bytes of shared memory per W.
fn gemv_geometry<T: Element>() -> (usize, usize) {
    match size_of::<T>() {
        4 => (shapes::GEMV_FLOAT_OUTPUTS as usize, 0),
        _ => (shapes::GEMV_OUTPUTS as usize, shapes::GEMV_SHARED as usize),
    }
}

fn gemv<T: Element, O: Element>() {
    let mut random = Random(5);
    let (rows, shared) = gemv_geometry::<T>();
    let name = format!("gemv_{}_{}", T::NAME, O::NAME);
    for (n, k) in [(1, 8), (16, 512), (35, 1000), (50, 72), (17, 2056), (8, 0)] {
        for (bias, accumulate) in [(false, false), (true, true)] {
            let product = Product::<T, O>::new(shape(8, n, k, bias, accumulate), 2, &mut random);
            let stride = product.y_stride as usize;
            let grid = [n.div_ceil(rows) as u32 + 1, 1, 1];
            for lanes in BOTH {
                let all = product.run(&name, 8, grid, shapes::GEMV_THREADS, shared, lanes);
                assert_close(&all, &product.expected, product.tolerance, &format!("{name} n {n} k {k}"));
                for m in [0, 1, if accumulate { 3 } else { 7 }] {
                    let found = product.run(&name, m, grid, shapes::GEMV_THREADS, shared, lanes);
                    assert!(found[..m * stride] == all[..m * stride], "{name} n {n} k {k} m {m} has other bits");
                    assert!(found[m * stride..] == product.y[m * stride..]);
                }
            }
        }
    }
}

#[test]
fn gemv_of_every_type() {
    gemv::<f32, f32>();
    gemv::<bf16, bf16>();
    gemv::<bf16, f32>();
    gemv::<f16, f16>();
    gemv::<f16, f32>();
}

fn gemv_silu<T: Element>() {
    let mut random = Random(6);
    let (rows, shared) = gemv_geometry::<T>();
    for (m, n, k) in [(1, 1, 8), (1, 40, 1544), (8, 33, 136), (5, 16, 72)] {
        let (x, x_stride): (Vec<T>, u32) = (random.vector(m * (k + 8)), k as u32 + 8);
        let (gate, up): (Vec<T>, Vec<T>) = (random.vector(n * k), random.vector(n * k));
        let y: Vec<T> = random.vector(m * (n + 1));
        let mut expected: Vec<f64> = y.iter().map(|y| y.get()).collect();
        for row in 0..m {
            for column in 0..n {
                let [gate, up] = [&gate, &up].map(|w| dot(&x[row * (k + 8)..][..k], &w[column * k..][..k]));
                expected[row * (n + 1) + column] = gate / (1.0 + (-gate).exp()) * up;
            }
        }
        for lanes in BOTH {
            let apart = gate_and_up_apart(&x, x_stride, &gate, &up, m, n, k, lanes);
            let mut y = y.clone();
            launch(
                &format!("gemv_silu_{}", T::NAME),
                [n.div_ceil(rows) as u32, 1, 1],
                shapes::GEMV_THREADS,
                2 * shared,
                &[
                    arg(&y.as_mut_ptr()),
                    arg(&(n as u32 + 1)),
                    arg(&x.as_ptr()),
                    arg(&x_stride),
                    arg(&gate.as_ptr()),
                    arg(&up.as_ptr()),
                    arg(&(m as u32)),
                    arg(&(n as u32)),
                    arg(&(k as u32)),
                ],
                lanes,
            );
            // Gate and up are rounded too; the slope of silu is at most 1.1.
            let most = expected.iter().fold(1.0f64, |most, y| most.max(y.abs()));
            let tolerance = (T::EPSILON * 3.2 + k as f64 * <f32 as Element>::EPSILON) * most.sqrt().max(1.0);
            assert_close(&y, &expected, tolerance, &format!("gemv_silu m {m} n {n} k {k}"));
            for row in 0..m {
                assert!(
                    y[row * (n + 1)..][..n] == apart[row * apart.len() / m..][..n],
                    "m {m} n {n} k {k}: other bits"
                );
            }
        }
    }
}

/// Computes silu(x · gateᵀ) * (x · upᵀ) with the kernels for one product and for the activation. Rows consist of whole
/// 16-byte pieces.
#[allow(clippy::too_many_arguments)]
fn gate_and_up_apart<T: Element>(
    x: &[T],
    x_stride: u32,
    gate: &[T],
    up: &[T],
    m: usize,
    n: usize,
    k: usize,
    lanes: Lanes,
) -> Vec<T> {
    let (rows, shared) = gemv_geometry::<T>();
    let stride = n.next_multiple_of(16 / size_of::<T>());
    let mut outs = [vec![T::of(0.0); m * stride], vec![T::of(0.0); m * stride]];
    for (out, w) in outs.iter_mut().zip([gate, up]) {
        launch(
            &format!("gemv_{0}_{0}", T::NAME),
            [n.div_ceil(rows) as u32, 1, 1],
            shapes::GEMV_THREADS,
            shared,
            &[
                arg(&out.as_mut_ptr()),
                arg(&(stride as u32)),
                arg(&x.as_ptr()),
                arg(&x_stride),
                arg(&w.as_ptr()),
                arg(&std::ptr::null::<f32>()),
                arg(&(m as u32)),
                arg(&(n as u32)),
                arg(&(k as u32)),
                arg(&0u32),
            ],
            lanes,
        );
    }
    let [mut gate, up] = outs;
    launch(
        &format!("silu_mul_{}", T::NAME),
        [((m * stride * size_of::<T>() / 16).div_ceil(64)) as u32, 1, 1],
        64,
        0,
        &[
            arg(&gate.as_mut_ptr()),
            arg(&(stride as u32)),
            arg(&up.as_ptr()),
            arg(&(stride as u32)),
            arg(&(m as u32)),
            arg(&(stride as u32)),
        ],
        lanes,
    );
    gate
}

#[test]
fn gemv_silu_of_every_type() {
    gemv_silu::<f32>();
    gemv_silu::<bf16>();
    gemv_silu::<f16>();
}
