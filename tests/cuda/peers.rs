//! Copies of KV between two devices in one process.

use crate::device;
use crate::drivers::{alone, settings};
use cleave::backend::DeviceMemory;
use cleave::backend::cuda::{CudaPool, Device};

const BLOCK: usize = 4096;

#[test]
fn a_device_reads_the_other_directly_where_it_can() {
    for settings in ["devices=2", "devices=2 peer=0"] {
        alone("peers::reads_the_other", settings);
    }
}

#[test]
#[ignore = "run by a_device_reads_the_other_directly_where_it_can"]
fn reads_the_other() {
    device::load(&settings());
    let can = !settings().contains("peer=0");
    let (a, b) = (Device::open(0).unwrap(), Device::open(1).unwrap());
    let bytes: Vec<u8> = (0..BLOCK).map(|i| i as u8).collect();
    let mut found = vec![0; BLOCK];
    // First mapped memory, which needs access rights to be read from another device; then allocated memory. The second
    // copy finds access already set up.
    for shared in [true, false] {
        let from = CudaPool::new(&a, 4, BLOCK, shared).unwrap();
        let to = CudaPool::new(&b, 4, BLOCK, shared).unwrap();
        from.write(2, 0, &bytes).unwrap();
        for target in [1, 3] {
            let before = device::staged();
            to.copy_from(&from, &[2, 0], &[target, 2]).unwrap();
            assert_eq!(device::staged() - before, if can { 0 } else { 2 }, "shared: {shared}");
            to.read(target, 0, &mut found).unwrap();
            assert_eq!(found, bytes);
        }
        // The owner must still be able to write its memory.
        from.write(2, 0, &[7; BLOCK]).unwrap();
    }
    drop((a, b));
    assert_eq!(device::leaks(), "");
}
