//! A network that fails and recovers: two network namespaces and a virtual cable between them.

use super::support::*;
use std::process::{Command, Stdio};

/// A network namespace that is deleted on drop.
struct Cable {
    name: String,
    /// Address of the other side.
    there: String,
}

fn ip(args: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(args.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Cable {
    /// Returns None if the process lacks the permission.
    fn lay() -> Option<Cable> {
        static LAID: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let pid = std::process::id() * 2 + LAID.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let net = format!("10.{}.{}", 100 + pid % 100, pid / 100 % 250);
        let cable = Cable { name: format!("cleave{pid}"), there: format!("{net}.2") };
        let Cable { name, there } = &cable;
        let laid = ip(&format!("netns add {name}"))
            && ip(&format!("link add cv{pid} type veth peer name peer netns {name}"))
            && ip(&format!("address add {net}.1/24 dev cv{pid}"))
            && ip(&format!("-n {name} address add {there}/24 dev peer"))
            && ip(&format!("link set cv{pid} up"))
            && ip(&format!("-n {name} link set lo up"))
            && cable.set("up");
        laid.then_some(cable)
    }

    /// Reconnects the cable and waits until the port behind it is reachable, because the first packets may be lost.
    fn restore(&self, port: u16) {
        assert!(self.set("up"));
        let address = format!("{}:{port}", self.there).parse().unwrap();
        let reached = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(50)).is_ok();
        assert!((0..400).any(|_| reached()), "the network did not come back");
    }

    fn set(&self, state: &str) -> bool {
        ip(&format!("-n {} link set peer {state}", self.name))
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // Deleting the namespace deletes the pair of devices too.
        ip(&format!("netns delete {}", self.name));
    }
}

#[test]
fn a_cable_that_is_pulled() {
    let Some(cable) = Cable::lay() else {
        eprintln!("SKIPPED: no network namespace can be made here (needs root and iproute2)");
        return;
    };
    let config = with(Way::Tcp.config(), json!({"listen": format!("{}:0", cable.there)}));
    let mut from = Worker::start_under(&["ip", "netns", "exec", &cable.name], config);
    let mut to = importer();
    pair(&mut from, &mut to, Way::Tcp);
    for (salt, stage) in [
        "import.open",
        "import.opened",
        "import.fetch",
        "import.copied",
        "export.open",
        "export.more",
        "export.read",
        "export.commit",
    ]
    .into_iter()
    .enumerate()
    {
        let stream = salt % 3 == 2;
        let what = format!("cut at {stage}, stream {stream}");
        let bystanders = [Bystander::begin(&mut from), Bystander::begin(&mut to)];
        let offer = offer(&mut from, Job::long(stream, salt as u64));
        let place = format!("transport.{stage}");
        let imports = stage.starts_with("import");
        (if imports { &mut to } else { &mut from }).arm(&place, 1, "hold");
        let kv = to.ask(import(&offer.ticket))["kv"].clone();
        let submitted = to.try_ask(decode(&kv, false));
        let there = if imports { &mut to } else { &mut from };
        there.reached(&place);
        assert!(cable.set("down"));
        there.let_go(&place);
        let begun = Instant::now();
        let status = to.ask(json!({"do": "ready", "kv": kv}))["status"].as_i64().unwrap();
        assert!(begun.elapsed() < NOTICED, "{what}: {:?}", begun.elapsed());
        assert_eq!((status, end(&mut to, submitted)), (PEER, End::Failed(PEER)), "{what}");
        no_transfers(&mut from, NOTICED, &what);
        let [ours, theirs] = bystanders;
        ours.check(&mut from, &what);
        theirs.check(&mut to, &what);
        // The network is still down.
        assert_eq!(take(&mut to, &offer.ticket, false), End::Failed(PEER), "{what}");
        cable.restore(from.port);
        from.ask(json!({"do": "wait", "request": offer.request}));
        // The exporter may have received the message that ends the transfer although its answer was lost.
        let again = take(&mut to, &offer.ticket, false);
        let lost = stage == "export.commit" && again == End::Failed(EXPIRED);
        assert!(lost || again == End::Tokens(offer.job.want()), "{what}: {again:?}");
        settled(&mut from, &what);
        settled(&mut to, &what);
    }
    // An outage shorter than the timeout is either only a delay, or a failure that leaves everything in place.
    for salt in 20..24 {
        let offer = offer(&mut from, Job::long(false, salt));
        from.arm("transport.export.read", 1, "60");
        let kv = to.ask(import(&offer.ticket))["kv"].clone();
        let submitted = to.try_ask(decode(&kv, false));
        std::thread::sleep(Duration::from_millis(20));
        assert!(cable.set("down"));
        std::thread::sleep(Duration::from_millis(100));
        cable.restore(from.port);
        if end(&mut to, submitted) != End::Tokens(offer.job.want()) {
            assert_eq!(take(&mut to, &offer.ticket, false), End::Tokens(offer.job.want()));
        }
        settled(&mut from, "a hiccup");
    }
    // An outage between transfers goes unnoticed.
    assert!(cable.set("down"));
    std::thread::sleep(2 * TIMEOUT);
    cable.restore(from.port);
    works(&mut from, &mut to, Job::long(true, 30));
    settled(&mut to, "importer");
}

/// Importers that vanish silently: no packet from their kernels arrives either.
#[test]
fn importers_that_vanish() {
    let Some(cable) = Cable::lay() else {
        eprintln!("SKIPPED: no network namespace can be made here (needs root and iproute2)");
        return;
    };
    let config = with(Way::Tcp.config(), json!({"listen": format!("{}:0", cable.there)}));
    let mut from = Worker::start_under(&["ip", "netns", "exec", &cable.name], config);
    let warm = offer(&mut from, Job::short(1));
    from.ask(json!({"do": "release", "kv": warm.kv}));
    let before = from.ask(json!({"do": "metrics"}))["threads"].as_u64().unwrap();
    let mut to = importer();
    pair(&mut from, &mut to, Way::Tcp);
    assert!(cable.set("down"));
    to.kill();
    // This must happen long before the idle limit of connections, which is 30 times the timeout.
    let begun = Instant::now();
    while from.ask(json!({"do": "metrics"}))["threads"].as_u64().unwrap() > before {
        assert!(begun.elapsed() < 20 * TIMEOUT, "connections of an importer that is gone are still served");
        std::thread::sleep(Duration::from_millis(50));
    }
}
