use crate::common::*;
use cudarc::driver::{CudaContext, result, sys};
use std::ffi::CString;

#[test]
fn is_the_driver_under_the_names_that_programs_ask_for() {
    let _session = session("");
    use libloading::os::unix::{Library, RTLD_NOW};
    // SAFETY: loading has no effects; all these names load the same library.
    unsafe {
        let ours: *const () = *Library::open(Some(path()), RTLD_NOW).unwrap().get(b"cuInit").unwrap();
        let named: *const () = *Library::open(Some("libcuda.so.1"), RTLD_NOW).unwrap().get(b"cuInit").unwrap();
        let short: *const () = *Library::open(Some("libcuda.so"), RTLD_NOW).unwrap().get(b"cuInit").unwrap();
        let cudarc: *const () = *sys::culib().get(b"cuInit").unwrap();
        assert_eq!(ours, named);
        assert_eq!(ours, short);
        assert_eq!(ours, cudarc);
    }
}

#[test]
fn devices_are_as_set() {
    let session = session("devices=3 memory=12345678 driver=12080 compute=80 sms=7");
    assert_eq!(CudaContext::device_count().unwrap(), 3);
    let context = CudaContext::new(2).unwrap();
    assert_eq!(context.name().unwrap(), "Simulated CUDA device");
    assert_eq!(context.total_mem().unwrap(), 12345678);
    assert_eq!(context.compute_capability().unwrap(), (8, 0));
    assert_eq!(context.mem_get_info().unwrap(), (12345678, 12345678));
    use sys::CUdevice_attribute::*;
    for (attribute, value) in [
        (CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 7),
        (CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32),
        (CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 163 << 10),
        (CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED, 1),
        (CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, 0x12),
        (CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, 0),
        (CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED, 1),
    ] {
        assert_eq!(context.attribute(attribute).unwrap(), value, "{attribute:?}");
    }
    let (mut version, mut peer) = (0, 0);
    // SAFETY: there is room for the results.
    unsafe {
        sys::cuDriverGetVersion(&mut version).result().unwrap();
        sys::cuDeviceCanAccessPeer(&mut peer, 0, 1).result().unwrap();
    }
    assert_eq!((version, peer), (12080, 1));
    assert_ne!(context.uuid().unwrap().bytes, [0; 16]);
    assert_eq!(CudaContext::new(3).unwrap_err().0, Code::CUDA_ERROR_INVALID_DEVICE);
    drop(context);
    session.configure("devices=0");
    assert_eq!(CudaContext::device_count().unwrap_err().0, Code::CUDA_ERROR_NO_DEVICE);
}

#[test]
fn memory_through_the_safe_layer() {
    let session = session("");
    for pools in ["pools=0", "pools=1"] {
        session.configure(pools);
        let context = CudaContext::new(0).unwrap();
        assert_eq!(context.has_async_alloc(), pools == "pools=1");
        let stream = context.new_stream().unwrap();
        let data: Vec<f32> = (0..1000).map(|x| x as f32).collect();
        let on_device = stream.clone_htod(&data).unwrap();
        let mut copy = stream.alloc_zeros::<f32>(1000).unwrap();
        assert_eq!(stream.clone_dtoh(&copy).unwrap(), vec![0.0; 1000]);
        stream.memcpy_dtod(&on_device, &mut copy).unwrap();
        assert_eq!(stream.clone_dtoh(&copy).unwrap(), data);
        // SAFETY: every bit pattern is a valid float.
        let fresh = unsafe { stream.alloc::<f32>(10) }.unwrap();
        assert!(stream.clone_dtoh(&fresh).unwrap().iter().all(|x| x.is_nan()));
        drop((on_device, copy, fresh));
        context.synchronize().unwrap();
        let (free, total) = context.mem_get_info().unwrap();
        assert_eq!(free, total);
        assert!(session.leaks().contains("stream"));
    }
}

