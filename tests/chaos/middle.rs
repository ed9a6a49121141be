//! A proxy in the middle of TCP connections that flips bits, and drops, repeats or withholds bytes.

use super::support::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Damage at one byte of one direction of the connections.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    Flip,
    /// Drops everything after the byte and closes the connection.
    Cut,
    /// Drops everything after the byte.
    Stall,
    /// Repeats the 40 bytes before the byte.
    Twice,
    /// Drops 40 bytes.
    Gap,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    harm: Harm,
    /// Number of bytes to pass first, from now on.
    at: u64,
    /// Damages the direction towards the importer.
    down: bool,
}

#[derive(Default)]
struct ProxyState {
    exporter: u16,
    plan: Option<Plan>,
    open: Vec<TcpStream>,
}

struct Proxy {
    address: String,
    state: Arc<Mutex<ProxyState>>,
}

/// Returns the harm that is due within the next `n` bytes, and its offset. Each harm occurs once.
fn due(state: &Mutex<ProxyState>, down: bool, n: usize) -> Option<(Harm, usize)> {
    let mut state = state.lock().unwrap();
    let plan = state.plan.as_mut().filter(|plan| plan.down == down)?;
    if plan.at >= n as u64 {
        plan.at -= n as u64;
        return None;
    }
    let plan = state.plan.take()?;
    Some((plan.harm, plan.at as usize))
}

fn pass(mut from: TcpStream, mut to: TcpStream, state: &Mutex<ProxyState>, down: bool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let mut bytes = buffer[..n].to_vec();
        let harm = due(state, down, n);
        match harm {
            None => {}
            Some((Harm::Flip, at)) => bytes[at] ^= 1 << (at % 8),
            Some((Harm::Cut | Harm::Stall, at)) => bytes.truncate(at),
            Some((Harm::Twice, at)) => {
                bytes.splice(at..at, buffer[at.saturating_sub(40)..at].to_vec()).for_each(drop);
            }
            Some((Harm::Gap, at)) => bytes.drain(at..n.min(at + 40)).for_each(drop),
        }
        if to.write_all(&bytes).is_err() || matches!(harm, Some((Harm::Cut, _))) {
            break;
        }
        if matches!(harm, Some((Harm::Stall, _))) {
            // Discards data until one side gives up.
            while matches!(from.read(&mut buffer), Ok(1..)) {}
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

impl Proxy {
    fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state: Arc<Mutex<ProxyState>> = Arc::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let port = shared.lock().unwrap().exporter;
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let copy = |socket: &TcpStream| socket.try_clone().unwrap();
                shared.lock().unwrap().open.extend([copy(&client), copy(&server)]);
                let (up, down) = (shared.clone(), shared.clone());
                let (from, to) = (copy(&client), copy(&server));
                std::thread::spawn(move || pass(from, to, &up, false));
                std::thread::spawn(move || pass(server, client, &down, true));
            }
        });
        Proxy { address, state }
    }

    fn harm(&self, plan: Option<Plan>) {
        self.state.lock().unwrap().plan = plan;
    }

    /// Closes all connections, so that the next data to pass is a handshake.
    fn reset(&self) {
        self.state.lock().unwrap().open.drain(..).for_each(|socket| _ = socket.shutdown(Shutdown::Both));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn tampered(way: Way) {
    let proxy = Proxy::start();
    let mut from = Worker::start(with(way.config(), json!({"advertise": proxy.address})));
    proxy.state.lock().unwrap().exporter = from.port;
    let mut to = importer();
    pair(&mut from, &mut to, way);
    let mut random = Random(17);
    let mut harmed = 0;
    for harm in [Harm::Flip, Harm::Cut, Harm::Stall, Harm::Twice, Harm::Gap] {
        for round in 0..(if harm == Harm::Stall { 8 } else { 24 }) {
            // Covers the handshake, the messages and the block data.
            if round % 2 == 0 {
                proxy.reset();
            }
            let job =
                Job { tokens: prompt(100, round % 3), max: 6, stream: round % 4 == 3, salt: random.below(1 << 40) };
            let offer = offer(&mut from, job);
            let down = round % 3 != 2;
            let most = if round % 4 < 2 || !down { 300 } else { 100_000 };
            let plan = Plan { harm, at: random.below(most), down };
            let bystander = Bystander::begin(&mut to);
            proxy.harm(Some(plan));
            let begun = Instant::now();
            let end = take(&mut to, &offer.ticket, false);
            let took = begun.elapsed();
            proxy.harm(None);
            let what = format!("{way:?} {plan:?}, round {round}");
            match &end {
                // Fewer bytes passed, or the harm hit the end of an idle connection.
                End::Tokens(tokens) => assert_eq!(*tokens, offer.job.want(), "{what}"),
                End::Failed(status) => {
                    harmed += 1;
                    // A damaged handshake looks like another version or another secret.
                    assert!([CORRUPT, PEER, PERMISSION, INCOMPATIBLE].contains(status), "{what}: {status}");
                }
            }
            assert!(took < 3 * TIMEOUT + SLACK, "{what}: {took:?}");
            bystander.check(&mut to, &what);
            no_transfers(&mut from, NOTICED, &what);
            from.ask(json!({"do": "wait", "request": offer.request}));
            // No damage remains: the same ticket works, unless the harm hit the answer to the message that ends the
            // transfer.
            if end != End::Tokens(offer.job.want()) {
                let again = take(&mut to, &offer.ticket, false);
                assert!(again == End::Tokens(offer.job.want()) || again == End::Failed(EXPIRED), "{what}: {again:?}");
            }
            from.ask(json!({"do": "release", "kv": offer.kv}));
            settled(&mut from, &what);
            settled(&mut to, &what);
        }
    }
    assert!(harmed > 50, "only {harmed} were harmed");
}

#[test]
fn of_plain_connections() {
    tampered(Way::Tcp);
}

#[test]
fn of_encrypted_connections() {
    tampered(Way::Encrypted);
}
