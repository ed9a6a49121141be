//! One copy of the weights on a device, shared by several processes, any of which may die.

use super::support::*;

fn worker() -> Worker {
    Worker::start(with(Way::Cuda.config(), json!({"share_weights": true})))
}

/// Number of progress reports about loading weights; 0 if there was nothing to load.
fn told(worker: &mut Worker) -> u64 {
    worker.ask(json!({"do": "told"}))["times"].as_u64().unwrap()
}

#[track_caller]
fn says_what_it_should(worker: &mut Worker) {
    let tokens = prompt(30, 1);
    let submit = json!({"do": "submit", "engine": "mixed", "tokens": tokens, "max": 6, "ignore_eos": true});
    let submitted = worker.ask(submit);
    assert_eq!(end(worker, submitted), End::Tokens(reference(&tokens, 6)));
}

/// A single test, because all workers share the weights under the same name.
#[test]
fn are_there_as_long_as_anybody_has_them() {
    let mut apart = Worker::start(Way::Cuda.config());
    let loads = told(&mut apart);
    assert!(loads > 2, "{loads}");

    // Started together, only one process loads.
    let together: Vec<_> = (0..3).map(|_| std::thread::spawn(worker)).collect();
    let mut workers: Vec<Worker> = together.into_iter().map(|worker| worker.join().unwrap()).collect();
    let mut times: Vec<u64> = workers.iter_mut().map(told).collect();
    let loader = times.iter().position(|times| *times > 0).expect("somebody loads");
    workers.iter_mut().for_each(says_what_it_should);
    times.sort();
    assert_eq!(times[..2], [0, 0], "what waited has it without loading: {times:?}");

    // The loading process is killed. The others continue and can share the weights with new processes.
    workers.remove(loader).kill();
    workers.iter_mut().for_each(says_what_it_should);
    let mut later = worker();
    assert_eq!(told(&mut later), 0);
    says_what_it_should(&mut later);
    workers.iter_mut().for_each(Worker::kill);
    let mut latest = worker();
    assert_eq!(told(&mut latest), 0);
    says_what_it_should(&mut latest);

    // No process holds the weights any more, so they are loaded again.
    later.kill();
    latest.kill();
    let mut again = worker();
    assert_eq!(told(&mut again), loads);
    says_what_it_should(&mut again);
}

#[test]
fn where_devices_share_no_memory() {
    let config = with(Way::Cuda.config(), json!({"share_weights": true, "driver": "vmm=0"}));
    let refused = importer().try_ask(json!({"do": "create", "config": config}));
    assert_eq!(refused["status"], -3, "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("weights cannot be shared"), "{refused}");
}
