//! An engine that computes without a pause while another one is measured, as those of separate pools do on one machine: they
//! share its caches and memory.

use super::Plan;
use super::host::{Host, submit};
use crate::sim::Role;
use cleave::engine::{Engine, Request};
use cleave::model::Model;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Prompt of a sequence that generates.
const SHORT: usize = 16;

/// The engine, on a thread that keeps it busy.
pub(super) struct Neighbour {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl Neighbour {
    /// Starts an engine that computes whole prompts (role prefill), or generates with half of the largest batch.
    pub fn start(model: &Arc<Model>, role: Role, plan: &Plan) -> Result<Neighbour, String> {
        let host = Host::new(model, plan)?;
        let engine = host.engine(plan, plan.budget)?;
        let request = match role {
            Role::Prefill => vec![host.request(plan.context - 1, 1, 0)],
            Role::Mixed | Role::Decode => {
                let one = |salt| host.request(SHORT, (plan.context - SHORT - 1) as u32, salt);
                (0..plan.batch.div_ceil(2) as u64).map(one).collect()
            }
        };
        let stopping = Arc::new(AtomicBool::new(false));
        let until = stopping.clone();
        let thread = std::thread::spawn(move || keep_busy(&host, &engine, &request, &until));
        Ok(Neighbour { stopping, thread })
    }

    /// Ends it. An error tells why it did not compute all the time.
    pub fn stop(self) -> Result<(), String> {
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err("the engine beside the measured one panicked".into()))
    }
}

fn keep_busy(host: &Host, engine: &Engine, requests: &[Request], stopping: &AtomicBool) -> Result<(), String> {
    while !stopping.load(Ordering::Relaxed) {
        let open = submit(engine, requests.to_vec())?.len();
        let (mut ended, mut events) = (0, HashMap::new());
        while ended < open && !stopping.load(Ordering::Relaxed) {
            ended += host.poll(&mut events)?;
        }
    }
    Ok(())
}
