//! Kills either side at every stage of a handoff.

use super::support::*;

const IMPORT: [&str; 6] = ["open", "opened", "blocks", "fetch", "copied", "committed"];
const EXPORT: [&str; 6] = ["open", "opened", "more", "read", "commit", "committed"];

/// Returns whether this stage can differ from the one before it on this way. Skips stages on simulated devices, which
/// are slow.
fn matters(way: Way, stage: &str) -> bool {
    match way {
        Way::Shared => stage != "read",
        Way::Tcp | Way::Encrypted => true,
        Way::Cuda => ["opened", "fetch", "committed"].contains(&stage),
    }
}

fn importer_dies(way: Way, stream: bool) {
    let mut other = importer_by(way);
    let mut from = exporter(way, &mut other);
    for (salt, stage) in IMPORT.into_iter().enumerate().filter(|(_, stage)| matters(way, stage)) {
        let what = format!("importer killed at {stage}, {way:?}, stream {stream}");
        let mut to = importer_by(way);
        pair(&mut from, &mut to, way);
        let bystander = Bystander::by(way, &mut from);
        let offer = offer(&mut from, Job::by(way, stream, salt as u64));
        to.arm(&format!("transport.import.{stage}"), 1, "kill");
        to.tell(import(&offer.ticket));
        to.until_gone();
        no_transfers(&mut from, NOTICED, &what);
        from.ask(json!({"do": "wait", "request": offer.request}));
        let kept = stage != "committed";
        bystander.check(&mut from, &what);
        settled_with(&mut from, kept, NOTICED, &what);
        let again = take(&mut other, &offer.ticket, false);
        let want = if kept { End::Tokens(offer.job.want()) } else { End::Failed(EXPIRED) };
        assert_eq!(again, want, "{what}: the ticket afterwards");
        settled(&mut from, &what);
    }
    settled(&mut other, "another importer");
}

fn exporter_dies(way: Way, stream: bool) {
    let mut to = importer_by(way);
    for (salt, stage) in EXPORT.into_iter().enumerate().filter(|(_, stage)| matters(way, stage)) {
        let what = format!("exporter killed at {stage}, {way:?}, stream {stream}");
        let mut from = exporter(way, &mut to);
        let bystander = Bystander::by(way, &mut to);
        let offer = offer(&mut from, Job::by(way, stream, salt as u64));
        from.arm(&format!("transport.export.{stage}"), 1, "kill");
        let kv = to.ask(import(&offer.ticket))["kv"].clone();
        let submitted = to.try_ask(decode(&kv, salt % 2 == 1));
        from.until_gone();
        let begun = Instant::now();
        let ready = to.ask(json!({"do": "ready", "kv": kv, "within_ms": 60_000}));
        assert_eq!(ready["status"], PEER, "{what}: {ready}");
        assert!(begun.elapsed() < NOTICED, "{what}: noticed after {:?}", begun.elapsed());
        let want = if salt % 2 == 1 { End::Tokens(offer.job.want()) } else { End::Failed(PEER) };
        assert_eq!(end(&mut to, submitted), want, "{what}");
        assert_eq!(take(&mut to, &offer.ticket, true), End::Tokens(offer.job.want()), "{what}: recomputed");
        bystander.check(&mut to, &what);
        settled(&mut to, &what);
    }
    let mut from = exporter(way, &mut to);
    works(&mut from, &mut to, Job::by(way, stream, 99));
}

#[test]
fn importers_over_shared_memory() {
    importer_dies(Way::Shared, false);
}

#[test]
fn importers_over_shared_memory_while_the_prompt_is_computed() {
    importer_dies(Way::Shared, true);
}

#[test]
fn importers_over_tcp() {
    importer_dies(Way::Tcp, false);
}

#[test]
fn importers_over_tcp_while_the_prompt_is_computed() {
    importer_dies(Way::Encrypted, true);
}

#[test]
fn exporters_over_shared_memory() {
    exporter_dies(Way::Shared, false);
}

#[test]
fn exporters_over_shared_memory_while_the_prompt_is_computed() {
    exporter_dies(Way::Shared, true);
}

#[test]
fn exporters_over_tcp() {
    exporter_dies(Way::Encrypted, false);
}

#[test]
fn exporters_over_tcp_while_the_prompt_is_computed() {
    exporter_dies(Way::Tcp, true);
}

#[test]
fn importers_on_a_device() {
    importer_dies(Way::Cuda, false);
}

#[test]
fn exporters_on_a_device() {
    exporter_dies(Way::Cuda, true);
}

/// Kills around the transfer: after the ticket was made, during the prompt, after the KV arrived but before submission,
/// and during decoding.
#[test]
fn before_and_after_the_transfer() {
    for way in [Way::Shared, Way::Tcp] {
        let mut to = importer_by(way);
        // The ticket exists, but its exporter is gone.
        let mut from = exporter(way, &mut to);
        let gone = offer(&mut from, Job::long(false, 1));
        from.kill();
        assert_eq!(take(&mut to, &gone.ticket, false), End::Failed(PEER));
        // The exporter is a few steps into the prompt.
        let mut from = exporter(way, &mut to);
        from.arm("engine.step", 8, "hold");
        let streaming = offer(&mut from, Job::long(true, 2));
        to.arm("transport.import.blocks", 1, "hold");
        let kv = to.ask(import(&streaming.ticket))["kv"].clone();
        let submitted = to.try_ask(decode(&kv, false));
        from.reached("engine.step");
        to.reached("transport.import.blocks");
        from.kill();
        to.let_go("transport.import.blocks");
        assert_eq!(end(&mut to, submitted), End::Failed(PEER));
        // The KV has arrived. The exporter's death no longer matters.
        let mut from = exporter(way, &mut to);
        let landed = offer(&mut from, Job::long(false, 3));
        let kv = to.ask(import(&landed.ticket))["kv"].clone();
        assert_eq!(to.ask(json!({"do": "ready", "kv": kv}))["status"], 0);
        settled(&mut from, "landed");
        from.kill();
        let submitted = to.ask(decode(&kv, false));
        assert_eq!(end(&mut to, submitted), End::Tokens(landed.job.want()));
        settled(&mut to, "after decoding");
        // The importer dies while decoding, which does not restore the exporter's handle. Then the exporter dies.
        let mut from = exporter(way, &mut to);
        let offers = [4, 5].map(|salt| offer(&mut from, Job { max: 100, ..Job::long(false, salt) }));
        let kv = to.ask(import(&offers[0].ticket))["kv"].clone();
        to.arm("engine.step", 5, "kill");
        to.tell(decode(&kv, false));
        to.until_gone();
        let mut to = importer_by(way);
        assert_eq!(take(&mut to, &offers[0].ticket, false), End::Failed(EXPIRED));
        let kv = to.ask(import(&offers[1].ticket))["kv"].clone();
        let submitted = to.ask(decode(&kv, false));
        to.ask(json!({"do": "first", "request": submitted["request"]}));
        assert_eq!(to.ask(json!({"do": "ready", "kv": kv}))["status"], 0);
        from.kill();
        assert_eq!(end(&mut to, submitted), End::Tokens(offers[1].job.want()));
        settled(&mut to, "the end");
    }
}
