use crate::common::{BOTH, Element, Random, arg, assert_close, launch};
use crate::geometry::{Bytes, KvLayout, Stored};
use half::{bf16, f16};
use std::ptr;

const NO_SLOT: u32 = u32::MAX;

struct Shape {
    rows: usize,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    block_tokens: u32,
    shards: u32,
    norms: bool,
    gap: usize,
}

/// Norm and rotation of one head in the arithmetic of the CPU backend.
fn turned(x: &[f32], norm: Option<&[f32]>, cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let mut x = x.to_vec();
    if let Some(weight) = norm {
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let scale = (1.0 / (squares / x.len() as f64 + f64::from(1e-6f32)).sqrt()) as f32;
        x.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
    }
    let half = x.len() / 2;
    for i in 0..half {
        let (a, b) = (x[i], x[half + i]);
        (x[i], x[half + i]) = (a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]);
    }
    x
}

fn floats<T: Element>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.get() as f32).collect()
}

fn check<T: Element, K: Stored>(shape: &Shape) {
    let Shape { rows, heads, kv_heads, head_dim, block_tokens, shards, norms, gap } = *shape;
    let what = format!("rope_store_{}_{}", T::NAME, K::NAME);
    let mut random = Random(u64::from(head_dim));
    let (dim, half, layers, blocks) = (head_dim as usize, head_dim as usize / 2, 3u32, 5u32);
    let layout = KvLayout::new::<K>(layers, kv_heads, head_dim, block_tokens, shards);
    let strides = [heads, kv_heads, kv_heads].map(|heads| heads as usize * dim + gap);
    let [q, k, v] = strides.map(|stride| random.vector::<T>(rows * stride));
    let (cos, sin): (Vec<f32>, Vec<f32>) = (random.vector(rows * half), random.vector(rows * half));
    let [q_norm, k_norm] = [(); 2].map(|()| random.vector::<f32>(dim));
    // Slots are distinct and in any order. Rows n - 3 and n - 2 of n are padding.
    let mut slots: Vec<u32> = (0..blocks * block_tokens).collect();
    for i in (1..slots.len()).rev() {
        slots.swap(i, random.below(i + 1));
    }
    slots.truncate(rows);
    slots[rows.saturating_sub(3)..rows.saturating_sub(1)].fill(NO_SLOT);
    let before = Bytes::new(blocks as usize * layout.block_bytes as usize);
    let (mut expected_q, mut expected_kv) = (q.clone(), before.clone());
    let mut places = Vec::new();
    for (row, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != NO_SLOT) {
        let angles = (&cos[row * half..][..half], &sin[row * half..][..half]);
        for head in 0..heads as usize {
            let at = row * strides[0] + head * dim;
            let out = turned(&floats(&q[at..][..dim]), norms.then_some(&*q_norm), angles.0, angles.1);
            expected_q[at..][..dim].iter_mut().zip(out).for_each(|(to, x)| *to = T::of(f64::from(x)));
        }
        for head in 0..kv_heads {
            let place = |value| layout.place::<K>(slot / block_tokens, 1, value, head, slot % block_tokens);
            let at = row * strides[1] + head as usize * dim;
            let k = turned(&floats(&k[at..][..dim]), norms.then_some(&*k_norm), angles.0, angles.1);
            layout.write::<K>(&mut expected_kv, place(0), &k);
            layout.write::<K>(&mut expected_kv, place(1), &floats(&v[row * strides[2] + head as usize * dim..][..dim]));
            places.push(place(0));
        }
    }
    let group = head_dim.div_ceil(8).next_power_of_two();
    for lanes in BOTH {
        let (mut out, mut kv) = (q.clone(), before.clone());
        let norm = |norm: &[f32]| if norms { norm.as_ptr() } else { ptr::null() };
        launch(
            &what,
            [(rows as u32 * (heads + 2 * kv_heads) * group).div_ceil(64) + 1, 1, 1],
            64,
            0,
            &[
                arg(&out.as_mut_ptr()),
                arg(&(strides[0] as u32)),
                arg(&k.as_ptr()),
                arg(&(strides[1] as u32)),
                arg(&v.as_ptr()),
                arg(&(strides[2] as u32)),
                arg(&norm(&q_norm)),
                arg(&norm(&k_norm)),
                arg(&1e-6f32),
                arg(&cos.as_ptr()),
                arg(&sin.as_ptr()),
                arg(&slots.as_ptr()),
                arg(&kv.pointer()),
                arg(&layout),
                arg(&1u32),
                arg(&heads),
                arg(&(rows as u32)),
            ],
            lanes,
        );
        if norms {
            // The sum of squares has another order, so k is only close. Everything else is equal bit for bit.
            let expected: Vec<f64> = expected_q.iter().map(|x| x.get()).collect();
            assert_close(&out, &expected, 2.0 * T::EPSILON + 2e-6, &what);
            for &place in &places {
                let close = layout.read::<K>(&expected_kv, place);
                let most = close.iter().fold(1.0f64, |most, x| most.max(f64::from(x.abs())));
                let tolerance = match K::NAME {
                    "int8" => most / 127.0,
                    "float" => 2e-6,
                    "bf16" => 2.0 * bf16::EPSILON.to_f64(),
                    _ => 2.0 * f16::EPSILON.to_f64(),
                };
                let close: Vec<f64> = close.into_iter().map(f64::from).collect();
                assert_close(&layout.read::<K>(&kv, place), &close, tolerance + 1e-6, &what);
                for (at, bytes) in [(place.0, dim * K::BYTES), (place.1, if K::SCALED { 4 } else { 0 })] {
                    kv[at..][..bytes].copy_from_slice(&expected_kv[at..][..bytes]);
                }
            }
        } else {
            assert!(out == expected_q, "{what}: q to the bit");
        }
        assert!(kv == expected_kv, "{what}: blocks to the bit");
    }
}

