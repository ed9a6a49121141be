use crate::common::*;
use cudarc::driver::{DriverError, result, sys};

/// Uses every kind of resource once.
fn scenario() -> Result<f32> {
    let _gpu = Gpu::new(0)?;
    let module = Module::new()?;
    let kernel = module.function("silu_mul_float")?;
    let (gate, up) = (Memory::of(&[2f32; 4])?, Memory::of(&[3f32; 4])?);
    let pinned = Pinned::new(16)?;
    let (stream, event) = (Stream::new()?, Event::new()?);
    // SAFETY: all objects are alive; the graph is owned.
    unsafe {
        result::stream::begin_capture(stream.0, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL)?;
        let captured = silu_mul(kernel, &gate, &up, 4, &stream);
        let graph = Graph(result::stream::end_capture(stream.0)?);
        captured?;
        let mut exec = std::ptr::null_mut();
        sys::cuGraphInstantiateWithFlags(&mut exec, graph.0, 0).result()?;
        let exec = Exec(exec);
        result::graph::launch(exec.0, stream.0)?;
        result::memcpy_dtoh_async(pinned.floats(4), gate.0, stream.0)?;
        event.record(&stream)?;
        result::event::synchronize(event.0)?;
    }
    Ok(pinned.floats(4)[3])
}

#[test]
fn every_call_can_fail_and_nothing_leaks() {
    let session = session("");
    let expected = scenario().unwrap();
    let calls = session.calls();
    assert!(calls > 15, "{calls}");
    for error in [2, 719, 999] {
        for n in 1..=calls {
            session.configure(&format!("fail={n} error={error}"));
            let failed = scenario().unwrap_err();
            assert_eq!(failed.0 as i32, error, "{n}");
            assert_eq!(session.leaks(), "", "call {n}, error {error}");
        }
    }
    session.configure("fail=0");
    assert_eq!(scenario().unwrap(), expected);
}

#[test]
fn a_fault_of_a_kernel_stays_and_has_words() {
    let _session = session("");
    {
        let _gpu = Gpu::new(0).unwrap();
        let module = Module::new().unwrap();
        let kernel = module.function("silu_mul_float").unwrap();
        let (stream, memory) = (Stream::new().unwrap(), Memory::new(16).unwrap());
        let mut values = [0u64; 6];
        let mut params: Vec<_> = values.iter_mut().map(|x| std::ptr::from_mut(x).cast()).collect();
        // SAFETY: the simulator refuses such a block.
        unsafe { result::launch_kernel(kernel, (1, 1, 1), (33, 1, 1), 0, stream.0, &mut params).unwrap() };
        assert_eq!(stream.synchronise().unwrap_err().0, Code::CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(memory.read::<u8>(16).unwrap_err().0, Code::CUDA_ERROR_LAUNCH_FAILED);
        let words = DriverError(Code::CUDA_ERROR_LAUNCH_FAILED).error_string().unwrap().to_string_lossy();
        assert!(words.contains("silu_mul_float") && words.contains("a multiple of 32"), "{words}");
        let name = DriverError(Code::CUDA_ERROR_LAUNCH_FAILED).error_name().unwrap();
        assert_eq!(name, c"CUDA_ERROR_LAUNCH_FAILED");
    }
    // A new context is healthy.
    let _gpu = Gpu::new(0).unwrap();
    Memory::of(&[1u8]).unwrap();
}

#[test]
fn a_kernel_that_writes_behind_its_memory_is_found() {
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let module = Module::new().unwrap();
    let kernel = module.function("silu_mul_float").unwrap();
    let stream = Stream::new().unwrap();
    let (gate, up) = (Memory::of(&[1f32; 60]).unwrap(), Memory::of(&[1f32; 64]).unwrap());
    silu_mul(kernel, &gate, &up, 64, &stream).unwrap();
    assert_eq!(stream.synchronise().unwrap_err().0, Code::CUDA_ERROR_ILLEGAL_ADDRESS);
    let words = DriverError(Code::CUDA_ERROR_ILLEGAL_ADDRESS).error_string().unwrap().to_string_lossy();
    assert!(words.contains("behind the allocation of 240 bytes"), "{words}");
}

#[test]
fn a_kernel_that_leaves_its_memory_is_stopped() {
    let _session = session("");
    // Covers an access far past the memory, one before it, and one to freed memory.
    for (bytes, offset, freed) in [(64, 1 << 20, false), (64, -4096, false), (4096, 0, true)] {
        let _gpu = Gpu::new(0).unwrap();
        let module = Module::new().unwrap();
        let kernel = module.function("silu_mul_float").unwrap();
        let stream = Stream::new().unwrap();
        let (gate, up) = (Memory::of(&[1f32; 64]).unwrap(), Memory::new(bytes).unwrap());
        let elsewhere = std::mem::ManuallyDrop::new(Memory(up.0.wrapping_add_signed(offset)));
        let kept = (!freed).then_some(up);
        silu_mul(kernel, &gate, &elsewhere, 64, &stream).unwrap();
        assert_eq!(stream.synchronise().unwrap_err().0, Code::CUDA_ERROR_ILLEGAL_ADDRESS);
        let words = DriverError(Code::CUDA_ERROR_ILLEGAL_ADDRESS).error_string().unwrap().to_string_lossy();
        assert!(words.contains("silu_mul_float: block (0, 0, 0), thread (0, 0, 0): accesses"), "{words}");
        drop(kept);
    }
    let _gpu = Gpu::new(0).unwrap();
    let module = Module::new().unwrap();
    let stream = Stream::new().unwrap();
    let memory = Memory::new(16).unwrap();
    silu_mul(module.function("silu_mul_float").unwrap(), &memory, &memory, 4, &stream).unwrap();
    stream.synchronise().unwrap();
}

#[test]
fn settings_and_a_log_come_from_the_environment() {
    if std::env::var("SIMULATED_CUDA").is_ok() {
        // This is the child process, started below with its settings in the environment.
        driver();
        let gpu = Gpu::new(1).unwrap();
        assert_eq!(Memory::new(5000).err().unwrap().0, Code::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(Memory::new(500).err().unwrap().0, Code::CUDA_ERROR_ECC_UNCORRECTABLE);
        drop((Memory::new(500).unwrap(), gpu));
        return;
    }
    let log = std::env::temp_dir().join(format!("simulated-cuda-{}", std::process::id()));
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["failures::settings_and_a_log_come_from_the_environment", "--exact"]);
    // The fallible calls are cuInit, cuDeviceGet, the context, and two allocations.
    command.env("SIMULATED_CUDA", "devices=2 memory=4096 fail=5 error=214").env("SIMULATED_CUDA_LOG", &log);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    assert!(text.contains("call 5: error 214"), "{text}");
}

#[test]
fn what_is_not_given_back_is_named() {
    let session = session("");
    let gpu = Gpu::new(0).unwrap();
    std::mem::forget((Memory::new(77).unwrap(), Stream::new().unwrap()));
    assert!(session.leaks().contains("device memory of 77 bytes"));
    drop(gpu);
    let left = session.leaks();
    assert!(left.contains("device memory of 77 bytes") && left.contains("left at its context's end"), "{left}");
    assert!(left.contains("stream of device 0"), "{left}");
    session.configure("reset");
}
