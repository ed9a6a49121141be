//! Progress reports while weights are loaded, and cancellation by the host. Runs in its own process, because it counts
//! leaks.

use crate::common::*;
use crate::device;
use crate::drivers::alone;
use crate::generation::{TEXTS, assert_alike, options, tokens};
use cleave::engine::{DEVICE_CPU, ModelCache, Role};
use cleave::error::{Error, Result, Status};
use std::sync::Arc;

fn create(on: i32, progress: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Arc<ModelCache>> {
    ModelCache::create_watched(&tiny(), &[on], options(), progress)
}

/// Progress reports of a load that is not cancelled, and the cache.
fn told(on: i32) -> (Vec<(u64, u64)>, Arc<ModelCache>) {
    let mut told = Vec::new();
    let cache = create(on, &mut |done, total| {
        told.push((done, total));
        Ok(())
    });
    (told, cache.unwrap())
}

#[test]
fn loading_is_told_and_can_be_ended() {
    alone("progress::is_told", "");
}

#[test]
#[ignore = "run by loading_is_told_and_can_be_ended"]
fn is_told() {
    device::simulate();
    let (told_of_cpu, cpu) = told(DEVICE_CPU);
    let stored = tiny().info().weight_bytes;
    assert_eq!(told_of_cpu, [(stored, stored)], "they are mapped");

    let (all, first) = told(0);
    let total = all[0].1;
    assert!(total >= stored && total < stored + stored / 10, "{total} bytes of {stored}");
    assert!(all.len() > 10 && all.iter().all(|(_, of)| *of == total), "{all:?}");
    assert!(all.is_sorted() && all[0].0 == 0 && all.last() == Some(&(total, total)), "{all:?}");
    assert_eq!(all.iter().filter(|(done, _)| *done == total).count(), 1, "{all:?}");
    assert_eq!(told(0).0, [(total, total)], "they are there");
    drop(first);

    // Cancelling after any report leaks nothing, and the next load starts again from the beginning.
    for end in 0..all.len() {
        let mut calls = 0;
        let ended = create(0, &mut |_, _| {
            calls += 1;
            if calls > end { Err(Error::new(Status::Cancelled, "enough")) } else { Ok(()) }
        });
        let Err(error) = ended else { panic!("there is a cache, ended after call {end}") };
        assert_eq!((error.status, calls), (Status::Cancelled, end + 1), "{error}");
        assert_eq!(device::leaks(), "", "ended after call {end}");
    }
    let (again, cache) = told(0);
    assert_eq!(again, all);
    let run = |cache: &Arc<ModelCache>| {
        let mut host = Host::new();
        let engine = host.engine(cache, role(Role::Mixed));
        host.run(&engine, request(&tokens(TEXTS[0]), 6))
    };
    assert_alike(&run(&cache), &run(&cpu), "after all");
}
