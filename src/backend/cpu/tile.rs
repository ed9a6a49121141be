//! AMX tiles: their configuration, and the products of packed bf16 tiles that projections and attention share.
//!
//! Every tile is 16 rows of 64 bytes. A product tile is `C[16 a][16 b] += A[16 a][32 k] · B[16 k/2][16 b][2]`. Each
//! element is a separate sequence of additions over k, so the other rows and columns do not affect it. tmm0 to tmm3
//! accumulate; tmm4 to tmm7 hold operands. The compiler never uses tiles by itself.

use std::arch::asm;

/// Size of a tile in bytes.
pub(super) const TILE_BYTES: usize = 1024;

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (row_bytes[tile], rows[tile]) = (64, 16);
        tile += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// Guard that keeps tiles configured on this thread while it lives.
pub(super) struct Tiles(std::marker::PhantomData<*const ()>);

impl Tiles {
    /// # Safety
    /// The level Amx is available on this machine.
    pub unsafe fn configure() -> Tiles {
        // SAFETY: the instruction only reads the 64 bytes of the configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
        Tiles(std::marker::PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: this thread configured the tiles, and their contents are no longer needed.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// A source of A tiles. `rows` is the distance in bytes between rows of a tile, `step` that to the tile of the next
/// 32 k.
#[derive(Clone, Copy)]
pub(super) struct TileSource {
    pub first: *const u8,
    /// The first tile of the next 16 rows.
    pub second: *const u8,
    pub rows: usize,
    pub step: usize,
}

macro_rules! prefetch_two_kilobytes {
    () => {
        concat!(
            ".irp off,0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960,1024,1088,1152,1216,1280,1344,",
            "1408,1472,1536,1600,1664,1728,1792,1856,1920,1984\n",
            "prefetcht1 [{ahead}+\\off]\n",
            ".endr\n",
            "add {ahead}, 2048"
        )
    };
}

/// Sets tmm0 to tmm3 to zero.
///
/// # Safety
/// Tiles are configured.
#[inline(always)]
pub(super) unsafe fn zero() {
    // SAFETY: the instructions change only tiles.
    unsafe { asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem)) };
}

/// Loads tmm0 to tmm3 from 4096 bytes.
///
/// # Safety
/// Tiles are configured, and `from` is valid for 4096 bytes.
#[inline(always)]
pub(super) unsafe fn load(from: *const f32) {
    // SAFETY: the caller upholds this function's contract.
    unsafe {
        asm!(
            "tileloadd tmm0, [{p}+{s}*1]",
            "tileloadd tmm1, [{p}+{s}*1+1024]",
            "tileloadd tmm2, [{p}+{s}*1+2048]",
            "tileloadd tmm3, [{p}+{s}*1+3072]",
            p = in(reg) from, s = in(reg) 64usize, options(nostack, readonly)
        )
    };
}

/// Stores tmm0 to tmm3 in 4096 bytes, as the products (a0,b0), (a0,b1), (a1,b0), (a1,b1).
///
/// # Safety
/// Tiles are configured, and `to` is valid for 4096 bytes.
#[inline(always)]
pub(super) unsafe fn store(to: *mut f32) {
    // SAFETY: the caller upholds this function's contract.
    unsafe {
        asm!(
            "tilestored [{p}+{s}*1], tmm0",
            "tilestored [{p}+{s}*1+1024], tmm1",
            "tilestored [{p}+{s}*1+2048], tmm2",
            "tilestored [{p}+{s}*1+3072], tmm3",
            p = in(reg) to, s = in(reg) 64usize, options(nostack)
        )
    };
}

/// Adds `steps` products of 32 k to four tiles: two tiles of `a` times two tiles of `b`, whose pairs lie one after
/// the other. With AHEAD, each step also prefetches two kilobytes from `ahead` into L2.
///
/// # Safety
/// Tiles are configured, and the sources are valid for `steps` tiles. `ahead` may be any address.
#[inline(always)]
pub(super) unsafe fn multiply_2x2<const AHEAD: bool>(a: TileSource, b: *const u8, steps: usize, ahead: *const u8) {
    if steps == 0 {
        return;
    }
    macro_rules! product {
        ($($prefetch:expr, $ahead:ident)?) => {
            asm!(
                "2:",
                "tileloadd tmm6, [{b}+{sb}*1]",
                "tileloadd tmm4, [{a0}+{sa}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1}+{sa}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{b}+{sb}*1+1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                $($prefetch,)?
                "add {a0}, {step}",
                "add {a1}, {step}",
                "add {b}, 2048",
                "dec {n}",
                "jnz 2b",
                a0 = inout(reg) a.first => _, a1 = inout(reg) a.second => _, sa = in(reg) a.rows,
                step = in(reg) a.step, b = inout(reg) b => _, sb = in(reg) 64usize, n = inout(reg) steps => _,
                $(ahead = inout(reg) $ahead => _,)?
                options(nostack, readonly)
            )
        };
    }
    // SAFETY: the caller upholds this function's contract, and a prefetch never faults.
    unsafe { if AHEAD { product!(prefetch_two_kilobytes!(), ahead) } else { product!() } }
}

/// Like [`multiply_2x2`], but only with the first tile of each pair of `b`, so only tmm0 and tmm2 change.
///
/// # Safety
/// The contract of [`multiply_2x2`].
#[inline(always)]
pub(super) unsafe fn multiply_2x1<const AHEAD: bool>(a: TileSource, b: *const u8, steps: usize, ahead: *const u8) {
    if steps == 0 {
        return;
    }
    macro_rules! product {
        ($($prefetch:expr, $ahead:ident)?) => {
            asm!(
                "2:",
                "tileloadd tmm6, [{b}+{sb}*1]",
                "tileloadd tmm4, [{a0}+{sa}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1}+{sa}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                $($prefetch,)?
                "add {a0}, {step}",
                "add {a1}, {step}",
                "add {b}, 2048",
                "dec {n}",
                "jnz 2b",
                a0 = inout(reg) a.first => _, a1 = inout(reg) a.second => _, sa = in(reg) a.rows,
                step = in(reg) a.step, b = inout(reg) b => _, sb = in(reg) 64usize, n = inout(reg) steps => _,
                $(ahead = inout(reg) $ahead => _,)?
                options(nostack, readonly)
            )
        };
    }
    // SAFETY: the caller upholds this function's contract, and a prefetch never faults.
    unsafe { if AHEAD { product!(prefetch_two_kilobytes!(), ahead) } else { product!() } }
}
