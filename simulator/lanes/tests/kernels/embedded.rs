use cleave_kernels::{ENTRIES, FATBINS};

#[test]
fn fatbins_have_the_kernels_of_the_simulator() {
    if FATBINS.is_empty() {
        assert!(ENTRIES.is_empty());
        eprintln!("skipped: built without nvcc");
        return;
    }
    let mut compiled: Vec<&str> = ENTRIES.iter().map(|(kernel, _)| *kernel).collect();
    compiled.sort_unstable();
    assert_eq!(compiled, simulated_kernels::kernels(), "each has its CLEAVE_ENTRY, and no name is there twice");
    for (kernel, file) in ENTRIES {
        assert!(FATBINS.iter().any(|(name, _)| name == file), "{kernel} of {file}");
    }
    for (name, fatbin) in FATBINS {
        assert_eq!(fatbin[..4], 0xba55_ed50u32.to_le_bytes(), "{name} is a fatbin");
        assert_eq!(fatbin.as_ptr() as usize % 64, 0, "{name}");
    }
}
