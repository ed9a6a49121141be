//! peers: check and warm a pair before traffic

use super::boundary::{c_string, call, fill, fixed_text, known_flags, put, required, slice};
use super::error::{CLEAVE_OK, cleave_error_t, cleave_status_t};
use super::handle::cleave_cache_t;
use super::registry;
use super::versioned::{Output, VersionedStruct, sized_struct};
use crate::bail;
use crate::engine::ModelCache;
use crate::transport::{Encryption, Transport};
use libc::{c_char, c_void, size_t};

/// How KV gets from one cache to another. Any: the best that works, the first of these that does; NIXL only when it is
/// required.
pub const CLEAVE_TRANSPORT_ANY: u32 = 0;
/// Both caches are in this process: one copy.
pub const CLEAVE_TRANSPORT_PROCESS: u32 = 1;
/// Both are on this machine: the exporter's pool is mapped once, then one copy.
pub const CLEAVE_TRANSPORT_SHARED_MEMORY: u32 = 2;
/// Several sockets, from pool to pool.
pub const CLEAVE_TRANSPORT_TCP: u32 = 3;
/// NVIDIA's NIXL, loaded at run time from CLEAVE_NIXL_LIBRARY (path of libnixl_capi.so), the loader's path or
/// CLEAVE_NIXL_DIR (an unpacked wheel). Both sides need it; without it pairing is refused.
pub const CLEAVE_TRANSPORT_NIXL: u32 = 4;
/// Both are on this machine and the exporter's pool is in the memory of a CUDA device: that is mapped once, then one copy
/// on the device, between devices, or to this process's memory. The exporter's device must be visible to this process.
pub const CLEAVE_TRANSPORT_CUDA: u32 = 5;

/// Encrypt every connection, over loopback too.
pub const CLEAVE_LISTEN_ENCRYPT: u32 = 1 << 0;
/// Encrypt none: the network is trusted. Both sides still prove that they know the secret.
pub const CLEAVE_LISTEN_PLAINTEXT: u32 = 1 << 1;

/// Why two caches cannot exchange KV. NONE: they can.
pub const CLEAVE_PAIR_NONE: u32 = 0;
/// Other weights or another config.
pub const CLEAVE_PAIR_WEIGHTS: u32 = 1;
pub const CLEAVE_PAIR_TOKENIZER: u32 = 2;
/// KV of another dtype, and this cache does not convert.
pub const CLEAVE_PAIR_DTYPE: u32 = 3;
/// Blocks of another size, and this cache does not convert.
pub const CLEAVE_PAIR_BLOCK_SIZE: u32 = 4;
/// Another layout that cannot be converted.
pub const CLEAVE_PAIR_LAYOUT: u32 = 5;
/// Formats or protocols of no common version.
pub const CLEAVE_PAIR_VERSION: u32 = 6;
/// The two do not have the same secret.
pub const CLEAVE_PAIR_SECRET: u32 = 7;
/// The required transport, or any, is missing on one of the sides.
pub const CLEAVE_PAIR_TRANSPORT: u32 = 8;
/// Nobody answers at the address, or the peer is gone.
pub const CLEAVE_PAIR_UNREACHABLE: u32 = 9;
/// Blocks did not come as they were sent.
pub const CLEAVE_PAIR_SELF_TEST: u32 = 10;
/// The address is damaged, or something else than an address.
pub const CLEAVE_PAIR_ADDRESS: u32 = 11;
/// A side has no free block for the self-test, or is being destroyed.
pub const CLEAVE_PAIR_RESOURCES: u32 = 12;

/// How two caches would exchange KV. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_pair_report_t {
    pub struct_size: u32,
    /// CLEAVE_OK, or why the pair cannot exchange KV: what cleave_cache_pair returns.
    pub status: cleave_status_t,
    /// CLEAVE_TRANSPORT_*.
    pub transport: u32,
    /// CLEAVE_PAIR_*.
    pub reason: u32,
    /// Of the self-test, from the peer to here.
    pub bytes_per_second: u64,
    /// Of a question without an answer worth the name.
    pub rtt_ns: u64,
    /// The transport and where, or what was expected and what was found. NUL-terminated.
    pub detail: [c_char; 160],
}

sized_struct!(cleave_pair_report_t);

/// Lets caches on other machines import from this one: listens for TCP at `address` ("host:port", IPv6 in brackets;
/// port 0 takes a free one). `advertise` ("host:port") is how peers reach it, written into tickets and addresses from
/// now on; NULL for the address itself, or those of all interfaces if that is 0.0.0.0 or [::]. `flags`:
/// CLEAVE_LISTEN_*; 0 encrypts (Noise, the secret as pre-shared key) unless the address is a loopback one. `*port`
/// (may be NULL) is the port. Peers need the cache's secret in any case. Until cleave_cache_destroy; several addresses
/// are several calls.
///
/// Callable from any thread. [BLOCKING] Looks up a host name, if that is what it is given.
/// Errors: INVALID_ARGUMENT (address, or no secret was given to the cache), PERMISSION (a port below 1024), IO (the
/// port is taken), NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_listen(
    cache: *mut cleave_cache_t,
    address: *const c_char,
    advertise: *const c_char,
    flags: u32,
    port: *mut u16,
    err: *mut cleave_error_t,
) -> cleave_status_t {
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

/// Where other caches find this one and what it holds, signed with its secret: some hundred bytes for
/// cleave_cache_pair of a peer, by whatever way hosts find each other. It changes with cleave_cache_listen. (`buf`,
/// `cap`, `len`) follow the conventions for buffers above. Callable from any thread. Errors: NOT_FOUND,
/// INVALID_ARGUMENT (buffer too small).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_address(
    cache: *mut cleave_cache_t,
    buf: *mut c_void,
    cap: size_t,
    len: *mut size_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    call(err, || unsafe {
        let cache = registry::get::<ModelCache>(cache, "cache")?;
        required(len, "len")?;
        fill(&cache.node().address(), buf.cast::<u8>(), cap, len, "buf")
    })
}

/// Checks whether this cache can import from the one at `address`, before there is any traffic: same secret, weights,
/// tokenizer, a layout that is the same or can be converted; a transport that reaches it, `required_transport`
/// (CLEAVE_TRANSPORT_*) if that is not ANY; then moves blocks with a known pattern, compares them, and measures.
/// Imports from that cache use the transport found from now on, and no other. What costs once per pair is paid here:
/// connections, the mapping of the peer's pool, and on the same machine the page faults of both pools, which are backed
/// whole by memory from then on.
///
/// Fills `*out` also when the pair is refused, and returns the status that stands there. Not needed before an import,
/// which finds its own way. Callable from any thread. [BLOCKING] For as long as the peer's answers take, at most
/// peer_timeout_ms each. Errors: INCOMPATIBLE (weights, dtype, block size, version), PERMISSION (other secret),
/// UNSUPPORTED (transport missing), PEER (nobody there), CORRUPT (address, self-test), OUT_OF_MEMORY, SHUTDOWN,
/// INVALID_ARGUMENT, NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_pair(
    cache: *mut cleave_cache_t,
    address: *const c_void,
    len: size_t,
    required_transport: u32,
    out: *mut cleave_pair_report_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
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
