//! Moving KV between caches: in a process, on a machine, over a network.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `node` | [`Node`]: a cache's side of it all: tickets, imports, listening, pairing |
//! | `source` | one transfer as the importer sees it, whatever carries the bytes: the trait of all transports |
//! | `pull` | the importer: from a ticket to a sequence in this cache |
//! | `local` | the transport within a process |
//! | `client/` | peers that this cache imports from; `remote` is the transport of other processes: the exporter's pool mapped, or blocks over several sockets |
//! | `server/` | the exporter: sockets that listen, and a session for each connection |
//! | `net/` | connections: sockets, handshake, protection, messages |
//! | `nixl` | NIXL as the mover of blocks, with everything else as over any socket |
//! | `pair` | whether two caches can exchange KV, how, and how fast |
//! | `workers/` | the threads that pull, and which peers' imports get them |
//!
//! An importer asks and an exporter answers (docs/kv-transport.md). Nothing is lost when a side dies: the exporter's
//! handle ends with the importer's COMMIT and not before, and the importer uses nothing before that was answered.

mod client;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod local;
mod net;
mod nixl;
mod node;
mod pair;
mod pull;
mod server;
mod source;
#[cfg(test)]
mod tests;
mod workers;

pub use node::{Node, NodeConfig, import, ticket};
pub use pair::{Reason, Report};
pub use server::Encryption;
pub use source::Transport;
