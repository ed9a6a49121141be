use crate::common::*;
use cudarc::driver::{result, sys};

#[test]
fn nothing_runs_before_somebody_waits() {
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let (stream, memory) = (Stream::new().unwrap(), Memory::of(&[1f32]).unwrap());
    let pinned = Pinned::new(4).unwrap();
    pinned.floats(1)[0] = 2.0;
    memory.write(pinned.floats(1), &stream).unwrap();
    // The default stream does not wait for a non-blocking stream.
    assert_eq!(memory.read::<f32>(1).unwrap(), [1.0]);
    // Pinned memory is read when the copy runs.
    pinned.floats(1)[0] = 3.0;
    stream.synchronise().unwrap();
    assert_eq!(memory.read::<f32>(1).unwrap(), [3.0]);
    // Pageable memory is read during the call.
    let mut data = [4f32];
    memory.write(&data, &stream).unwrap();
    data[0] = 5.0;
    // SAFETY: the pinned memory lives until the stream has run; the pageable memory is written within the call.
    unsafe {
        result::memcpy_dtoh_async(pinned.floats(1), memory.0, stream.0).unwrap();
        assert_eq!(pinned.floats(1), [3.0]);
        let mut out = [0f32];
        result::memcpy_dtoh_async(&mut out, memory.0, stream.0).unwrap();
        assert_eq!((out[0], pinned.floats(1)[0], data[0]), (4.0, 4.0, 5.0));
        // Registered memory counts as pinned and cannot be registered twice.
        let at = data.as_mut_ptr().cast();
        sys::cuMemHostRegister_v2(at, 4, 0).result().unwrap();
        let again = sys::cuMemHostRegister_v2(at, 4, 0);
        assert_eq!(again, Code::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        memory.write(&data, &stream).unwrap();
        at.cast::<f32>().write_volatile(6.0);
        sys::cuMemHostUnregister(at).result().unwrap();
    }
    assert_eq!(memory.read::<f32>(1).unwrap(), [6.0]);
}

#[test]
fn the_default_stream_runs_in_turn_with_blocking_streams() {
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let blocking = Stream(result::stream::create(result::stream::StreamKind::Default).unwrap());
    let memory = Memory::new(4).unwrap();
    // SAFETY: the objects live throughout.
    unsafe {
        result::memset_d8_async(memory.0, 1, 4, blocking.0).unwrap();
        result::memset_d8_async(memory.0, 2, 2, std::ptr::null_mut()).unwrap();
        result::memset_d8_async(memory.0, 3, 1, blocking.0).unwrap();
        sys::cuStreamSynchronize(blocking.0).result().unwrap();
    }
    assert_eq!(memory.read::<u8>(4).unwrap(), [3, 2, 1, 1]);
}

#[test]
fn events_order_streams() {
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let (one, two) = (Stream::new().unwrap(), Stream::new().unwrap());
    let (start, end) = (Event::new().unwrap(), Event::new().unwrap());
    let pinned = Pinned::new(8).unwrap();
    let memory = Memory::new(4).unwrap();
    // Without waiting for the event, the second stream reads the old contents.
    memory.write(&[7f32], &one).unwrap();
    // SAFETY: the memory lives until the streams have run.
    let read = |stream: &Stream, to| unsafe {
        result::memcpy_dtoh_async(&mut pinned.floats(2)[to..=to], memory.0, stream.0).unwrap()
    };
    read(&two, 0);
    two.synchronise().unwrap();
    assert!(pinned.floats(2)[0].is_nan());
    // With the event, it reads the new contents.
    start.record(&one).unwrap();
    start.holds(&two).unwrap();
    read(&two, 1);
    end.record(&two).unwrap();
    // Later work of the first stream is not waited for.
    memory.write(&[8f32], &one).unwrap();
    // SAFETY: the events and the memory are alive.
    unsafe {
        assert_eq!(result::event::query(end.0).unwrap_err().0, Code::CUDA_ERROR_NOT_READY);
        result::event::synchronize(end.0).unwrap();
        assert_eq!(pinned.floats(2)[1], 7.0);
        assert!(result::event::elapsed(start.0, end.0).unwrap() >= 0.0);
        assert_eq!(memory.read::<f32>(1).unwrap(), [7.0]);
        // Repeated polling ends eventually.
        end.record(&one).unwrap();
        let mut times = 0;
        while result::event::query(end.0).is_err() {
            times += 1;
        }
        assert_eq!(times, 2);
        assert_eq!(memory.read::<f32>(1).unwrap(), [8.0]);
    }
}

#[test]
fn work_goes_between_devices() {
    let _session = session("devices=2");
    let second = Gpu::new(1).unwrap();
    let to = Memory::of(&[0f32; 4]).unwrap();
    let there = Stream::new().unwrap();
    let first = Gpu::new(0).unwrap();
    let from = Memory::of(&[1f32, 2.0, 3.0, 4.0]).unwrap();
    let here = Stream::new().unwrap();
    // SAFETY: the memory lives until the streams have run.
    unsafe {
        sys::cuMemcpyPeerAsync(to.0, second.context, from.0, first.context, 16, here.0).result().unwrap();
        let wrong = sys::cuMemcpyPeerAsync(to.0, first.context, from.0, first.context, 16, here.0);
        assert_eq!(wrong, Code::CUDA_ERROR_INVALID_VALUE);
    }
    let event = Event::new().unwrap();
    event.record(&here).unwrap();
    second.enter().unwrap();
    event.holds(&there).unwrap();
    there.synchronise().unwrap();
    assert_eq!(to.read::<f32>(4).unwrap(), [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn threads_work_side_by_side() {
    let _session = session("");
    let work = |seed: usize| {
        let _gpu = Gpu::new(0).unwrap();
        let module = Module::new().unwrap();
        let kernel = module.function("silu_mul_float").unwrap();
        let stream = Stream::new().unwrap();
        for round in 0..20 {
            let x = (seed * 20 + round) as f32 / 40.0;
            let (gate, up) = (Memory::of(&[x; 64]).unwrap(), Memory::of(&[2f32; 64]).unwrap());
            silu_mul(kernel, &gate, &up, 64, &stream).unwrap();
            stream.synchronise().unwrap();
            assert!(gate.read::<f32>(64).unwrap().iter().all(|found| (found - 2.0 * silu(x)).abs() < 1e-5));
        }
    };
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || work(seed));
        }
    });
}

#[test]
fn host_functions_run_in_order() {
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let stream = Stream::new().unwrap();
    let pinned = Pinned::new(4).unwrap();
    let memory = Memory::of(&[9f32]).unwrap();
    let mut seen = (pinned.0.cast::<f32>(), 0f32);
    unsafe extern "C" fn look(data: *mut std::ffi::c_void) {
        // SAFETY: the pointer refers to the pair below.
        let seen = unsafe { &mut *data.cast::<(*mut f32, f32)>() };
        // SAFETY: the pointer refers to pinned memory of this test.
        seen.1 = unsafe { *seen.0 };
    }
    // SAFETY: the pair lives until the stream has run.
    unsafe {
        result::memcpy_dtoh_async(pinned.floats(1), memory.0, stream.0).unwrap();
        sys::cuLaunchHostFunc(stream.0, Some(look), (&raw mut seen).cast()).result().unwrap();
    }
    assert_eq!(seen.1, 0.0);
    stream.synchronise().unwrap();
    assert_eq!(seen.1, 9.0);
}
