//! Life cycle of engines and requests through both interfaces of the library. Each test body runs once with the Rust
//! types and once with the C functions.

use crate::common::prompt;
use crate::face::*;
use cleave::engine::Role;
use cleave::error::Status;
use cleave::sequence::FinishReason;
use std::time::Duration;

/// Runs a body with each interface.
macro_rules! through_both_faces {
    ($($name:ident),* $(,)?) => {
        mod rust_face {
            $(#[test] fn $name() { super::$name::<super::RustFace>() })*
        }
        mod c_face {
            $(#[test] fn $name() { super::$name::<super::CFace>() })*
        }
    };
}

through_both_faces!(
    a_request_runs_to_its_length,
    cancel_ends_a_request_wherever_it_is,
    admission_is_limited_and_opens_again,
    destroy_ends_everything_with_shutdown,
    drain_lets_work_end_and_takes_none,
    priority_runs_first,
    a_refused_request_leaves_its_handle,
    a_running_generation_is_exported_and_goes_on,
    roles_switch_and_requests_keep_theirs,
);

const SECOND: Duration = Duration::from_secs(1);

fn job(n_prompt: usize, salt: u64, n: u32) -> Job {
    Job { prompt: prompt(n_prompt, salt), n, ..Job::default() }
}

fn reason(seen: &Seen) -> FinishReason {
    use FinishReason::*;
    *[Stop, Length, Prefilled, Exported, Error].iter().find(|reason| **reason as u32 == seen.finish).expect("a reason")
}

fn failed(seen: &Seen, status: Status) {
    assert_eq!((reason(seen), seen.status), (FinishReason::Error, status as Code), "{seen:?}");
}

fn a_request_runs_to_its_length<F: Face>() {
    let mut host = Either::<F>::open(60, 0);
    let engine = host.face.engine(Role::Mixed, 0, 0);
    let id = host.submit(&engine, &job(20, 1, 7));
    let (whole, end) = host.finish(id);
    assert_eq!((reason(&end), whole.tokens.len(), end.index, end.status), (FinishReason::Length, 7, 7, 0));
    host.face.destroy(engine);
    host.assert_quiescent();
}

fn cancel_ends_a_request_wherever_it_is<F: Face>() {
    // With a small queue, a long request cannot end before somebody polls, however late that is.
    let mut host = Either::<F>::open(60, 32);
    let engine = host.face.engine(Role::Mixed, 2, 0);
    let ids: Vec<_> = (0..6).map(|i| host.submit(&engine, &job(30, i, 150))).collect();
    host.tokens(ids[0], 3);
    for &id in ids.iter().rev() {
        assert_eq!(host.face.cancel(&engine, id), 0);
        // The request may have ended already.
        let again = host.face.cancel(&engine, id);
        assert!(again == 0 || again == Status::NotFound as Code, "{again}");
    }
    for &id in &ids {
        failed(&host.finish(id).1, Status::Cancelled);
    }
    let id = host.submit(&engine, &job(5, 9, 2));
    host.finish(id);
    assert_eq!(host.face.cancel(&engine, id), Status::NotFound as Code);
    assert_eq!(host.face.cancel(&engine, 12345), Status::NotFound as Code);
    host.face.destroy(engine);
    host.assert_quiescent();
}

fn admission_is_limited_and_opens_again<F: Face>() {
    let mut host = Either::<F>::open(60, 32);
    let engine = host.face.engine(Role::Mixed, 1, 2);
    // None of the three requests ends before its tokens are polled. Submitting polls some if they fill the queue.
    let ids: Vec<_> = (0..3).map(|i| host.submit(&engine, &job(20, i, 450))).collect();
    assert_eq!(host.face.submit(&engine, &job(20, 3, 450)), Err(Status::WouldBlock as Code));
    host.finish(ids[0]);
    let id = host.submit(&engine, &job(5, 1, 1));
    host.face.destroy(engine);
    host.finish(id);
    host.assert_quiescent();
}

fn destroy_ends_everything_with_shutdown<F: Face>() {
    let mut host = Either::<F>::open(60, 64);
    let engine = host.face.engine(Role::Mixed, 0, 0);
    let ids: Vec<_> = (0..8).map(|i| host.submit(&engine, &job(30, i, 400))).collect();
    host.tokens(ids[0], 2);
    host.face.destroy(engine);
    for id in ids {
        failed(&host.finish(id).1, Status::Shutdown);
    }
    host.assert_quiescent();
}

fn drain_lets_work_end_and_takes_none<F: Face>() {
    let mut host = Either::<F>::open(60, 8);
    let engine = host.face.engine(Role::Mixed, 0, 0);
    let id = host.submit(&engine, &job(30, 1, 200));
    assert_eq!(host.face.drain(&engine, Duration::ZERO), Status::Timeout as Code);
    assert_eq!(host.face.submit(&engine, &job(3, 1, 1)), Err(Status::Shutdown as Code));
    assert_eq!(host.finish(id).0.tokens.len(), 200);
    assert_eq!(host.face.drain(&engine, 300 * SECOND), 0);
    host.face.destroy(engine);
    host.assert_quiescent();
}

fn priority_runs_first<F: Face>() {
    let mut host = Either::<F>::open(60, 32);
    let engine = host.face.engine(Role::Mixed, 1, 0);
    let (first, low, high) = loop {
        let first = host.submit(&engine, &job(20, 0, 100));
        host.tokens(first, 1);
        let low = host.submit(&engine, &job(20, 1, 5));
        let high = host.submit(&engine, &Job { priority: 9, ..job(20, 2, 5) });
        // Takes everything that is queued. Unless the first has ended by now, both others wait for its place.
        host.poll(Duration::ZERO);
        if host.requests[&first].end.is_none() {
            break (first, low, high);
        }
        // This thread was too late: again.
        for id in [low, high] {
            host.finish(id);
        }
    };
    for id in [high, low, first] {
        host.finish(id);
    }
    let rank = |id| host.ended.iter().position(|&ended| ended == id);
    assert!(rank(high) < rank(low), "the low one came first");
    host.face.destroy(engine);
    host.assert_quiescent();
}

fn a_refused_request_leaves_its_handle<F: Face>() {
    let mut host = Either::<F>::open(60, 0);
    let (prefill, decode) = (host.face.engine(Role::Prefill, 0, 0), host.face.engine(Role::Decode, 0, 0));
    let id = host.submit(&prefill, &job(20, 1, 5));
    let (_, end) = host.finish(id);
    assert_eq!(reason(&end), FinishReason::Prefilled);
    let on = Job { kv: end.kv, ..Job::default() };
    let bad = Job { prompt: vec![i32::MAX as u32], ..on.clone() };
    assert_eq!(host.face.submit(&decode, &bad), Err(Status::InvalidArgument as Code));
    let id = host.submit(&decode, &on);
    assert_eq!(host.finish(id).0.tokens.len(), 4);
    assert_eq!(host.face.submit(&decode, &on), Err(Status::Expired as Code));
    host.face.destroy(prefill);
    host.face.destroy(decode);
    host.assert_quiescent();
}

fn a_running_generation_is_exported_and_goes_on<F: Face>() {
    let mut host = Either::<F>::open(60, 8);
    let engine = host.face.engine(Role::Mixed, 0, 0);
    let id = host.submit(&engine, &job(20, 4, 30));
    let whole = host.finish(id).0.tokens;
    let id = host.submit(&engine, &job(20, 4, 30));
    host.tokens(id, 2);
    assert_eq!(host.face.export(&engine, id), 0);
    let (first, end) = host.finish(id);
    assert_eq!(reason(&end), FinishReason::Exported, "the queue has no room for all of its tokens");
    let id = host.submit(&engine, &Job { kv: end.kv, ..Job::default() });
    let (rest, _) = host.finish(id);
    assert_eq!([first.tokens, rest.tokens].concat(), whole);
    assert_eq!(host.face.export(&engine, id), Status::NotFound as Code);
    host.face.destroy(engine);
    host.assert_quiescent();
}

fn roles_switch_and_requests_keep_theirs<F: Face>() {
    let mut host = Either::<F>::open(200, 16);
    let engine = host.face.engine(Role::Mixed, 0, 0);
    let running = host.submit(&engine, &job(30, 1, 300));
    host.tokens(running, 2);
    assert_eq!(host.face.set_role(&engine, Role::Prefill), 0);
    let id = host.submit(&engine, &job(50, 2, 20));
    let (_, end) = host.finish(id);
    assert_eq!(reason(&end), FinishReason::Prefilled);
    assert_eq!(host.face.release(end.kv), 0);
    let (whole, end) = host.finish(running);
    assert_eq!((whole.tokens.len(), reason(&end)), (300, FinishReason::Length), "accepted as mixed, ends as mixed");
    host.face.destroy(engine);
    host.assert_quiescent();
}
