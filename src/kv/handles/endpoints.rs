//! The endpoints at which a cache can be reached, as its tickets and its address name them.

use crate::kv::format::Endpoint;
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(in crate::kv) struct Endpoints(Mutex<Arc<[Endpoint]>>);

impl Endpoints {
    pub fn none() -> Endpoints {
        Endpoints(Mutex::new(Arc::new([])))
    }

    fn lock(&self) -> MutexGuard<'_, Arc<[Endpoint]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self) -> Arc<[Endpoint]> {
        self.lock().clone()
    }

    pub fn set(&self, endpoints: &[Endpoint]) {
        *self.lock() = endpoints.into();
    }

    /// Sets the endpoints unless some are set already.
    pub fn set_default(&self, endpoints: &[Endpoint]) {
        let mut known = self.lock();
        if known.is_empty() {
            *known = endpoints.into();
        }
    }
}
