//! Endpoints: where a cache can be reached, as tickets and addresses state it. docs/kv-image-format.md defines every byte.

use std::net::{IpAddr, SocketAddr};

use super::wire::{Reader, Writer};
use crate::bail;
use crate::error::Result;

const PROCESS: u16 = 1;
const UNIX: u16 = 2;
const TCP: u16 = 3;

/// The most endpoints that a cache names, and the longest name of a Unix socket.
pub(crate) const MAX_ENDPOINTS: usize = 16;
pub(crate) const MAX_UNIX_NAME: usize = 107;

/// Bit 0 of a TCP endpoint's flags.
const ENCRYPTED: u16 = 1;

/// A process, distinguished from earlier and later ones with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProcessId {
    pub pid: u32,
    pub nonce: [u8; 16],
}

/// A Unix socket in the abstract namespace of a machine, valid until the machine reboots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UnixName {
    pub boot: [u8; 16],
    pub name: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    /// Reachable within this process only.
    Process(ProcessId),
    /// Reachable on this machine, over a Unix socket that also hands over the pool's memory.
    Unix(UnixName),
    Tcp {
        address: SocketAddr,
        encrypted: bool,
    },
}

/// Writes the number of endpoints, then kind, length and payload of each.
pub(in crate::kv) fn encode(endpoints: &[Endpoint]) -> Vec<u8> {
    let mut w = Writer::default();
    w.u32(endpoints.len() as u32);
    for endpoint in endpoints {
        let mut payload = Writer::default();
        let kind = match endpoint {
            Endpoint::Process(process) => {
                payload.u32(process.pid).bytes(&process.nonce);
                PROCESS
            }
            Endpoint::Unix(unix) => {
                payload.bytes(&unix.boot).bytes(&unix.name);
                UNIX
            }
            Endpoint::Tcp { address, encrypted } => {
                payload.u16(address.port()).u16(if *encrypted { ENCRYPTED } else { 0 });
                match address.ip() {
                    IpAddr::V4(ip) => payload.bytes(&ip.octets()),
                    IpAddr::V6(ip) => payload.bytes(&ip.octets()),
                };
                TCP
            }
        };
        w.u16(kind).u16(payload.0.len() as u16).bytes(&payload.0);
    }
    w.0
}

/// Reads the endpoints of kinds that this library knows, in order.
pub(in crate::kv) fn decode(section: &[u8]) -> Result<Vec<Endpoint>> {
    let mut r = Reader::new("endpoints", section);
    let mut found = Vec::new();
    let count = r.u32("count")?;
    if count as usize > MAX_ENDPOINTS {
        bail!(Corrupt, "endpoints: count: expected at most {MAX_ENDPOINTS}, found {count}");
    }
    for _ in 0..count {
        let (kind, len) = (r.u16("kind")?, r.u16("length")?);
        let payload = r.bytes(len as usize, "endpoint")?;
        let mut r = Reader::new("endpoint", payload);
        found.extend(match kind {
            PROCESS => Some(Endpoint::Process(ProcessId { pid: r.u32("pid")?, nonce: r.array("process nonce")? })),
            UNIX => {
                let (boot, name) = (r.array("boot id")?, r.bytes(r.left(), "socket name")?.to_vec());
                if name.is_empty() || name.len() > MAX_UNIX_NAME {
                    bail!(Corrupt, "endpoint: socket name: expected 1 to {MAX_UNIX_NAME} bytes, found {}", name.len());
                }
                Some(Endpoint::Unix(UnixName { boot, name }))
            }
            TCP => {
                let (port, flags) = (r.u16("port")?, r.u16("flags")?);
                let ip = match r.left() {
                    4 => IpAddr::from(r.array::<4>("address")?),
                    16 => IpAddr::from(r.array::<16>("address")?),
                    n => bail!(Corrupt, "endpoint: IP address: expected 4 or 16 bytes, found {n}"),
                };
                // One that asks for what this library does not know is none for it.
                (flags & !ENCRYPTED == 0)
                    .then(|| Endpoint::Tcp { address: SocketAddr::new(ip, port), encrypted: flags & ENCRYPTED != 0 })
            }
            _ => None,
        });
        if matches!(kind, PROCESS | UNIX | TCP) {
            r.end()?;
        }
    }
    r.end()?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_come_back_and_unknown_ones_are_skipped() {
        let all = vec![
            Endpoint::Process(ProcessId { pid: 7, nonce: [1; 16] }),
            Endpoint::Unix(UnixName { boot: [2; 16], name: b"cleave-x".to_vec() }),
            Endpoint::Tcp { address: "127.0.0.1:80".parse().unwrap(), encrypted: false },
            Endpoint::Tcp { address: "[2001:db8::1]:65535".parse().unwrap(), encrypted: true },
        ];
        let mut bytes = encode(&all);
        assert_eq!(decode(&bytes).unwrap(), all);
        bytes[0] += 1;
        bytes.extend_from_slice(&[99, 0, 3, 0, 1, 2, 3]);
        assert_eq!(decode(&bytes).unwrap(), all);
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "{cut}");
        }
    }
}
