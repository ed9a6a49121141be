//! peers
//!
//! Hosts check and warm a pair of caches before the first import between them.

use super::boundary::{c_string, call, fill, fixed_text, known_flags, put, required, slice};
use super::error::{CLEAVE_OK, cleave_error_t, cleave_status_t};
use super::handle::cleave_cache_t;
use super::registry;
use super::versioned::{Output, VersionedStruct, sized_struct};
use crate::bail;
use crate::engine::ModelCache;
use crate::transport::{Encryption, Transport};
use libc::{c_char, c_void, size_t};

/// The first of these transports that works; NIXL only when it is required.
pub const CLEAVE_TRANSPORT_ANY: u32 = 0;
/// Both caches are in this process: one copy.
pub const CLEAVE_TRANSPORT_PROCESS: u32 = 1;
/// Both caches are on this machine: the exporter's pool is mapped once, then one copy.
pub const CLEAVE_TRANSPORT_SHARED_MEMORY: u32 = 2;
/// Several TCP connections, from pool to pool.
pub const CLEAVE_TRANSPORT_TCP: u32 = 3;
/// NVIDIA's NIXL, loaded at run time from CLEAVE_NIXL_LIBRARY (path of libnixl_capi.so), the loader's path or
/// CLEAVE_NIXL_DIR (an unpacked wheel). Both sides need it; without it pairing is refused.
pub const CLEAVE_TRANSPORT_NIXL: u32 = 4;
/// Both caches are on this machine and the exporter's pool is in the memory of a CUDA device: the pool is mapped
/// once, then one copy on the device, between devices or to host memory. The exporter's device must be visible to
/// this process.
pub const CLEAVE_TRANSPORT_CUDA: u32 = 5;

/// Encrypts every connection, over loopback too.
pub const CLEAVE_LISTEN_ENCRYPT: u32 = 1 << 0;
/// Encrypts no connection, for trusted networks. Both sides still prove that they know the secret.
pub const CLEAVE_LISTEN_PLAINTEXT: u32 = 1 << 1;

/// The two caches can exchange KV.
pub const CLEAVE_PAIR_NONE: u32 = 0;
/// The weights or the configs differ.
pub const CLEAVE_PAIR_WEIGHTS: u32 = 1;
/// The tokenizers differ.
pub const CLEAVE_PAIR_TOKENIZER: u32 = 2;
/// The KV dtypes differ, and this cache does not convert.
pub const CLEAVE_PAIR_DTYPE: u32 = 3;
/// The block sizes differ, and this cache does not convert.
pub const CLEAVE_PAIR_BLOCK_SIZE: u32 = 4;
/// The layouts differ in a way that cannot be converted.
pub const CLEAVE_PAIR_LAYOUT: u32 = 5;
/// The two sides have no common version of format or protocol.
pub const CLEAVE_PAIR_VERSION: u32 = 6;
/// The secrets differ.
pub const CLEAVE_PAIR_SECRET: u32 = 7;
/// One side lacks the required transport, or no transport works.
pub const CLEAVE_PAIR_TRANSPORT: u32 = 8;
/// Nobody answers at the address, or the peer is gone.
pub const CLEAVE_PAIR_UNREACHABLE: u32 = 9;
/// Blocks did not arrive as they were sent.
pub const CLEAVE_PAIR_SELF_TEST: u32 = 10;
/// The address is damaged, or is no address.
pub const CLEAVE_PAIR_ADDRESS: u32 = 11;
/// One side has no free block for the self-test, or is being destroyed.
pub const CLEAVE_PAIR_RESOURCES: u32 = 12;

/// Result of cleave_cache_pair. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_pair_report_t {
    /// sizeof this struct, set by the caller.
    pub struct_size: u32,
    /// CLEAVE_OK, or why the pair cannot exchange KV. cleave_cache_pair returns the same.
    pub status: cleave_status_t,
    /// CLEAVE_TRANSPORT_*: the transport that imports will use.
    pub transport: u32,
    /// CLEAVE_PAIR_*.
    pub reason: u32,
    /// Speed of the self-test from the peer to this cache.
    pub bytes_per_second: u64,
    /// Round trip of a message to the peer and back.
    pub rtt_ns: u64,
    /// The transport and its address, or the expected and the found value. NUL-terminated.
    pub detail: [c_char; 160],
}

sized_struct!(cleave_pair_report_t);