#[test]
fn memory_ends() {
    let _session = session("memory=1000000");
    let _gpu = Gpu::new(0).unwrap();
    let first = Memory::new(900_000).unwrap();
    assert_eq!(Memory::new(200_000).err().unwrap().0, Code::CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(Memory::new(usize::MAX).err().unwrap().0, Code::CUDA_ERROR_OUT_OF_MEMORY);
    let second = Memory::new(90_000).unwrap();
    drop(first);
    let _third = Memory::new(900_000).unwrap();
    // SAFETY: the driver refuses these addresses and sizes.
    unsafe {
        assert_eq!(result::free_sync(second.0 + 512).unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
        let beyond = result::memcpy_htod_sync(second.0 + 8, &[0u8; 90_000]);
        assert_eq!(beyond.unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
    }
}

#[test]
fn launches_a_kernel_in_both_orders_of_lanes() {
    let session = session("");
    for lanes in ["lanes=ascending", "lanes=reversed"] {
        session.configure(lanes);
        let _gpu = Gpu::new(0).unwrap();
        let module = Module::new().unwrap();
        let kernel = module.function("silu_mul_float").unwrap();
        assert_eq!(module.function("no_such").unwrap_err().0, Code::CUDA_ERROR_NOT_FOUND);
        let x: Vec<f32> = (0..64).map(|i| i as f32 / 8.0 - 4.0).collect();
        let (gate, up) = (Memory::of(&x).unwrap(), Memory::of(&x).unwrap());
        let stream = Stream::new().unwrap();
        silu_mul(kernel, &gate, &up, 64, &stream).unwrap();
        stream.synchronise().unwrap();
        for (found, x) in gate.read::<f32>(64).unwrap().iter().zip(&x) {
            assert!((found - silu(*x) * x).abs() < 1e-5);
        }
    }
}

#[test]
fn launches_are_checked() {
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let module = Module::new().unwrap();
    let kernel = module.function("silu_mul_float").unwrap();
    let stream = Stream::new().unwrap();
    let mut values = [0u64, 0, 0, 0, 0, 4];
    let mut params: Vec<_> = values.iter_mut().map(|x| std::ptr::from_mut(x).cast()).collect();
    let mut launch = |threads, shared| {
        // SAFETY: with 0 rows the kernel touches nothing.
        unsafe { result::launch_kernel(kernel, (1, 1, 1), (threads, 1, 1), shared, stream.0, &mut params) }
    };
    assert_eq!(launch(2048, 0).unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(launch(32, 64 << 10).unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let mut blocks = 0;
    // SAFETY: the function is alive.
    unsafe {
        assert!(result::function::set_function_attribute(kernel, most, 228 << 10).is_err());
        result::function::set_function_attribute(kernel, most, 64 << 10).unwrap();
        sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, kernel, 128, 64 << 10).result().unwrap();
        let text = CString::new("PTX").unwrap();
        let other = result::module::load_data(text.as_ptr().cast());
        assert_eq!(other.unwrap_err().0, Code::CUDA_ERROR_INVALID_IMAGE);
    }
    assert_eq!(blocks, 3);
    launch(32, 64 << 10).unwrap();
    let mut config = sys::CUlaunchConfig {
        gridDimX: 2,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream.0,
        attrs: std::ptr::null_mut(),
        numAttrs: 0,
    };
    // SAFETY: the function is alive. An all-zero attribute is ignored.
    unsafe {
        let mut cluster: sys::CUlaunchAttribute = std::mem::zeroed();
        cluster.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        (cluster.value.clusterDim.x, cluster.value.clusterDim.y, cluster.value.clusterDim.z) = (2, 1, 1);
        let mut values = [0u64, 0, 0, 0, 0, 4];
        let mut params: Vec<_> = values.iter_mut().map(|x| std::ptr::from_mut(x).cast()).collect();
        let mut launch = |config: &sys::CUlaunchConfig| {
            sys::cuLaunchKernelEx(config, kernel, params.as_mut_ptr(), std::ptr::null_mut()).result()
        };
        launch(&config).unwrap();
        (config.attrs, config.numAttrs) = (&mut cluster, 1);
        launch(&config).unwrap();
        config.gridDimX = 3;
        assert_eq!(launch(&config).unwrap_err().0, Code::CUDA_ERROR_INVALID_CLUSTER_SIZE);
    }
    stream.synchronise().unwrap();
}
