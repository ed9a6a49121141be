use super::shares::MOST_QUEUED;
use super::*;
use crate::error::Status;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{RwLock, mpsc};
use std::thread;

fn idle_chore() -> Workers {
    Workers::new(Box::new(|| false))
}

fn key(peer: usize) -> PeerKey {
    (peer as u128).to_le_bytes()
}

/// Queues jobs of a peer that wait for the gate, until one is refused or there are `n`. Says how many there are.
fn stuck(workers: &Workers, peer: usize, n: usize, gate: &Arc<RwLock<()>>) -> usize {
    let stuck = |_: &usize| {
        let gate = gate.clone();
        let queued = workers.submit(key(peer), Box::new(move |_| drop(gate.read())));
        queued.inspect_err(|error| assert_eq!(error.status, Status::WouldBlock, "{error}")).is_ok()
    };
    (0..n).take_while(stuck).count()
}

#[test]
fn a_peer_that_does_not_answer_leaves_threads_and_places_to_others() {
    let workers = idle_chore();
    let gate = Arc::new(RwLock::new(()));
    let shut = gate.write().unwrap();
    // All that one peer can have: a part of the threads, and of the places.
    let one = stuck(&workers, 1, 20_000, &gate);
    assert!((MOST / 8 + MOST_QUEUED / 8..MOST / 4 + MOST_QUEUED / 4).contains(&one), "{one}");
    let runs = |peer: usize| {
        let (send, received) = mpsc::channel();
        workers.submit(key(peer), Box::new(move |_| send.send(()).unwrap())).unwrap();
        received.recv_timeout(Duration::from_secs(60)).expect("it runs while others are stuck");
    };
    runs(2);
    // The same with a dozen of them.
    for peer in 3..15 {
        stuck(&workers, peer, 20_000, &gate);
    }
    runs(2);
    let state = workers.0.lock();
    assert!(state.threads <= MOST && state.jobs.len() < MOST_QUEUED, "{} queued", state.jobs.len());
    drop(state);
    drop(shut);
    workers.close();
    let state = workers.0.lock();
    assert_eq!((&state.shares, state.threads, state.jobs.len()), (&Shares::default(), 0, 0));
}

#[test]
fn closing_runs_what_is_queued_beyond_the_limit() {
    let workers = idle_chore();
    let (gate, done) = (Arc::new(RwLock::new(())), Arc::new(AtomicUsize::new(0)));
    let shut = gate.write().unwrap();
    for peer in 0..MOST + 8 {
        let (gate, done) = (gate.clone(), done.clone());
        let job = move |_: &Place| {
            let _open = gate.read().unwrap();
            done.fetch_add(1, SeqCst);
        };
        workers.submit(key(peer), Box::new(job)).unwrap();
    }
    assert_eq!(workers.0.lock().threads, MOST);
    thread::scope(|scope| {
        let closer = scope.spawn(|| workers.close());
        while !workers.0.lock().closed {
            thread::yield_now();
        }
        let late = workers.submit(key(0), Box::new(|_| ())).unwrap_err();
        assert_eq!((late.status, done.load(SeqCst)), (Status::Shutdown, 0));
        assert!(!closer.is_finished());
        drop(shut);
        closer.join().unwrap();
    });
    assert_eq!((done.load(SeqCst), workers.0.lock().threads), (MOST + 8, 0));
    workers.close();
}

