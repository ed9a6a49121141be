//! Cancels requests at random moments of their imports.

use super::support::*;

const STAGES: [&str; 4] =
    ["transport.import.open", "transport.import.opened", "transport.import.fetch", "transport.import.copied"];

fn cancelled(way: Way, n: u64) {
    let mut to = importer();
    let mut from = exporter(way, &mut to);
    let mut random = Random(way.transport());
    let mut ends = [0; 3];
    for batch in 0..n / 25 {
        let bystander = Bystander::begin(&mut to);
        let jobs: Vec<_> = (0..25)
            .map(|i| Job { stream: random.below(4) == 0, ..Job::long(false, batch * 25 + i) })
            .map(|job| Job { tokens: job.tokens[..100].to_vec(), max: 4, ..job })
            .collect();
        let offers: Vec<_> = jobs.into_iter().map(|job| offer(&mut from, job)).collect();
        for offer in &offers {
            // A third is cancelled at a chosen stage of the import, the others at a random time.
            let stage = (random.below(3) == 0).then(|| STAGES[random.below(STAGES.len() as u64) as usize]);
            if let Some(stage) = stage {
                to.arm(stage, 1, "hold");
            }
            let kv = to.ask(import(&offer.ticket))["kv"].clone();
            let submitted = to.try_ask(decode(&kv, false));
            match stage {
                Some(stage) => to.reached(stage),
                None => std::thread::sleep(Duration::from_micros(random.below(1500))),
            }
            to.try_ask(json!({"do": "cancel", "engine": "decode", "request": submitted["request"]}));
            let done = to.ask(json!({"do": "wait", "request": submitted["request"], "within_ms": 60_000}));
            if let Some(stage) = stage {
                to.let_go(stage);
            }
            assert_eq!(done["ends"], 1, "{done}");
            let said: Vec<_> = done["tokens"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap()).collect();
            assert!(offer.job.want().starts_with(&said), "{done}");
            match done["status"].as_i64().unwrap() {
                0 => ends[0] += 1,
                CANCELLED => ends[1 + usize::from(said.is_empty())] += 1,
                status => panic!("{status}: {done}"),
            }
            let ready = to.ask(json!({"do": "ready", "kv": kv, "within_ms": 60_000}));
            assert!(ready.get("timeout").is_none());
        }
        bystander.check(&mut to, "cancels");
        for offer in &offers {
            from.ask(json!({"do": "wait", "request": offer.request}));
            from.ask(json!({"do": "release", "kv": offer.kv}));
        }
        settled(&mut from, "exporter");
        settled(&mut to, "importer");
        from.ask(json!({"do": "forget"}));
        to.ask(json!({"do": "forget"}));
    }
    assert!(ends[2] > n / 20, "too few were cancelled in time to say anything: {ends:?}");
    works(&mut from, &mut to, Job::long(true, 9));
}

#[test]
fn over_shared_memory() {
    cancelled(Way::Shared, 1000);
}

#[test]
fn over_tcp() {
    cancelled(Way::Tcp, 1000);
}
