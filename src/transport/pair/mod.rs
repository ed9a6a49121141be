//! Pairing: finds out before any traffic whether KV can be exchanged with a peer, by which transport, and how fast.

mod measure;
mod report;

use super::client::{DataPlane, Peers, Question, RemoteTransfer, describe, routes};
use super::local;
use super::net::message::Message;
use super::server::pattern;
use super::source::{TransferSource, Transport, Wanted};
use crate::backend::KvGeometry;
use crate::bail;
use crate::error::{Error, Result, Status};
use crate::kv::Cache;
use crate::kv::format::{Address, Endpoint, hex};
use measure::{SelfTestBuffer, measure};
pub use report::{Reason, Report};
use report::{Refused, reason_of};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a self-test in host memory. A device needs more before its speed shows.
const TEST_BYTES: usize = 16 << 20;
const TEST_BYTES_ON_DEVICE: usize = 64 << 20;

pub(super) fn pair(
    cache: &Arc<Cache>,
    peers: &Peers,
    address: &[u8],
    required: Option<Transport>,
    wanted: Wanted<'_>,
) -> Report {
    let mut report = Report {
        transport: None,
        reason: Reason::Fine,
        error: None,
        bytes_per_second: 0,
        round_trip: Duration::ZERO,
        detail: String::new(),
    };
    if let Err(Refused(reason, error)) = try_pair(cache, peers, address, required, wanted, &mut report) {
        (report.reason, report.detail) = (reason, error.message.clone());
        report.error = Some(error);
    }
    report
}

fn try_pair(
    cache: &Arc<Cache>,
    peers: &Peers,
    data: &[u8],
    required: Option<Transport>,
    wanted: Wanted<'_>,
    report: &mut Report,
) -> std::result::Result<(), Refused> {
    let address = cache.tickets().open_address(data).map_err(|error| {
        let reason = match error.status {
            Status::Permission => Reason::Secret,
            Status::Incompatible => Reason::Version,
            _ => Reason::Address,
        };
        Refused(reason, error)
    })?;
    compatible(cache, &address)?;
    let within = address
        .endpoints
        .iter()
        .any(|e| matches!(e, Endpoint::Process(p) if local::process().is_ok_and(|own| own == *p)));
    if within && required.is_none_or(|required| required == Transport::Process) {
        let gone =
            |_| Refused(Reason::Unreachable, crate::error!(Peer, "the peer: a cache of this process that is gone"));
        let exporter = local::find(&address.epoch).map_err(gone)?;
        measure_local(cache, &exporter, report).map_err(|e| Refused(reason_of(&e), e))?;
        peers.choose(&address.epoch, &[], Transport::Process, None);
        report.transport = Some(Transport::Process);
        report.detail = format!("in this process; {}", conversion(cache.geometry(), &address.layout.geometry));
        return Ok(());
    }
    let question = peers.question(wanted);
    let routes = routes(&address.endpoints, required);
    let mut last = None;
    for (endpoint, plane) in routes {
        let way = Way { endpoint: &endpoint, plane, required };
        match reach(cache, peers, &way, &address, question, report) {
            Ok(()) => return Ok(()),
            Err(refused) if matches!(refused.0, Reason::Unreachable | Reason::Transport) => {
                let Refused(reason, error) = refused;
                last = Some(Refused(reason, error.context(describe(&endpoint))));
            }
            Err(refused) => return Err(refused),
        }
    }
    Err(last.unwrap_or_else(|| {
        let what = required.map_or("any transport".into(), |required| format!("transport {}", required.name()));
        let has: Vec<String> = address.endpoints.iter().map(describe).collect();
        let text = format!("{what}: the peer offers none that reaches it from here ({})", has.join(", "));
        Refused(Reason::Transport, Error::new(Status::Unsupported, text))
    }))
}

/// Checks that the peer has the same model and a layout that is this cache's or can be converted to it.
fn compatible(cache: &Cache, address: &Address) -> std::result::Result<(), Refused> {
    let (own, peer) = (cache.identity(), &address.identity);
    let wrote = &address.library;
    let refuse = |reason, field: &str, expected: String, found: String| {
        let text = format!("{field}: expected {expected}, found {found} (the peer runs {:?}, {wrote})", peer.name);
        Err(Refused(reason, Error::new(Status::Incompatible, text)))
    };
    if own.fingerprint != peer.fingerprint {
        return refuse(Reason::Weights, "model fingerprint", hex(&own.fingerprint), hex(&peer.fingerprint));
    }
    if own.tokenizer_digest != peer.tokenizer_digest {
        return refuse(Reason::Tokenizer, "tokenizer digest", hex(&own.tokenizer_digest), hex(&peer.tokenizer_digest));
    }
    let mut kinds = cache.layout().kinds.iter().zip(&address.layout.kinds).enumerate();
    if let Some((layer, (own, peer))) = kinds.find(|(_, (own, peer))| own != peer) {
        return refuse(Reason::Layout, &format!("layer {layer}"), own.to_string(), peer.to_string());
    }
    let (a, b) = (cache.geometry(), &address.layout.geometry);
    if cache.converts(b) {
        return Ok(());
    }
    if a.dtype != b.dtype {
        return refuse(Reason::Dtype, "KV dtype", a.dtype.name().into(), b.dtype.name().into());
    }
    if a.block_tokens != b.block_tokens {
        return refuse(Reason::BlockSize, "block tokens", a.block_tokens.to_string(), b.block_tokens.to_string());
    }
    refuse(Reason::Layout, "KV layout", format!("{a:?}"), format!("{b:?}"))
}

