//! KV handoff keeps its promises when things go wrong: processes are killed, stopped or restarted in the middle,
//! networks fail, bytes change in transit, and peers are not cleave at all. Each test checks afterwards that every
//! request ended exactly once, every block came back in time, other generations were unaffected, and both sides can
//! work with each other again.

mod cancels;
mod closing;
mod devices;
mod kills;
mod limits;
mod load;
mod middle;
mod network;
mod restarts;
mod room;
mod stops;
mod strangers;
mod support;
mod tickets;
mod weights;
#[path = "../worker/mod.rs"]
mod worker;

#[test]
fn worker_process() {
    worker::serve_if_told();
}
