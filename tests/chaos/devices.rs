//! Handoffs between processes whose pools are on simulated CUDA devices or in host memory. Checks which transport is
//! chosen, and that the tokens equal the CPU's.

use super::support::*;

const SHARED: u64 = 2;
const TCP: u64 = 3;
const CUDA: u64 = 5;

/// Starts a worker on a device of a machine configured by `driver`, or on the CPU for None.
fn on(device: Option<u64>, driver: &str, more: Value) -> Worker {
    let config = with(Way::Cuda.config(), json!({"device": device, "driver": driver}));
    Worker::start(with(config, more))
}

/// Starts a CPU worker that finds no driver, by clearing the library path that cargo sets for tests.
fn without_driver() -> Worker {
    Worker::start_with(&[("LD_LIBRARY_PATH".into(), String::new())], with(Way::Cuda.config(), json!({"device": null})))
}

fn report(from: &mut Worker, to: &mut Worker, transport: u64) -> Value {
    let address = from.ask(json!({"do": "address"}))["address"].clone();
    to.ask(json!({"do": "pair", "address": address, "transport": transport}))
}

/// Pairs with any transport, hands over, and returns the transport used.
fn hands_over(from: &mut Worker, to: &mut Worker, salt: u64) -> u64 {
    let found = report(from, to, 0);
    assert_eq!(found["status"], 0, "{found}");
    assert!(found["rate"].as_u64().unwrap() > 0, "{found}");
    let before = to.ask(json!({"do": "metrics"}))["imports"].as_u64().unwrap();
    works(from, to, Job { stream: salt % 2 == 1, ..Job::short(salt) });
    assert_eq!(to.ask(json!({"do": "metrics"}))["imports"].as_u64().unwrap(), before + 1);
    settled(from, "the exporter");
    settled(to, "the importer");
    found["transport"].as_u64().unwrap()
}

#[test]
fn the_pool_is_mapped_where_it_lies() {
    let (mut a, mut b) = (on(Some(0), "", json!({})), on(Some(0), "", json!({})));
    let mut cpu = on(None, "", json!({}));
    assert_eq!(hands_over(&mut a, &mut b, 1), CUDA);
    assert_eq!(hands_over(&mut b, &mut a, 2), CUDA);
    assert_eq!(hands_over(&mut cpu, &mut a, 4), SHARED);
    // Pairing fails if the required transport is not the available one.
    for (from, transport, text) in [(&mut a, SHARED, "CUDA memory"), (&mut cpu, CUDA, "shared memory")] {
        let refused = report(from, &mut b, transport);
        assert_eq!((&refused["status"], &refused["reason"]), (&json!(-3), &json!(8)), "{refused}");
        assert!(refused["detail"].as_str().unwrap().contains(text), "{refused}");
    }
}

/// A process with the driver loaded reads a device's pool into host memory.
#[test]
fn from_a_device_to_the_cpu() {
    let mut device = on(Some(0), "", json!({}));
    let mut cpu = on(None, "devices=1", json!({"driver_loaded": true}));
    assert_eq!(hands_over(&mut device, &mut cpu, 3), CUDA);
}

#[test]
fn between_two_devices() {
    for peer in ["", " peer=0"] {
        let driver = format!("devices=2{peer}");
        let (mut a, mut b) = (on(Some(0), &driver, json!({})), on(Some(1), &driver, json!({})));
        assert_eq!(hands_over(&mut a, &mut b, 5), CUDA);
        assert_eq!(hands_over(&mut b, &mut a, 6), CUDA);
    }
}

#[test]
fn into_other_layouts() {
    let mut a = on(Some(0), "", json!({}));
    // Covers other block sizes, shards and types that represent all values exactly.
    for (i, more) in [json!({"block_tokens": 7}), json!({"block_tokens": 32, "shards": 2}), json!({"dtype": 1})]
        .into_iter()
        .enumerate()
    {
        let mut b = on(Some(0), "", more.clone());
        assert_eq!(hands_over(&mut a, &mut b, 10 + i as u64), CUDA, "{more}");
        let mut cpu = on(None, "", more.clone());
        assert_eq!(hands_over(&mut cpu, &mut a, 20 + i as u64), SHARED, "{more}");
    }
}

/// If the memory cannot be mapped, the next transport is used; if there is none, the refusal gives the reason.
#[test]
fn a_device_that_is_not_the_importers() {
    let listens = json!({"listen": "127.0.0.1:0"});
    for (from, to, text) in [
        (
            on(Some(1), "devices=2", listens.clone()),
            on(Some(0), "devices=1", json!({})),
            "is not visible to this process",
        ),
        (on(Some(0), "vmm=0", listens.clone()), on(Some(0), "", json!({})), "this memory cannot be shared"),
        (
            on(Some(0), "", listens.clone()),
            on(Some(0), "vmm=0", json!({})),
            "memory of other processes cannot be mapped",
        ),
        (on(Some(0), "", listens), without_driver(), "there is no CUDA driver"),
    ] {
        let (mut from, mut to) = (from, to);
        let refused = report(&mut from, &mut to, CUDA);
        assert_eq!((&refused["status"], &refused["reason"]), (&json!(-3), &json!(8)), "{refused}");
        assert!(refused["detail"].as_str().unwrap().contains(text), "{text}: {refused}");
        assert_eq!(hands_over(&mut from, &mut to, 7), TCP);
        // The same without pairing first.
        let offer = offer(&mut from, Job::short(8));
        assert_eq!(take(&mut to, &offer.ticket, false), End::Tokens(offer.job.want()));
    }
}
