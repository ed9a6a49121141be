//! Loads the driver and wraps its objects in owning types.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};

pub type Result<T> = std::result::Result<T, DriverError>;
pub type Code = sys::CUresult;

pub struct Driver {
    configure: unsafe extern "C" fn(*const c_char) -> c_int,
    calls: unsafe extern "C" fn() -> u64,
    captures: unsafe extern "C" fn() -> u64,
    replays: unsafe extern "C" fn() -> u64,
    leaks: unsafe extern "C" fn(*mut c_char, usize) -> c_int,
}

/// Path of the driver beside the test binary, where cargo puts it.
pub fn path() -> PathBuf {
    std::env::current_exe().expect("a path").with_file_name("libcuda.so")
}

pub fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        // SAFETY: this is the driver of this workspace, whose functions have these types.
        unsafe {
            let library = Library::open(Some(path()), RTLD_NOW | RTLD_GLOBAL).expect("the driver loads");
            let driver = Driver {
                configure: *library.get(b"simulated_cuda_configure").expect("it is there"),
                calls: *library.get(b"simulated_cuda_calls").expect("it is there"),
                captures: *library.get(b"simulated_cuda_captures").expect("it is there"),
                replays: *library.get(b"simulated_cuda_replays").expect("it is there"),
                leaks: *library.get(b"simulated_cuda_leaks").expect("it is there"),
            };
            std::mem::forget(library);
            driver
        }
    })
}

/// Exclusive use of the driver by one test, because settings apply to the whole process.
pub struct Session(#[allow(dead_code)] MutexGuard<'static, ()>);

pub fn session(settings: &str) -> Session {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let session = Session(guard);
    session.configure(&format!("reset {settings}"));
    session
}

impl Session {
    pub fn configure(&self, settings: &str) {
        let text = CString::new(settings).expect("no NUL");
        // SAFETY: the text ends with NUL.
        assert_eq!(unsafe { (driver().configure)(text.as_ptr()) }, 0, "{settings}");
    }

    pub fn calls(&self) -> u64 {
        // SAFETY: the function takes no arguments.
        unsafe { (driver().calls)() }
    }

    /// Number of captures begun and of graphs launched.
    pub fn graphs(&self) -> (u64, u64) {
        // SAFETY: the functions take no arguments.
        unsafe { ((driver().captures)(), (driver().replays)()) }
    }

    pub fn leaks(&self) -> String {
        let mut text = vec![0u8; 4096];
        // SAFETY: the buffer has the size that is passed.
        unsafe { (driver().leaks)(text.as_mut_ptr().cast(), text.len()) };
        let end = text.iter().position(|byte| *byte == 0).expect("it ends");
        String::from_utf8(text[..end].to_vec()).expect("text")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.leaks(), "");
        }
    }
}

/// A device's primary context, made current on the thread that created this.
pub struct Gpu {
    pub device: i32,
    pub context: sys::CUcontext,
}

impl Gpu {
    pub fn new(ordinal: i32) -> Result<Gpu> {
        result::init()?;
        let device = result::device::get(ordinal)?;
        // SAFETY: the context is released on drop.
        let gpu = Gpu { device, context: unsafe { result::primary_ctx::retain(device)? } };
        gpu.enter()?;
        Ok(gpu)
    }

    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context is alive.
        unsafe { result::ctx::set_current(self.context) }
    }
}

/// Defines owning types: each has a handle and a function that releases it.
macro_rules! owner {
    ($name:ident, $type:ty, $end:path) => {
        pub struct $name(pub $type);
        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: this module created the handle and releases it once.
                let _ = unsafe { $end(self.0) };
            }
        }
    };
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: retained once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

owner!(Memory, sys::CUdeviceptr, result::free_sync);
owner!(Pinned, *mut c_void, result::free_host);
owner!(Stream, sys::CUstream, result::stream::destroy);
owner!(Event, sys::CUevent, result::event::destroy);
owner!(Module, sys::CUmodule, result::module::unload);
owner!(Graph, sys::CUgraph, result::graph::destroy);
owner!(Exec, sys::CUgraphExec, result::graph::exec_destroy);

impl Memory {
    pub fn new(bytes: usize) -> Result<Memory> {
        // SAFETY: the memory is freed on drop.
        unsafe { result::malloc_sync(bytes) }.map(Memory)
    }
    pub fn of<T>(data: &[T]) -> Result<Memory> {
        let memory = Memory::new(size_of_val(data))?;
        // SAFETY: the memory is as large as the data.
        unsafe { result::memcpy_htod_sync(memory.0, data)? };
        Ok(memory)
    }
    pub fn read<T: Copy + Default>(&self, n: usize) -> Result<Vec<T>> {
        let mut out = vec![T::default(); n];
        // SAFETY: the memory is as large as the data.
        unsafe { result::memcpy_dtoh_sync(&mut out, self.0)? };
        Ok(out)
    }
    /// Submits a copy from `data` to a stream.
    pub fn write<T>(&self, data: &[T], stream: &Stream) -> Result<()> {
        // SAFETY: the memory is as large, and the data lives until the stream has run.
        unsafe { result::memcpy_htod_async(self.0, data, stream.0) }
    }
}

impl Pinned {
    pub fn new(bytes: usize) -> Result<Pinned> {
        // SAFETY: the memory is freed on drop.
        unsafe { result::malloc_host(bytes, 0) }.map(Pinned)
    }
    #[allow(clippy::mut_from_ref)]
    pub fn floats(&self, n: usize) -> &mut [f32] {
        // SAFETY: the memory is page-aligned and large enough in each test.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast(), n) }
    }
}

impl Stream {
    pub fn new() -> Result<Stream> {
        result::stream::create(result::stream::StreamKind::NonBlocking).map(Stream)
    }
    pub fn synchronise(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.0) }
    }
}

impl Event {
    pub fn new() -> Result<Event> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map(Event)
    }
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { result::event::record(self.0, stream.0) }
    }
    pub fn holds(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { result::stream::wait_event(stream.0, self.0, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
    }
}

impl Module {
    pub fn new() -> Result<Module> {
        // SAFETY: the name ends with NUL.
        unsafe { result::module::load_data(c"simulated".as_ptr().cast()) }.map(Module)
    }
    pub fn function(&self, name: &str) -> Result<sys::CUfunction> {
        // SAFETY: the module is alive.
        unsafe { result::module::get_function(self.0, CString::new(name).expect("no NUL")) }
    }
}

/// Submits gate = silu(gate) * up over n floats to a stream.
pub fn silu_mul(function: sys::CUfunction, gate: &Memory, up: &Memory, n: u32, stream: &Stream) -> Result<()> {
    let (mut gate, mut up, mut n, mut rows) = (gate.0, up.0, n, 1u32);
    let mut params: [*mut c_void; 6] = [
        (&raw mut gate).cast(),
        (&raw mut n).cast(),
        (&raw mut up).cast(),
        (&raw mut n).cast(),
        (&raw mut rows).cast(),
        (&raw mut n).cast(),
    ];
    let grid = ((n / 4).div_ceil(64), 1, 1);
    // SAFETY: the arguments match the kernel, and its memory is large enough.
    unsafe { result::launch_kernel(function, grid, (64, 1, 1), 0, stream.0, &mut params) }
}

pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
