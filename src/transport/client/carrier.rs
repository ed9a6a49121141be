//! Carriers of a transfer's blocks. Its questions go over a connection whichever is used.

use super::mapped::Mapped;
use super::peer::Peer;
use super::question::Question;
use crate::bail;
use crate::error::Result;
use crate::transport::net::Channel;
use crate::transport::nixl::Reader;
use crate::transport::source::Transport;
use std::sync::Arc;

/// A kind of carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transport) enum DataPlane {
    /// The peer's pool, in host memory or on a device, mapped into this process.
    Mapped,
    /// Several connections.
    Streams,
    /// Reads by NIXL.
    Nixl,
}

/// A carrier that was set up.
pub(super) enum Carrier {
    Mapped(Arc<Mapped>),
    Streams,
    Nixl(Arc<Reader>),
}

impl Carrier {
    /// Sets a carrier up, over a connection to the peer whose blocks have `block_bytes` bytes.
    pub fn set_up(
        plane: DataPlane,
        peer: &Peer,
        control: &mut Channel,
        block_bytes: usize,
        question: Question<'_>,
    ) -> Result<Carrier> {
        match plane {
            DataPlane::Streams => Ok(Carrier::Streams),
            DataPlane::Nixl => Ok(Carrier::Nixl(peer.reader(control, question)?)),
            DataPlane::Mapped => {
                let mapped = peer.mapped(control, question)?;
                if mapped.block_bytes != block_bytes {
                    bail!(
                        Incompatible,
                        "the peer's blocks: expected {block_bytes} bytes, found {}",
                        mapped.block_bytes
                    );
                }
                Ok(Carrier::Mapped(mapped))
            }
        }
    }

    pub fn transport(&self) -> Transport {
        match self {
            Carrier::Mapped(mapped) => mapped.transport(),
            Carrier::Streams => Transport::Tcp,
            Carrier::Nixl(_) => Transport::Nixl,
        }
    }
}
