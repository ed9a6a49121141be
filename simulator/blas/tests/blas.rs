//! Uses the library through cudarc, as cleave does.

use cudarc::cublaslt::sys::{self as lt, cublasStatus_t as Status};
use cudarc::driver::{result, sys};
use half::bf16;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{c_char, c_void};

/// Loads a library from the directory of the test binary.
fn load(name: &str) -> &'static Library {
    let path = std::env::current_exe().expect("a path").with_file_name(name);
    // SAFETY: the library belongs to this workspace.
    Box::leak(Box::new(unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.expect("it loads")))
}

fn number(library: &Library, name: &str) -> u64 {
    // SAFETY: the function has this type.
    unsafe { library.get::<unsafe extern "C" fn() -> u64>(name.as_bytes()).expect("it is there")() }
}

struct Memory(sys::CUdeviceptr);

impl Memory {
    fn of<T>(data: &[T]) -> Memory {
        // SAFETY: the memory is as large as the data.
        unsafe {
            let memory = Memory(result::malloc_sync(size_of_val(data)).expect("memory"));
            result::memcpy_htod_sync(memory.0, data).expect("a copy");
            memory
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        unsafe { result::free_sync(self.0).expect("freed") };
    }
}

fn value(i: usize) -> f32 {
    (i * 37 % 19) as f32 / 8.0 - 1.0
}

fn layout(kind: lt::cudaDataType_t, rows: usize, columns: usize, stride: usize) -> lt::cublasLtMatrixLayout_t {
    let mut layout = std::ptr::null_mut();
    // SAFETY: writes one handle.
    let made = unsafe { lt::cublasLtMatrixLayoutCreate(&mut layout, kind, rows as u64, columns as u64, stride as i64) };
    assert_eq!(made, Status::CUBLAS_STATUS_SUCCESS);
    layout
}

#[test]
fn products_are_as_documented() {
    use lt::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
    let (driver, blas) = (load("libcuda.so"), load("libcublasLt.so"));
    // SAFETY: all handles live as long as they are used; matrices are as large as their layouts.
    unsafe {
        assert!(lt::is_culib_present());
        assert_eq!(lt::cublasLtGetVersion(), 130_000);
        let mut handle = std::ptr::null_mut();
        assert_eq!(lt::cublasLtCreate(&mut handle), Status::CUBLAS_STATUS_NOT_INITIALIZED, "the driver is not ready");

        result::init().unwrap();
        let device = result::device::get(0).unwrap();
        let context = result::primary_ctx::retain(device).unwrap();
        result::ctx::set_current(context).unwrap();
        assert_eq!(lt::cublasLtCreate(&mut handle), Status::CUBLAS_STATUS_SUCCESS);
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();

        // y[m, n] += x[m, k] · w[n, k]ᵀ, all row-major, with gaps between the rows of x and y.
        let (m, n, k, x_stride, y_stride) = (13, 21, 40, 48, 25);
        let x: Vec<bf16> = (0..m * x_stride).map(|i| bf16::from_f32(value(i))).collect();
        let w: Vec<bf16> = (0..n * k).map(|i| bf16::from_f32(value(i + 5))).collect();
        let before: Vec<f32> = (0..m * y_stride).map(|i| value(i + 11)).collect();
        let (on_x, on_w, on_y) = (Memory::of(&x), Memory::of(&w), Memory::of(&before));
        let workspace = Memory::of(&[1u8; 64 << 10]);

        let mut operation = std::ptr::null_mut();
        let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        assert_eq!(lt::cublasLtMatmulDescCreate(&mut operation, compute, CUDA_R_32F), Status::CUBLAS_STATUS_SUCCESS);
        let of_w = layout(CUDA_R_16BF, k, n, k);
        let of_x = layout(CUDA_R_16BF, k, m, x_stride);
        let of_y = layout(CUDA_R_32F, n, m, y_stride);
        let mut preference = std::ptr::null_mut();
        assert_eq!(lt::cublasLtMatmulPreferenceCreate(&mut preference), Status::CUBLAS_STATUS_SUCCESS);
        let most = lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let bytes = 64usize << 10;
        let set = |size| lt::cublasLtMatmulPreferenceSetAttribute(preference, most, (&raw const bytes).cast(), size);
        assert_eq!(set(4), Status::CUBLAS_STATUS_INVALID_VALUE);
        assert_eq!(set(8), Status::CUBLAS_STATUS_SUCCESS);

        let mut found: lt::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
        let mut count = 7;
        let mut ask = |y, count: &mut i32| {
            let (o, p, found) = (operation, preference, &mut found);
            lt::cublasLtMatmulAlgoGetHeuristic(handle, o, of_w, of_x, y, y, p, 1, found, count)
        };
        // The shapes do not match unless A is transposed.
        assert_eq!(ask(of_y, &mut count), Status::CUBLAS_STATUS_INVALID_VALUE);
        let transposed = 1i32;
        let which = lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        let set = lt::cublasLtMatmulDescSetAttribute(operation, which, (&raw const transposed).cast(), 4);
        assert_eq!(set, Status::CUBLAS_STATUS_SUCCESS);
        assert_eq!(ask(of_x, &mut count), Status::CUBLAS_STATUS_INVALID_VALUE);
        assert_eq!(count, 0);
        assert_eq!(ask(of_y, &mut count), Status::CUBLAS_STATUS_SUCCESS);
        assert_eq!((count, found.state), (1, Status::CUBLAS_STATUS_SUCCESS));

        let multiply = |y: u64, workspace: u64| {
            let (one, algorithm) = (1f32, &found.algo);
            let factor = (&raw const one).cast::<c_void>();
            let (a, b, c, d) = (on_w.0 as *const _, on_x.0 as *const _, y as *const _, y as *mut _);
            let (room, stream) = (workspace as *mut _, stream.cast());
            lt::cublasLtMatmul(
                handle, operation, factor, a, of_w, b, of_x, factor, c, of_y, d, of_y, algorithm, room, bytes, stream,
            )
        };
        assert_eq!(multiply(on_y.0 + 16, workspace.0), Status::CUBLAS_STATUS_INVALID_VALUE, "y is not aligned");
        assert_eq!(multiply(on_y.0, 0), Status::CUBLAS_STATUS_INVALID_VALUE, "there is no workspace");
        assert_eq!(multiply(on_y.0, workspace.0), Status::CUBLAS_STATUS_SUCCESS);
        result::stream::synchronize(stream).unwrap();
        let mut y = vec![0f32; m * y_stride];
        result::memcpy_dtoh_sync(&mut y, on_y.0).unwrap();
        for (i, (found, before)) in y.iter().zip(&before).enumerate() {
            let (row, column) = (i / y_stride, i % y_stride);
            let product = |j: usize| f64::from(x[row * x_stride + j].to_f32()) * f64::from(w[column * k + j].to_f32());
            let sum = if column < n { (0..k).map(product).sum::<f64>() } else { 0.0 };
            let expected = sum + f64::from(*before);
            assert!((f64::from(*found) - expected).abs() < 1e-4, "row {row}, column {column}: {found}, not {expected}");
        }
        assert_eq!(number(blas, "simulated_cublaslt_matmuls"), 1);
        assert_eq!(number(blas, "simulated_cublaslt_heuristics"), 3);

        // A bias of y's type, added to every row of y (a column of D).
        let set = |which, value: *const c_void, size| lt::cublasLtMatmulDescSetAttribute(operation, which, value, size);
        let which = lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE;
        let (epilogue, relu) = (lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32, 2u32);
        assert_eq!(set(which, (&raw const relu).cast(), 4), Status::CUBLAS_STATUS_NOT_SUPPORTED);
        assert_eq!(set(which, (&raw const epilogue).cast(), 4), Status::CUBLAS_STATUS_SUCCESS);
        assert_eq!(multiply(on_y.0, workspace.0), Status::CUBLAS_STATUS_INVALID_VALUE, "an algorithm without a bias");
        let bias: Vec<f32> = (0..n).map(|i| value(i + 3)).collect();
        let floats = Memory::of(&bias);
        let narrow = Memory::of(&bias.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>());
        let of_narrow = layout(CUDA_R_16BF, n, m, y_stride);
        let which = lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        for (of_y, bias_at, wide) in [(of_y, &floats, true), (of_narrow, &narrow, false)] {
            let (none, at) = (0u64, bias_at.0);
            let on_y = Memory::of(&before);
            let workspace = Memory::of(&[1u8; (64 << 10) + 4 * 21]);
            let bytes = (64usize << 10) + 4 * n;
            let most = lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            lt::cublasLtMatmulPreferenceSetAttribute(preference, most, (&raw const bytes).cast(), 8);
            let mut found: lt::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            let (o, p, mut count) = (operation, preference, 0);
            let asked =
                lt::cublasLtMatmulAlgoGetHeuristic(handle, o, of_w, of_x, of_y, of_y, p, 1, &mut found, &mut count);
            assert_eq!((asked, count), (Status::CUBLAS_STATUS_SUCCESS, 1));
            let multiply = || {
                let (one, zero, algorithm) = (1f32, 0f32, &found.algo);
                let (alpha, beta) = ((&raw const one).cast::<c_void>(), (&raw const zero).cast::<c_void>());
                let (a, b, c, d) = (on_w.0 as *const _, on_x.0 as *const _, on_y.0 as *const _, on_y.0 as *mut _);
                let (room, stream) = (workspace.0 as *mut _, stream.cast());
                lt::cublasLtMatmul(
                    handle, operation, alpha, a, of_w, b, of_x, beta, c, of_y, d, of_y, algorithm, room, bytes, stream,
                )
            };
            assert_eq!(set(which, (&raw const none).cast(), 8), Status::CUBLAS_STATUS_SUCCESS);
            assert_eq!(multiply(), Status::CUBLAS_STATUS_INVALID_VALUE, "there is no bias");
            assert_eq!(set(which, (&raw const at).cast(), 8), Status::CUBLAS_STATUS_SUCCESS);
            assert_eq!(multiply(), Status::CUBLAS_STATUS_SUCCESS);
            result::stream::synchronize(stream).unwrap();
            let y: Vec<f32> = if wide {
                let mut y = vec![0f32; m * y_stride];
                result::memcpy_dtoh_sync(&mut y, on_y.0).unwrap();
                y
            } else {
                let mut y = vec![bf16::ZERO; m * y_stride];
                result::memcpy_dtoh_sync(&mut y, on_y.0).unwrap();
                y.into_iter().map(bf16::to_f32).collect()
            };
            for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                let product = |j: usize| x[row * x_stride + j].to_f32() * w[column * k + j].to_f32();
                let expected = (0..k).map(product).sum::<f32>() + bias[column];
                let (found, off) = (y[row * y_stride + column], if wide { 1e-4 } else { 0.01 * expected.abs() + 1e-3 });
                assert!((found - expected).abs() < off, "row {row}, column {column}: {found}, not {expected}");
            }
        }

        // A destroyed handle is unknown, and a handle of one kind is not accepted as another.
        assert_eq!(lt::cublasLtMatrixLayoutDestroy(operation.cast()), Status::CUBLAS_STATUS_INVALID_VALUE);
        for layout in [of_w, of_x, of_y, of_narrow] {
            assert_eq!(lt::cublasLtMatrixLayoutDestroy(layout), Status::CUBLAS_STATUS_SUCCESS);
        }
        assert_eq!(multiply(on_y.0, workspace.0), Status::CUBLAS_STATUS_INVALID_VALUE);
        assert_eq!(lt::cublasLtMatmulPreferenceDestroy(preference), Status::CUBLAS_STATUS_SUCCESS);
        assert_eq!(lt::cublasLtMatmulDescDestroy(operation), Status::CUBLAS_STATUS_SUCCESS);
        assert_eq!(number(blas, "simulated_cublaslt_alive"), 1);
        assert_eq!(lt::cublasLtDestroy(handle), Status::CUBLAS_STATUS_SUCCESS);
        assert_eq!(number(blas, "simulated_cublaslt_alive"), 0);
        drop((on_x, on_w, on_y, workspace, floats, narrow));
        result::stream::destroy(stream).unwrap();
        result::primary_ctx::release(device).unwrap();
        let leaks = driver.get::<unsafe extern "C" fn(*mut c_char, usize) -> i32>(b"simulated_cuda_leaks").unwrap();
        assert_eq!(leaks(std::ptr::null_mut(), 0), 0);
    }
}
