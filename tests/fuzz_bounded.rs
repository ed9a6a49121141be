//! Runs each fuzz target briefly on mutated seeds, with their checksums left broken or recomputed. No input may cause a
//! panic or an allocation out of proportion to its size. The mutations are the same in every run, but KV seeds contain
//! an epoch and a lease in milliseconds that vary, so a failure prints the whole input.
//!
//! `CLEAVE_FUZZ_SEEDS=<directory>` writes the seeds to that directory for cargo-fuzz (`tools/fuzz.sh`).

#[path = "fuzz_bounded/counting.rs"]
mod counting;
#[path = "fuzz_bounded/mutate.rs"]
mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use cleave::fuzzing::{TARGETS, Target};
use mutate::Mutator;

/// Number of mutants per target, multiplied by CLEAVE_TEST_EFFORT and divided by the target's cost.
const CASES: u64 = 10_000;
/// A reader that takes longer hangs. Templates have a limit of 30 s themselves, twice for each input.
const HANGS: Duration = Duration::from_secs(300);

/// Reads one input and returns whether it was accepted.
fn read(target: &Target, data: &[u8], case: &str) -> bool {
    let begun = Instant::now();
    let before = counting::begin();
    let taken = catch_unwind(AssertUnwindSafe(|| (target.read)(data)));
    let (peak, limit) = (counting::peak() - before, target.memory.per_byte * data.len() + target.memory.fixed);
    let told = || format!("{}, {case}, {} bytes: {}", target.name, data.len(), data.escape_ascii());
    assert!(peak <= limit, "allocates {peak} bytes, more than {limit}: {}", told());
    assert!(begun.elapsed() < HANGS, "takes {:?}: {}", begun.elapsed(), told());
    match taken {
        Ok(taken) => taken.is_ok(),
        Err(_) => panic!("panicked: {}", told()),
    }
}

#[test]
fn no_input_panics_or_allocates_beyond_its_size() {
    let effort = std::env::var("CLEAVE_TEST_EFFORT").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for target in TARGETS {
        let cases = CASES * effort / target.cost;
        let seeds = (target.seeds)();
        for (i, seed) in seeds.iter().enumerate() {
            assert!(read(target, seed, "seed"), "{}: seed {i} is refused: {:?}", target.name, (target.read)(seed));
            let mut sealed = seed.clone();
            (target.reseal)(&mut sealed);
            assert_eq!(&sealed, seed, "{}: resealing changes seed {i}", target.name);
        }
        let mut taken = 0;
        for case in 0..cases {
            let mut data = Mutator::new(case, &seeds, target.words).mutant();
            if case % 2 == 0 {
                (target.reseal)(&mut data);
            }
            taken += u64::from(read(target, &data, &format!("case {case}")));
        }
        println!("{}: {taken} of {cases} mutants are taken", target.name);
        assert!(taken > 0 && taken < cases, "{}: {taken} of {cases}: the mutants show nothing", target.name);
    }
}

/// Every target of the library is also a cargo-fuzz target.
#[test]
fn every_target_is_one_of_cargo_fuzz() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for Target { name, .. } in TARGETS {
        let path = format!("fuzz_targets/{name}.rs");
        assert!(manifest.contains(&format!("path = \"{path}\"")), "fuzz/Cargo.toml: no [[bin]] of {path}");
        let source = std::fs::read_to_string(fuzz.join(&path)).unwrap_or_default();
        assert!(source.contains(&format!("fuzz(\"{name}\", data)")), "fuzz/{path}: does not fuzz {name}");
    }
}

#[test]
fn seeds_for_cargo_fuzz() {
    let Some(corpus) = std::env::var_os("CLEAVE_FUZZ_SEEDS") else { return };
    for target in TARGETS {
        let directory = Path::new(&corpus).join(target.name);
        std::fs::create_dir_all(&directory).unwrap();
        for (i, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{i}")), seed).unwrap();
        }
    }
}
