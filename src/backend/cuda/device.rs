//! Devices in use: what all caches and engines on one share.

use super::context::{Context, Current};
use super::cublaslt::Handle as Blas;
use super::driver::check;
use super::kernels::Kernels;
use super::machine;
use super::partition::{Partition, Partitions};
use crate::backend::device::DeviceInfo;
use crate::bail;
use crate::error::Result;
use cudarc::cublaslt::sys::cublasLtHandle_t;
use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute as Attribute};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Oldest architecture that the kernels are written for (sm_80).
const OLDEST_ARCHITECTURE: u32 = 80;

/// Describes a device. NOT_FOUND if there is none with this ordinal.
pub fn info(ordinal: i32) -> Result<DeviceInfo> {
    let handle = machine::handle(ordinal)?;
    let mut name = [0u8; 256];
    let mut total_bytes = 0;
    // SAFETY: each writes into room of the size that it is told, or of its type.
    unsafe {
        check(
            sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, handle),
            "ask for the name of a CUDA device",
        )?;
        check(sys::cuDeviceTotalMem_v2(&mut total_bytes, handle), "ask for the memory of a CUDA device")?;
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    // The context is there afterwards only if somebody else holds it.
    let device = Device::open(ordinal)?;
    Ok(DeviceInfo {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        uuid: machine::written(&machine::uuid(handle)?),
        compute_capability: device.architecture,
        numa_node: machine::attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID)
            .map_or(0, |node| node.max(0) as u32),
        total_bytes: total_bytes as u64,
        free_bytes: device.free_bytes()?,
    })
}

/// A device in use: its primary context, its kernels and its cuBLASLt handle, shared by all caches and engines there.
pub struct Device {
    context: Arc<Context>,
    /// Compute capability: major * 10 + minor.
    pub architecture: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    kernels: Mutex<Kernels>,
    partitions: Mutex<Partitions>,
    /// None until first use; then None inside if there is no usable cuBLASLt.
    blas: Mutex<Option<Option<Blas>>>,
}

impl Device {
    /// Opens a device, or returns the open one. NOT_FOUND, or UNSUPPORTED if its driver is too old.
    pub fn open(ordinal: i32) -> Result<Arc<Device>> {
        static OPEN: Mutex<Vec<Weak<Device>>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|device| device.strong_count() > 0);
        if let Some(device) = open.iter().filter_map(Weak::upgrade).find(|device| device.ordinal() == ordinal) {
            return Ok(device);
        }
        let context = Arc::new(Context::open(ordinal)?);
        let major = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let device = Arc::new(Device {
            context,
            architecture: (major * 10 + minor) as u32,
            multiprocessors: multiprocessors as u32,
            kernels: Mutex::default(),
            partitions: Mutex::default(),
            blas: Mutex::default(),
        });
        open.push(Arc::downgrade(&device));
        Ok(device)
    }

    /// Opens the device with a UUID; ordinals may differ between processes. NOT_FOUND if it is not visible here.
    pub fn of_uuid(uuid: &[u8; 16]) -> Result<Arc<Device>> {
        for ordinal in 0..machine::all()? {
            if machine::uuid(machine::handle(ordinal)?)? == *uuid {
                return Device::open(ordinal);
            }
        }
        bail!(NotFound, "the CUDA device {} is not visible to this process", machine::written(uuid))
    }

    /// Ordinal of the device among those visible to this process.
    pub fn ordinal(&self) -> i32 {
        self.context.ordinal
    }

    /// UUID of the device, the same in every process.
    pub fn uuid(&self) -> Result<[u8; 16]> {
        machine::uuid(self.context.handle)
    }

    pub(super) fn context(&self) -> sys::CUcontext {
        self.context.raw
    }

    pub(super) fn attribute(&self, which: Attribute) -> Result<i32> {
        self.context.attribute(which)
    }

    /// Makes the device's context current on this thread while the result lives, and restores the host's own afterwards.
    pub(super) fn enter(&self) -> Result<Current> {
        self.context.enter()
    }

    /// Free device memory in bytes, as the driver reports it now.
    pub fn free_bytes(&self) -> Result<u64> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "ask for free memory of a CUDA device")?;
        Ok(free as u64)
    }

    /// Loads the kernels unless they are loaded. UNSUPPORTED if this build has none for the device.
    pub fn load_kernels(&self) -> Result<()> {
        let _current = self.enter()?;
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if kernels.are_loaded() {
            return Ok(());
        }
        if self.architecture < OLDEST_ARCHITECTURE {
            bail!(
                Unsupported,
                "CUDA device {} has compute capability {}.{}: expected 8.0 or newer",
                self.ordinal(),
                self.architecture / 10,
                self.architecture % 10
            );
        }
        kernels.load(&self.context)
    }

    /// The cuBLASLt handle for this device, valid while `self` lives. None without a usable cuBLASLt.
    pub(super) fn blas(&self) -> Result<Option<cublasLtHandle_t>> {
        let _current = self.enter()?;
        let mut handle = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = match &mut *handle {
            Some(known) => known,
            unknown => unknown.insert(Blas::new()?),
        };
        Ok(handle.as_ref().map(Blas::raw))
    }

    pub(super) fn raw(&self) -> CUdevice {
        self.context.handle
    }

    /// A partition of about `percent` of the multiprocessors. See [`Partitions::get`].
    pub(super) fn partition(&self, percent: u32, leaving: u32) -> Result<Arc<Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).get(&self.context, percent, leaving)
    }

    /// A kernel that may use `shared` bytes of dynamic shared memory. cuLaunchKernel runs it in the stream's context.
    pub(super) fn kernel(&self, name: &str, shared: u32) -> Result<sys::CUfunction> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner).get(&self.context, name, shared)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(_current) = self.enter() {
            *self.blas.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
            self.kernels.get_mut().unwrap_or_else(PoisonError::into_inner).unload();
        }
    }
}
