//! Peers that never answer, and one that does.

use super::*;
use crate::kv::format::Endpoint;
use crate::transport::Encryption;
use std::net::TcpListener;

/// Far longer than the test takes: what hangs hangs until the end.
const PATIENT: Duration = Duration::from_secs(300);
const SILENT: usize = 40;
/// Imports from each silent peer; together more than there are threads.
const EACH: usize = 8;

fn patient(cache: &Arc<Cache>) -> Arc<Node> {
    Node::new(cache, NodeConfig { serve: false, peer_timeout: PATIENT }).unwrap()
}

/// The kernel of a stopped process accepts connections and acknowledges bytes, and nothing more happens: so does that of a
/// socket that listens and is never accepted from.
#[test]
fn an_import_from_a_healthy_peer_ends_while_those_from_many_stopped_ones_hang() {
    let (well, to) = (cache(16), cache(16));
    let importer = patient(&to);
    let exporter = patient(&well);
    exporter.listen("127.0.0.1:0", None, Encryption::Never).unwrap();
    let of_process = exporter.address();
    assert!(importer.pair(&of_process, Some(transport::Transport::Tcp)).error.is_none());

    let (done, ends) = mpsc::channel();
    let mut listening = Vec::new();
    for _ in 0..SILENT {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let stopped = cache(16);
        stopped.tickets().set_endpoints(&[Endpoint::Tcp { address: socket.local_addr().unwrap(), encrypted: false }]);
        for _ in 0..EACH {
            let (ticket, done) = (stopped.tickets().encode(exported(&stopped, 6)).unwrap(), done.clone());
            importer.import(&ticket, move |_, outcome| done.send(("stopped", outcome)).unwrap()).unwrap();
        }
        listening.push((socket, stopped));
    }
    for _ in 0..3 {
        let (id, done) = (exported(&well, 14), done.clone());
        let ticket = exporter.ticket(id).unwrap();
        importer.import(&ticket, move |_, outcome| done.send(("well", outcome)).unwrap()).unwrap();
    }
    let mut others = 0;
    let mut landed = 0;
    while landed < 3 {
        // Some of the others make place, and none of them lands.
        match ends.recv_timeout(PATIENT / 4).expect("an import waits for peers that are silent") {
            ("well", outcome) => {
                assert_eq!(outcome, Ok(()));
                landed += 1;
            }
            (_, outcome) => {
                refused(outcome, Status::Peer, &[]);
                others += 1;
            }
        }
    }
    assert!(others < SILENT * EACH, "all imports from silent peers have ended");
    drop(importer);
    drop(done);
    assert_eq!(others + ends.iter().count(), SILENT * EACH, "each import ends once");
    assert_idle(&to);
    assert_idle(&well);
}
