use super::super::pool::{Pool, claim};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

fn tick(count: &AtomicUsize) {
    count.fetch_add(1, SeqCst);
}

#[test]
fn every_item_is_done_once() {
    for threads in [1, 2, 5] {
        let mut pool = Pool::new(threads, None).unwrap();
        assert_eq!(pool.threads(), threads);
        for items in [0usize, 1, 7, 1000] {
            let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            pool.chunks(items, 3, |_, range| range.for_each(|i| tick(&counts[i])));
            assert!(counts.iter().all(|count| count.load(SeqCst) == 1));
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let mut pool = Pool::new(3, None).unwrap();
    for round in 0..20 {
        let next = AtomicUsize::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.region(&|_| {
                while let Some(range) = claim(&next, 50, 1) {
                    std::thread::sleep(Duration::from_micros(20));
                    // resume_unwind does not call the panic hook, so nothing is printed.
                    if range.start == 10 + round {
                        std::panic::resume_unwind(Box::new("planned"));
                    }
                }
            });
        }));
        assert_eq!(*result.unwrap_err().downcast::<&str>().unwrap(), "planned");
        let count = AtomicUsize::new(0);
        pool.chunks(100, 1, |_, _| tick(&count));
        assert_eq!(count.load(SeqCst), 100);
    }
}

#[test]
fn regions_after_sleep_and_in_a_row() {
    let mut pool = Pool::new(4, None).unwrap();
    let count = AtomicUsize::new(0);
    for round in 0..300 {
        pool.chunks(8, 1, |_, _| tick(&count));
        if round % 50 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(count.load(SeqCst), 2400);
}

#[test]
fn workers_take_no_signals() {
    let mut pool = Pool::new(3, None).unwrap();
    let masks = std::sync::Mutex::new(Vec::new());
    let begin = std::time::Instant::now();
    while masks.lock().unwrap().is_empty() && begin.elapsed() < Duration::from_secs(10) {
        pool.region(&|thread| {
            // SAFETY: the call only reads this thread's mask and writes it to the set.
            let blocked = unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut set);
                libc::sigismember(&set, libc::SIGTERM) == 1
            };
            if thread > 0 {
                masks.lock().unwrap().push(blocked);
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
    let masks = masks.into_inner().unwrap();
    assert!(!masks.is_empty() && masks.iter().all(|&blocked| blocked));
}
