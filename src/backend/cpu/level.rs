//! Instruction sets that the kernels are written for, and their detection at run time.

/// An instruction set that the kernels are written for. Levels round differently; within one level, a row's result does
/// not depend on the batch it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust with no instructions beyond the target's baseline. The kernel tests compare the other levels with it.
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// [`Level::Avx512`] with bf16 dot products.
    Avx512Bf16,
    /// [`Level::Avx512Bf16`] with AMX bf16 tiles.
    Amx,
}

impl Level {
    /// Name for logs and errors, such as `avx512-bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512-bf16",
            Level::Amx => "amx-bf16",
        }
    }

    /// The highest level available.
    pub fn best() -> Level {
        static BEST: std::sync::OnceLock<Level> = std::sync::OnceLock::new();
        *BEST.get_or_init(detect)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
        (false, ..) => Level::Portable,
        (true, false, _) => Level::Avx2,
        (true, true, false) => Level::Avx512,
        (true, true, true) if amx() => Level::Amx,
        (true, true, true) => Level::Avx512Bf16,
    }
}

/// Whether AMX can be used: the CPU has the instructions, and the kernel lets this process use the tile state.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx() -> bool {
    use std::arch::x86_64::__cpuid_count;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // Leaf 7 exists: it also reports AVX-512, which the caller has checked. From Rust 1.93 on, the call is safe.
    #[allow(unused_unsafe)]
    // SAFETY: cpuid is available on every x86-64 processor.
    let features = unsafe { __cpuid_count(7, 0) }.edx;
    let has = |bit: u32| features & (1 << bit) != 0;
    // AMX-BF16 is bit 22, AMX-TILE bit 24.
    if !has(22) || !has(24) {
        return false;
    }
    // SAFETY: arch_prctl with this request takes two integers and touches no memory of this process. It fails where
    // the kernel, the hypervisor or a small signal stack does not allow tiles.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx() -> bool {
    false
}
