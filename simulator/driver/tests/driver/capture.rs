use crate::common::*;
use cudarc::driver::{result, sys};

fn begin(stream: &Stream, mode: sys::CUstreamCaptureMode) -> Result<()> {
    // SAFETY: the stream is alive.
    unsafe { result::stream::begin_capture(stream.0, mode) }
}

fn end(stream: &Stream) -> Result<Exec> {
    // SAFETY: the stream is alive; the caller owns the returned graph.
    unsafe {
        let graph = Graph(result::stream::end_capture(stream.0)?);
        let mut exec = std::ptr::null_mut();
        sys::cuGraphInstantiateWithFlags(&mut exec, graph.0, 0).result()?;
        Ok(Exec(exec))
    }
}

const LOCAL: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

#[test]
fn a_graph_does_again_what_was_captured() {
    let session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let module = Module::new().unwrap();
    let kernel = module.function("silu_mul_float").unwrap();
    let (one, two) = (Stream::new().unwrap(), Stream::new().unwrap());
    let (fork, join) = (Event::new().unwrap(), Event::new().unwrap());
    let pinned = Pinned::new(128).unwrap();
    let (gate, up) = (Memory::of(&[0f32; 16]).unwrap(), Memory::of(&[0f32; 16]).unwrap());
    pinned.floats(32).fill(1.0);
    begin(&one, LOCAL).unwrap();
    gate.write(&pinned.floats(32)[..16], &one).unwrap();
    fork.record(&one).unwrap();
    fork.holds(&two).unwrap();
    up.write(&pinned.floats(32)[16..], &two).unwrap();
    join.record(&two).unwrap();
    join.holds(&one).unwrap();
    silu_mul(kernel, &gate, &up, 16, &one).unwrap();
    let exec = end(&one).unwrap();
    assert_eq!(session.graphs(), (1, 0));
    assert_eq!(gate.read::<f32>(16).unwrap(), [0.0; 16]);
    for x in [2f32, -1.0] {
        pinned.floats(32).fill(x);
        // SAFETY: both handles are alive.
        unsafe { result::graph::launch(exec.0, two.0).unwrap() };
        two.synchronise().unwrap();
        for found in gate.read::<f32>(16).unwrap() {
            assert!((found - silu(x) * x).abs() < 1e-6);
        }
    }
    assert_eq!(session.graphs(), (1, 2));
    session.configure("");
    assert_eq!(session.graphs(), (0, 0));
}

#[test]
fn what_a_capture_forbids_fails_and_spoils_it() {
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let (one, two) = (Stream::new().unwrap(), Stream::new().unwrap());
    let (event, memory) = (Event::new().unwrap(), Memory::of(&[0f32]).unwrap());
    let unsupported = Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    let forbidden: [(&dyn Fn() -> Result<()>, Code); 7] = [
        (&|| one.synchronise(), unsupported),
        (&|| Memory::new(4).map(drop), unsupported),
        (&|| result::ctx::synchronize(), unsupported),
        (&|| memory.write(&[1f32], &one), unsupported),
        (&|| memory.read::<f32>(1).map(drop), unsupported),
        (
            // SAFETY: the event is destroyed only when `event` is dropped, at the end of the test.
            &|| event.record(&one).and_then(|()| unsafe { result::event::query(event.0) }),
            Code::CUDA_ERROR_CAPTURED_EVENT,
        ),
        (
            &|| {
                event.record(&two)?;
                event.holds(&one)
            },
            Code::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
        ),
    ];
    for (i, (call, code)) in forbidden.iter().enumerate() {
        begin(&one, LOCAL).unwrap();
        assert_eq!(call().unwrap_err().0, *code, "{i}");
        assert_eq!(end(&one).err().unwrap().0, Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "{i}");
        one.synchronise().unwrap();
    }
    // A relaxed capture allows allocation. Another thread may do what is forbidden only on this one.
    begin(&one, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    drop(Memory::new(4).unwrap());
    end(&one).unwrap();
    let mut context = std::ptr::null_mut();
    // SAFETY: there is room for it.
    unsafe { sys::cuCtxGetCurrent(&mut context).result().unwrap() };
    let context = context as usize;
    let elsewhere = || {
        std::thread::spawn(move || {
            // SAFETY: the handle is alive.
            unsafe { result::ctx::set_current(context as sys::CUcontext) }.unwrap();
            Memory::new(4).map(drop)
        })
        .join()
        .unwrap()
    };
    begin(&one, LOCAL).unwrap();
    elsewhere().unwrap();
    end(&one).unwrap();
    begin(&one, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    assert_eq!(elsewhere().unwrap_err().0, unsupported);
    assert!(end(&one).is_err());
}

#[test]
fn a_branch_has_to_come_back() {
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let (one, two) = (Stream::new().unwrap(), Stream::new().unwrap());
    let (event, memory) = (Event::new().unwrap(), Memory::of(&[0f32]).unwrap());
    begin(&one, LOCAL).unwrap();
    event.record(&one).unwrap();
    event.holds(&two).unwrap();
    // SAFETY: the handles are alive.
    unsafe { result::memset_d8_async(memory.0, 1, 4, two.0).unwrap() };
    assert_eq!(end(&one).err().unwrap().0, Code::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    // SAFETY: the handles are alive.
    let status = unsafe { result::stream::is_capturing(two.0) }.unwrap();
    assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
}
