//! State that the threads of a server share.

use super::connection::Connections;
use super::self_tests::{SelfTestShare, SelfTests};
use super::transfers::OpenTransfer;
use crate::bail;
use crate::error::Result;
use crate::kv::Cache;
use crate::kv::TransferHold;
use crate::sys::monotonic_ns;
use crate::transport::nixl::OwnAgent;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

thread_local! {
    /// The server that this thread belongs to, by the address of its `ServerShared`.
    pub(super) static OWN: Cell<usize> = const { Cell::new(0) };
}

/// State that the threads of a server share.
pub(super) struct ServerShared {
    pub cache: Arc<Cache>,
    /// The peer timeout: a peer with an open transfer that is silent for this long is gone.
    pub timeout: Duration,
    /// Descriptors that this process may have.
    pub files: u64,
    pub closed: AtomicBool,
    pub connections: Mutex<Connections>,
    pub none_left: Condvar,
    pub self_tests: Arc<SelfTests>,
    pub transfers: Mutex<HashMap<u64, Arc<OpenTransfer>>>,
    pub next: AtomicU64,
    pub nixl: OwnAgent,
}

impl ServerShared {
    pub fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn transfers(&self) -> MutexGuard<'_, HashMap<u64, Arc<OpenTransfer>>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn id(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    pub fn lend(&self, hold: TransferHold, self_test: Option<SelfTestShare>) -> Arc<OpenTransfer> {
        let (id, heard) = (self.id(), AtomicU64::new(monotonic_ns()));
        let transfer = Arc::new(OpenTransfer { id, hold: Mutex::new(hold), self_test, heard });
        self.transfers().insert(transfer.id, transfer.clone());
        transfer
    }

    pub fn find(&self, id: u64) -> Result<Arc<OpenTransfer>> {
        match self.transfers().get(&id) {
            Some(transfer) => Ok(transfer.clone()),
            None => bail!(Expired, "transfer {id}: over, or given up because its importer was silent"),
        }
    }
}