#[test]
fn a_panicking_job_takes_nothing_with_it() {
    let workers = idle_chore();
    let (send, received) = mpsc::channel();
    for n in 0..4 {
        let send = send.clone();
        let job = move |_: &Place| {
            send.send(n).unwrap();
            assert!(n % 2 == 1, "on purpose");
        };
        workers.submit(key(0), Box::new(job)).unwrap();
    }
    let mut ran: Vec<i32> = (0..4).map(|_| received.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
    ran.sort_unstable();
    assert_eq!(ran, [0, 1, 2, 3]);
    workers.close();
    assert_eq!(workers.0.lock().threads, 0);
}

#[test]
fn threads_end_when_there_is_nothing_to_look_after() {
    let busy = Arc::new(AtomicBool::new(true));
    let chore = busy.clone();
    let workers = Workers::new(Box::new(move || chore.load(SeqCst)));
    (0..3).for_each(|_| workers.submit(key(0), Box::new(|_| ())).unwrap());
    let within = |time: Duration, threads: usize| {
        let until = Instant::now() + time;
        while workers.0.lock().threads != threads {
            assert!(Instant::now() < until, "{} threads", workers.0.lock().threads);
            thread::sleep(LOOK / 10);
        }
    };
    within(LINGER + Duration::from_secs(10), 1);
    thread::sleep(LINGER + 2 * LOOK);
    assert_eq!(workers.0.lock().threads, 1, "the last one does the chore");
    busy.store(false, SeqCst);
    within(Duration::from_secs(10), 0);
    let (send, received) = mpsc::channel();
    workers.submit(key(0), Box::new(move |_| send.send(()).unwrap())).unwrap();
    received.recv_timeout(Duration::from_secs(10)).unwrap();
    workers.close();
}

/// A job that ends when it is told to, or when the gate opens.
fn silent(gate: &Arc<AtomicBool>, ended: &mpsc::Sender<bool>) -> Job {
    let (gate, ended) = (gate.clone(), ended.clone());
    Box::new(move |place| {
        let told = loop {
            if gate.load(SeqCst) {
                break false;
            }
            if let Err(error) = place.note_silence(STALLED) {
                assert_eq!(error.status, Status::Peer, "{error}");
                break true;
            }
            thread::sleep(Duration::from_millis(1));
        };
        ended.send(told).unwrap();
    })
}

#[test]
fn any_number_of_silent_peers_leaves_threads_to_one_that_answers() {
    let workers = idle_chore();
    let gate = Arc::new(AtomicBool::new(false));
    let (ended, ends) = mpsc::channel();
    // Several jobs of each of a few peers, and more peers than there are threads.
    let silent_peers = (0..40).map(|peer| (peer, 7)).chain((40..MOST + 40).map(|peer| (peer, 1)));
    let mut submitted = 0;
    for (peer, jobs) in silent_peers {
        (0..jobs).for_each(|_| workers.submit(key(peer), silent(&gate, &ended)).unwrap());
        submitted += jobs;
    }
    assert!(submitted > 2 * MOST);
    // Enough for most of the healthy peer's jobs to need a thread of others.
    let (done, healthy) = mpsc::channel();
    for n in 0..100 {
        let done = done.clone();
        workers.submit(key(1000), Box::new(move |_| done.send(n).unwrap())).unwrap();
    }
    let mut ran: Vec<i32> = (0..100).map(|_| healthy.recv_timeout(Duration::from_secs(60)).expect("it runs")).collect();
    ran.sort_unstable();
    assert_eq!(ran, (0..100).collect::<Vec<_>>());
    // Nobody needs a thread any more, so the rest may wait for their peers.
    gate.store(true, SeqCst);
    workers.close();
    drop(ended);
    let told = ends.iter().collect::<Vec<_>>();
    assert_eq!(told.len(), submitted);
    assert!(told.iter().filter(|told| !**told).count() >= MOST / 2, "too many were told to end");
    assert_eq!(workers.0.lock().shares, Shares::default());
}

#[test]
fn stalled_jobs_give_way_to_peers_that_are_not_silent_and_to_nobody_else() {
    let mut shares = Shares::default();
    let run = |shares: &mut Shares, peer: usize| {
        assert!(shares.turn(&key(peer)).is_some());
        shares.queued(key(peer));
        shares.begun(&key(peer));
    };
    let give_way = |shares: &Shares| (0..MOST).filter(|&peer| shares.must_give_way(&key(peer))).collect::<Vec<_>>();
    // Two jobs of peer 0, one of each of the others.
    run(&mut shares, 0);
    (0..MOST - 1).for_each(|peer| run(&mut shares, peer));
    [0].into_iter().chain(0..MOST - 1).for_each(|peer| shares.stalled(&key(peer)));
    (0..MOST - 1).for_each(|peer| shares.queued(key(peer)));
    assert!(give_way(&shares).is_empty(), "more jobs of silent peers are no reason");
    shares.queued(key(1000));
    shares.queued(key(1001));
    assert_eq!(give_way(&shares), [0], "the peer with the most");
    shares.gave_way(&key(0));
    assert_eq!(give_way(&shares).len(), MOST - 1, "then any, as all have one");
    shares.gave_way(&key(7));
    assert!(give_way(&shares).is_empty(), "as many as are needed");
    assert!(shares.turn(&key(1000)).is_none(), "they have not ended yet");
    for peer in [0, 7] {
        shares.left();
        shares.ended(&key(peer));
    }
    for peer in [1000, 1001] {
        assert!(shares.turn(&key(peer)).is_some());
        shares.begun(&key(peer));
    }
    // A peer that is heard of again may have threads of others.
    assert!(shares.turn(&key(3)).is_none());
    shares.recovered(&key(3));
    shares.heard(&key(3), Instant::now());
    assert!(!give_way(&shares).is_empty());
}

#[test]
fn a_peer_stays_silent_after_its_stalled_job_gave_way() {
    let mut state = WorkersState::default();
    // Two jobs of each silent peer: one that runs, and one that waits.
    for peer in 0..MOST {
        (0..2).for_each(|_| state.queue(key(peer), Box::new(|_| ())));
    }
    let running: Vec<PeerKey> = std::iter::from_fn(|| state.take()).map(|(peer, _)| peer).collect();
    assert_eq!(running.len(), MOST);
    running.iter().for_each(|peer| state.shares.stalled(peer));
    assert!(state.jobs.iter().all(|(peer, _)| running.contains(peer)), "a peer without a running job goes first");
    state.queue(key(1000), Box::new(|_| ()));
    let give_way = |state: &mut WorkersState| {
        let mut told = running.clone();
        told.retain(|peer| {
            let told = state.shares.must_give_way(peer);
            if told {
                state.shares.gave_way(peer);
            }
            told
        });
        told
    };
    let told = give_way(&mut state);
    assert_eq!(told.len(), 1);
    state.shares.left();
    state.shares.ended(&told[0]);
    assert!(give_way(&mut state).is_empty(), "the silent peer's next job is no reason");
    assert_eq!(state.take().map(|(peer, _)| peer), Some(key(1000)), "nor does it come first");
    assert!(give_way(&mut state).is_empty());
    state.shares.ended(&key(1000));
    assert_eq!(state.take().map(|(peer, _)| peer), Some(told[0]), "it runs when nobody else needs the thread");
    // Not its end but its peer's answer makes the peer count as any other.
    assert!(state.shares.is_silent(&told[0]));
    state.shares.heard(&told[0], Instant::now());
    assert!(!state.shares.is_silent(&told[0]));
}

#[test]
fn a_peer_that_one_job_hears_is_not_silent_for_the_others() {
    let (mut shares, now) = (Shares::default(), Instant::now());
    let peer = key(1);
    for _ in 0..2 {
        shares.queued(peer);
        shares.begun(&peer);
    }
    assert_eq!(shares.silence(&peer, 9 * STALLED, now), 9 * STALLED);
    shares.heard(&peer, now);
    assert_eq!(shares.silence(&peer, 9 * STALLED, now + STALLED / 2), STALLED / 2);
    assert_eq!(shares.silence(&peer, STALLED / 4, now + STALLED / 2), STALLED / 4);
    assert_eq!(shares.silence(&peer, 9 * STALLED, now + 2 * STALLED), 2 * STALLED);
}

#[test]
fn only_what_is_heard_ends_a_silence() {
    let workers = idle_chore();
    let (send, received) = mpsc::channel();
    let job = move |place: &Place| {
        let stalled = || place.lock().standing == Standing::Stalled;
        place.note_silence(STALLED).unwrap();
        let mut seen = vec![stalled()];
        // A wait that begins anew, and one for something else than the peer.
        place.note_silence(Duration::ZERO).unwrap();
        place.check().unwrap();
        seen.push(stalled());
        place.heard();
        seen.push(stalled());
        send.send(seen).unwrap();
    };
    workers.submit(key(1), Box::new(job)).unwrap();
    assert_eq!(received.recv_timeout(Duration::from_secs(60)).unwrap(), [true, true, false]);
    workers.close();
    assert_eq!(workers.0.lock().shares, Shares::default());
}

#[test]
fn a_silent_peer_that_is_heard_gets_its_threads_at_once() {
    let workers = idle_chore();
    let gate = Arc::new(RwLock::new(()));
    let shut = gate.write().unwrap();
    let stalled = Arc::new(AtomicUsize::new(0));
    let (answer, answered) = mpsc::channel();
    let mut answered = Some(answered);
    for _ in 0..MOST / 2 {
        let (gate, stalled, answered) = (gate.clone(), stalled.clone(), answered.take());
        let job = move |place: &Place| {
            place.note_silence(STALLED).unwrap();
            stalled.fetch_add(1, SeqCst);
            if let Some(answered) = answered {
                answered.recv().unwrap();
                place.heard();
            }
            drop(gate.read());
        };
        workers.submit(key(1), Box::new(job)).unwrap();
    }
    let running_once = |there: &dyn Fn(&Shares) -> bool| {
        let begun = Instant::now();
        loop {
            let state = workers.0.lock();
            if there(&state.shares) {
                return state.shares.running();
            }
            drop(state);
            assert!(begun.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(1));
        }
    };
    let before = running_once(&|shares| shares.ready() == 0 && shares.running() == stalled.load(SeqCst));
    answer.send(()).unwrap();
    // No job has ended, so nothing else calls further threads.
    running_once(&|shares| shares.running() > before);
    drop(shut);
    workers.close();
}

#[test]
fn silent_peers_leave_half_of_the_queue_to_others() {
    let mut shares = Shares::default();
    for peer in 0..100 {
        shares.queued(key(peer));
        shares.begun(&key(peer));
        shares.stalled(&key(peer));
    }
    for peer in 0..100 {
        while shares.may_queue(&key(peer)) {
            shares.queued(key(peer));
        }
    }
    let mut healthy = 0;
    while shares.may_queue(&key(1000)) {
        shares.queued(key(1000));
        healthy += 1;
    }
    assert!(healthy >= MOST_QUEUED / 2 / 5, "{healthy}");
}