fn every_type(shape: Shape) {
    fn of<T: Element>(shape: &Shape) {
        check::<T, f32>(shape);
        check::<T, bf16>(shape);
        check::<T, f16>(shape);
        check::<T, i8>(shape);
    }
    of::<f32>(&shape);
    of::<bf16>(&shape);
    of::<f16>(&shape);
}

#[test]
fn rope_store_of_whole_quads() {
    let shape = |rows, head_dim, norms, gap| Shape {
        rows,
        heads: 4,
        kv_heads: 2,
        head_dim,
        block_tokens: 4,
        shards: 1,
        norms,
        gap,
    };
    every_type(shape(1, 128, false, 0));
    every_type(shape(5, 64, true, 8));
    every_type(shape(7, 80, false, 16));
    every_type(shape(2, 256, true, 0));
}

#[test]
fn rope_store_of_shards_and_odd_pieces() {
    let shape = |rows, heads, kv_heads, head_dim, block_tokens, shards, norms, gap| Shape {
        rows,
        heads,
        kv_heads,
        head_dim,
        block_tokens,
        shards,
        norms,
        gap,
    };
    every_type(shape(9, 4, 4, 8, 3, 2, false, 0));
    every_type(shape(6, 6, 2, 6, 5, 2, true, 0));
    every_type(shape(4, 3, 1, 2, 1, 1, false, 1));
    every_type(shape(3, 2, 2, 250, 1, 1, true, 3));
    every_type(shape(0, 2, 2, 16, 2, 1, false, 0));
    // Rows consist of whole quads, but the strides are not multiples of four.
    every_type(shape(3, 2, 1, 16, 2, 1, false, 5));
}

#[test]
fn int8_of_extreme_rows_has_the_bits_of_the_cpu() {
    let tiny = f32::from_bits;
    let extreme: [[f32; 8]; 8] = [
        [0.0, -0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.5, 1.5, 127.0, -2.5, 3.5, -126.5, 0.49999997, -0.5],
        [tiny(150), -tiny(150), tiny(1), tiny(75), tiny(149), 0.0, -tiny(40), tiny(2)],
        [tiny(1), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [1.0, f32::INFINITY, 3.0, -7.0, 0.0, 1e30, f32::NEG_INFINITY, 2.0],
        [f32::MAX, f32::MIN, 1.0, f32::MAX / 2.0, 1e38, -1e37, 0.0, f32::MIN_POSITIVE],
        [1e-30, -1e-30, 3e-31, 9.9e-31, 0.0, 5e-31, -5e-31, 1e-32],
        [3.0, f32::NAN, 1.0, 2.0, -3.0, 0.0, 5.0, 100.0],
    ];
    let rows = extreme.len();
    let layout = KvLayout::new::<i8>(1, 1, 8, 8, 1);
    let before = Bytes::new(layout.block_bytes as usize);
    let (mut q, k, v) = (vec![0.0f32; rows * 8], vec![0.0f32; rows * 8], extreme.as_flattened().to_vec());
    let angles = vec![1.0f32; rows * 4];
    let slots: Vec<u32> = (0..rows as u32).collect();
    for lanes in BOTH {
        let mut kv = before.clone();
        launch(
            "rope_store_float_int8",
            [1, 1, 1],
            32,
            0,
            &[
                arg(&q.as_mut_ptr()),
                arg(&8u32),
                arg(&k.as_ptr()),
                arg(&8u32),
                arg(&v.as_ptr()),
                arg(&8u32),
                arg(&ptr::null::<f32>()),
                arg(&ptr::null::<f32>()),
                arg(&0.0f32),
                arg(&angles.as_ptr()),
                arg(&angles.as_ptr()),
                arg(&slots.as_ptr()),
                arg(&kv.pointer()),
                arg(&layout),
                arg(&0u32),
                arg(&1u32),
                arg(&(rows as u32)),
            ],
            lanes,
        );
        for (row, values) in extreme.iter().enumerate() {
            let place = layout.place::<i8>(0, 0, 1, 0, row as u32);
            let (bytes, scale) = i8::put(values);
            assert_eq!(kv[place.0..][..8], bytes, "{values:?}");
            let found = f32::from_le_bytes(kv[place.1..][..4].try_into().unwrap());
            let scale = scale.unwrap();
            assert!(found.to_bits() == scale.to_bits() || found.is_nan() && scale.is_nan(), "{values:?}: {found}");
        }
    }
}