fn conversion(own: &KvGeometry, peer: &KvGeometry) -> String {
    if own == peer {
        return "blocks are taken as they are".into();
    }
    let layout = |g: &KvGeometry| format!("{} tokens of {} per block, {} shards", g.block_tokens, g.dtype, g.shards);
    format!("converted on import: {} to {}", layout(peer), layout(own))
}

/// One way to reach a peer.
struct Way<'a> {
    endpoint: &'a Endpoint,
    plane: DataPlane,
    required: Option<Transport>,
}

fn reach(
    cache: &Arc<Cache>,
    peers: &Peers,
    way: &Way<'_>,
    address: &Address,
    question: Question<'_>,
    report: &mut Report,
) -> std::result::Result<(), Refused> {
    let Way { endpoint, plane, required } = *way;
    let refused = |error: Error| Refused(reason_of(&error), error);
    let peer = peers.at(endpoint);
    // Another cache may be at this endpoint now than when the address was written.
    let (mut channel, _, answer) = peer.begin(&Message::Describe, question).map_err(refused)?;
    let Message::Address(now) = answer else { return Err(refused(crate::error!(Corrupt, "the peer: no address"))) };
    let now = cache.tickets().open_address(&now).map_err(refused)?;
    compatible(cache, &now)?;
    let mut best = Duration::MAX;
    for _ in 0..8 {
        let begun = Instant::now();
        peer.ask(&mut channel, &Message::Ping, question).map_err(refused)?;
        best = best.min(begun.elapsed());
    }
    let encrypted = channel.is_encrypted();
    peer.keep(channel);

    // The first touch of memory costs more than the copy: pay for it now.
    cache.store().populate().map_err(refused)?;
    let size = now.layout.geometry.block_bytes();
    let test = |blocks: usize| -> Result<(Transport, f64)> {
        let seed = crate::sys::random_bytes()?;
        let open = Message::Test { blocks: blocks as u32, seed };
        let mut remote = RemoteTransfer::begin(&peer, &open, (blocks, size), plane, question)?;
        let transport = remote.transport();
        if let Some(required) = required.filter(|required| *required != transport) {
            let (required, found) = (required.name(), transport.name());
            bail!(Unsupported, "transport {required}: the peer's pool is reached by {found}");
        }
        remote.populate()?;
        let n = remote.more(question.wanted)?.available;
        let room = SelfTestBuffer::new(cache, n, size)?;
        Ok((transport, measure(&mut remote, &room, n, &seed, question.wanted)?))
    };
    let bytes = if cache.store().device_memory().is_some() { TEST_BYTES_ON_DEVICE } else { TEST_BYTES };
    let (transport, rate) = test((bytes / size).max(1)).map_err(refused)?;
    peers.choose(&address.epoch, &address.endpoints, transport, Some(endpoint));
    peers.choose(&now.epoch, &now.endpoints, transport, Some(endpoint));
    report.transport = Some(transport);
    report.bytes_per_second = rate as u64;
    report.round_trip = best;
    let sealed = if encrypted { ", encrypted" } else { "" };
    let convert = conversion(cache.geometry(), &now.layout.geometry);
    report.detail = format!("{} at {}{sealed}; {convert}", transport.name(), describe(endpoint));
    Ok(())
}

/// Measures the copy within a process, block by block as a transfer does it.
fn measure_local(cache: &Cache, exporter: &Arc<Cache>, report: &mut Report) -> Result<()> {
    let begun = Instant::now();
    let hold = exporter.transfers().hold_scratch((TEST_BYTES / exporter.geometry().block_bytes()).max(1))?;
    report.round_trip = begun.elapsed();
    let seed = crate::sys::random_bytes()?;
    let size = exporter.geometry().block_bytes();
    let n = hold.blocks().len();
    for (index, &block) in hold.blocks().iter().enumerate() {
        exporter.store().write(block, 0, &pattern(&seed, index, size))?;
    }
    let room = SelfTestBuffer::new(cache, n, size)?;
    report.bytes_per_second = measure(&mut local::LocalTransfer { hold }, &room, n, &seed, &|| Ok(()))? as u64;
    Ok(())
}
