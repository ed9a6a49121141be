//! Structs that begin with `struct_size` and may grow. They are read and written so that a host and a library of
//! different versions understand each other.

use super::boundary::required;
use crate::bail;
use crate::error::Result;

/// More than any struct of this API will have. A larger struct_size was not initialised.
const PLAUSIBLE: usize = 1 << 16;

/// A struct of the API: begins with `uint32_t struct_size`, has no pointers, and all bits zero is a value of it.
///
/// # Safety
/// The above, with `repr(C)` and only integers, floats and arrays of them as fields.
pub(super) unsafe trait VersionedStruct: Copy {
    const NAME: &'static str;

    fn zeroed() -> Self {
        // SAFETY: the trait's contract.
        unsafe { std::mem::zeroed() }
    }
}

/// Marks API structs.
macro_rules! sized_struct {
    ($($name:ident),*) => { $(
        // SAFETY: repr(C), begins with struct_size, fields are plain numbers and arrays of them.
        unsafe impl $crate::ffi::versioned::VersionedStruct for $name {
            const NAME: &'static str = stringify!($name);
        }
    )* };
}
pub(super) use sized_struct;

/// The `struct_size` that the host wrote.
unsafe fn size_of_host<T: VersionedStruct>(host: *const T, name: &str) -> Result<usize> {
    // Structs are copied bytewise: an older version of one may be aligned less than ours.
    required(host.cast::<u32>(), name)?;
    // SAFETY: not NULL, so at least the first field is there by contract.
    let size = unsafe { host.cast::<u32>().read() } as usize;
    if size == 0 {
        bail!(InvalidArgument, "{name}: struct_size is 0, set it to sizeof({})", T::NAME);
    }
    if !(4..=PLAUSIBLE).contains(&size) || !size.is_multiple_of(4) {
        bail!(InvalidArgument, "{name}: struct_size {size} is not a size of {}", T::NAME);
    }
    Ok(size)
}

/// Reads a struct of the host. Fields that its version does not have are zero; fields that ours does not have must be.
pub(super) unsafe fn read<T: VersionedStruct>(host: *const T, name: &str) -> Result<T> {
    // SAFETY: the caller's contract.
    unsafe {
        let size = size_of_host(host, name)?;
        let tail = std::slice::from_raw_parts(host.cast::<u8>(), size).get(size_of::<T>()..).unwrap_or(&[]);
        if let Some(at) = tail.iter().position(|&b| b != 0) {
            bail!(
                Unsupported,
                "{name}: byte {} of {} is set, and this version knows only {} bytes of it",
                size_of::<T>() + at,
                T::NAME,
                size_of::<T>()
            );
        }
        let mut value = T::zeroed();
        let known = size.min(size_of::<T>());
        std::ptr::copy_nonoverlapping(host.cast::<u8>(), (&raw mut value).cast::<u8>(), known);
        Ok(value)
    }
}

/// [`read`], with NULL for a struct of zeros: every default.
pub(super) unsafe fn read_optional<T: VersionedStruct>(host: *const T, name: &str) -> Result<T> {
    // SAFETY: the caller's contract.
    if host.is_null() { Ok(T::zeroed()) } else { unsafe { read(host, name) } }
}

/// A struct of the host that a result will be written to, checked before the work begins.
pub(super) struct Output<T> {
    host: *mut T,
    size: usize,
}

impl<T: VersionedStruct> Output<T> {
    pub(super) unsafe fn new(host: *mut T, name: &str) -> Result<Output<T>> {
        // SAFETY: the caller's contract.
        Ok(Output { host, size: unsafe { size_of_host(host, name) }? })
    }

    /// Writes the part of `value` that the host's version has, and zeroes the fields that only the host's version has.
    /// struct_size stays.
    pub(super) unsafe fn write(self, value: &T) {
        let known = self.size.min(size_of::<T>());
        // SAFETY: valid for struct_size bytes by contract; struct_size is the first four of them.
        unsafe {
            let (to, from) = (self.host.cast::<u8>(), (&raw const *value).cast::<u8>());
            std::ptr::copy_nonoverlapping(from.add(4), to.add(4), known - 4);
            std::ptr::write_bytes(to.add(known), 0, self.size - known);
        }
    }
}

/// An array of the host that events are written to. Its elements have the size that the host's version has, and no struct_size.
pub(super) struct EventBuffer<T> {
    host: *mut T,
    stride: usize,
}

impl<T: Copy> EventBuffer<T> {
    /// `smallest` is the size of an element in the first version that had it.
    pub(super) unsafe fn new(
        host: *mut T,
        stride: usize,
        len: usize,
        smallest: usize,
        name: &str,
    ) -> Result<EventBuffer<T>> {
        if !(smallest..=PLAUSIBLE).contains(&stride) || !stride.is_multiple_of(8) {
            let of = std::any::type_name::<T>().rsplit("::").next().unwrap_or_default();
            bail!(
                InvalidArgument,
                "event_size {stride} is not a size of {of}: at least {smallest} and a multiple of 8"
            );
        }
        if len > 0 {
            required(host, name)?;
        }
        if len.checked_mul(stride).is_none_or(|bytes| bytes > isize::MAX as usize) {
            bail!(InvalidArgument, "capacity: {len} events are more than memory can hold");
        }
        Ok(EventBuffer { host, stride })
    }

    /// Writes the part of `value` that the host's version has to element `index`, and zeroes what only that version has.
    pub(super) unsafe fn write(&self, index: usize, value: &T) {
        let known = self.stride.min(size_of::<T>());
        // SAFETY: the caller's contract: `index` is below the length, and elements of `stride` bytes are the host's.
        unsafe {
            let to = self.host.cast::<u8>().add(index * self.stride);
            std::ptr::copy_nonoverlapping((&raw const *value).cast::<u8>(), to, known);
            std::ptr::write_bytes(to.add(known), 0, self.stride - known);
        }
    }
}

/// An array of structs of the host, read one by one. The struct_size of the first is the stride.
pub(super) struct Input<T> {
    host: *const T,
    stride: usize,
    len: usize,
    name: &'static str,
}

impl<T: VersionedStruct> Input<T> {
    pub(super) unsafe fn new(host: *const T, len: usize, name: &'static str) -> Result<Input<T>> {
        // SAFETY: the caller's contract.
        let stride = if len == 0 { 0 } else { unsafe { size_of_host(host, name) }? };
        if stride.checked_mul(len).is_none_or(|bytes| bytes > isize::MAX as usize) {
            bail!(InvalidArgument, "{name}: {len} elements are more than memory can hold");
        }
        Ok(Input { host, stride, len, name })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) unsafe fn get(&self, index: usize) -> Result<T> {
        debug_assert!(index < self.len);
        // SAFETY: `len` elements at `stride` from each other by contract, and index is one of them.
        unsafe {
            let host = self.host.byte_add(index * self.stride);
            let size = host.cast::<u32>().read() as usize;
            if size != self.stride {
                bail!(
                    InvalidArgument,
                    "{}[{index}]: struct_size is {size}, that of the first element is {}: they must be equal",
                    self.name,
                    self.stride
                );
            }
            read(host, self.name).map_err(|e| e.context(format_args!("{}[{index}]", self.name)))
        }
    }
}
