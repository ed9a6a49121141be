//! The kernels of cleave's CUDA backend. Their sources are the `.cu` files beside this crate's manifest: thin entry points
//! over the templates in `include/`, by topic.
//!
//! `make kernels` (tools/kernels.sh) compiles them into `target/kernels`, or into CLEAVE_KERNELS_DIR; a build of this crate
//! has it do so where there is an nvcc, and embeds what is there. A build without nvcc has no kernels and is no error,
//! unless CLEAVE_REQUIRE_KERNELS is set. See `build/fatbins.rs`.

/// The driver reads numbers in it.
#[allow(dead_code)] // where there are no fatbins
#[repr(C, align(64))]
struct Aligned<T>(T);

/// A source's name without `.cu`, and what it was compiled to, for cuModuleLoadData: code for each architecture of
/// `nvcc.flags`, and PTX, which the driver compiles for others. All sources in order of their names, or none.
pub static FATBINS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Every kernel, and the name of the source in [`FATBINS`] that has it; as ptxas listed them. Empty where those are.
pub static ENTRIES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/entries.rs"));

/// Launch shapes: threads, tiles and shared memory of each kernel. They are defined once, in `include/*.cuh` next to the
/// kernels; `build/shapes.rs` reads them from there.
pub mod shapes {
    #![allow(non_snake_case)]
    include!(concat!(env!("OUT_DIR"), "/shapes.rs"));
}
