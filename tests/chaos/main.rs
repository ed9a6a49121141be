//! KV handoff keeps its promises when things go wrong: processes killed, stopped and restarted in the middle of it,
//! networks cut, bytes changed on the way, peers that are none. After each: one end per request, every block back in time,
//! what others generate untouched, and both sides of use to each other again.

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