/// Lets caches on other machines import from this one: listens for TCP connections at `address` ("host:port", IPv6 in
/// brackets, port 0 for a free port). `advertise` ("host:port") is the address at which peers reach it, and is
/// written into tickets and addresses from now on; NULL advertises `address` itself, or the addresses of all
/// interfaces if it is 0.0.0.0 or [::]. `flags` is a set of CLEAVE_LISTEN_*; 0 encrypts (Noise, with the secret as
/// pre-shared key) unless the address is a loopback address. `*port` receives the port and may be NULL. Peers need
/// the cache's secret in any case. The cache listens until cleave_cache_destroy; for several addresses, call several
/// times.
///
/// Callable from any thread. [BLOCKING] Looks up `address` if it is a host name. Errors: INVALID_ARGUMENT (address,
/// or a cache without a secret), PERMISSION (a port below 1024), IO (the port is taken), NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_listen(
    cache: *mut cleave_cache_t,
    address: *const c_char,
    advertise: *const c_char,
    flags: u32,
    port: *mut u16,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = registry::get::<ModelCache>(cache, "cache")?;
        known_flags(flags, CLEAVE_LISTEN_ENCRYPT | CLEAVE_LISTEN_PLAINTEXT, "flags")?;
        let encryption = match (flags & CLEAVE_LISTEN_ENCRYPT != 0, flags & CLEAVE_LISTEN_PLAINTEXT != 0) {
            (true, true) => bail!(InvalidArgument, "flags: ENCRYPT and PLAINTEXT exclude each other"),
            (true, false) => Encryption::Always,
            (false, true) => Encryption::Never,
            (false, false) => Encryption::Auto,
        };
        let address = c_string(address, "address")?;
        let advertise = if advertise.is_null() { None } else { Some(c_string(advertise, "advertise")?) };
        let found = cache.listen(address, advertise, encryption)?;
        if !port.is_null() {
            put(port, found);
        }
        Ok(())
    })
}

/// Writes the cache's address for cleave_cache_pair of a peer: where the cache is found and what it holds, signed
/// with its secret, a few hundred bytes. Hosts exchange it in their own way. It changes with cleave_cache_listen.
/// (`buf`, `cap`, `len`) follow the conventions for buffers above.
///
/// Callable from any thread. Errors: NOT_FOUND, INVALID_ARGUMENT (buffer too small).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_address(
    cache: *mut cleave_cache_t,
    buf: *mut c_void,
    cap: size_t,
    len: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = registry::get::<ModelCache>(cache, "cache")?;
        required(len, "len")?;
        fill(&cache.node().address(), buf.cast::<u8>(), cap, len, "buf")
    })
}

/// Checks, before there is any traffic, whether this cache can import from the cache at `address`: equal secret,
/// weights and tokenizer, a layout that is equal or can be converted, and a transport that reaches the peer
/// (`required_transport`, or any if it is CLEAVE_TRANSPORT_ANY). Then it moves blocks with a known pattern, compares
/// them and measures. From now on imports from that cache use the transport found, and no other. The costs of a new
/// pair are paid here: connections, the mapping of the peer's pool and, on one machine, the page faults of both
/// pools, which are backed by memory from then on.
///
/// Fills `*out` also when the pair is refused, and returns the status in it. An import does not need this call; it
/// finds its own transport.
///
/// Callable from any thread. [BLOCKING] Waits for the peer's answers, at most peer_timeout_ms each. Errors:
/// INCOMPATIBLE (weights, dtype, block size, version), PERMISSION (other secret), UNSUPPORTED (transport missing),
/// PEER (nobody there), CORRUPT (address, self-test), OUT_OF_MEMORY, SHUTDOWN, INVALID_ARGUMENT, NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_pair(
    cache: *mut cleave_cache_t,
    address: *const c_void,
    len: size_t,
    required_transport: u32,
    out: *mut cleave_pair_report_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = registry::get::<ModelCache>(cache, "cache")?;
        required(address, "address")?;
        let address = slice(address.cast::<u8>(), len, "address")?;
        let out = Output::new(out, "out")?;
        let transport = match required_transport {
            CLEAVE_TRANSPORT_ANY => None,
            code => match Transport::from_code(code) {
                Some(transport) => Some(transport),
                None => bail!(InvalidArgument, "required_transport: {code} is none of CLEAVE_TRANSPORT_*"),
            },
        };
        let report = cache.node().pair(address, transport);
        let mut c = cleave_pair_report_t::zeroed();
        c.status = report.error.as_ref().map_or(CLEAVE_OK, |error| error.status as i32);
        c.transport = report.transport.map_or(CLEAVE_TRANSPORT_ANY, |transport| transport as u32);
        c.reason = report.reason as u32;
        c.bytes_per_second = report.bytes_per_second;
        c.rtt_ns = u64::try_from(report.round_trip.as_nanos()).unwrap_or(u64::MAX);
        c.detail = fixed_text(&report.detail);
        out.write(&c);
        report.error.map_or(Ok(()), Err)
    })
}
