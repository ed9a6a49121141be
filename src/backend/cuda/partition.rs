//! Partitions of a device's multiprocessors (SMs) by green contexts: prefill and decode run side by side, each on its own.
//!
//! CUDA's documentation of green contexts, and the consequences for this backend:
//!
//! - A green context belongs to the primary context of its device and shares its memory, so nothing has to be copied.
//! - A stream of cuGreenCtxStreamCreate works whichever context is current, so the primary one stays current. Making the
//!   green context current would bind it to one thread at a time.
//! - A kernel runs in the context of its stream. Functions of a module (cuModuleGetFunction) belong to the context that the
//!   module was loaded into; kernels of a library (cuLibraryGetKernel) to none, and cuLaunchKernel takes the stream's.
//!   That is why `device` loads kernels as a library.
//! - A recorded kernel stays in the context that it was recorded in, wherever its graph is launched, so a change of
//!   partition needs new recordings. A graph runs with the priority of the stream that it is launched into.
//! - Partitions are disjoint only if they come from one split. So the device is split once into the smallest groups that
//!   the driver offers, and a partition consists of some of these.
//! - Copy engines, the L2 cache and memory bandwidth are not partitioned.

use super::context::Context;
use super::driver::{check, has, ready};
use crate::bail;
use crate::error::Result;
use cudarc::driver::sys::{self, CUdevResource, CUdevResourceType as Kind};
use std::sync::{Arc, Weak};

/// First driver with streams of green contexts: that of CUDA 12.5.
const OLDEST_DRIVER: i32 = 12050;

const USED: &[&str] = &[
    "cuDeviceGetDevResource",
    "cuDevSmResourceSplitByCount",
    "cuDevResourceGenerateDesc",
    "cuGreenCtxCreate",
    "cuGreenCtxDestroy",
    "cuGreenCtxStreamCreate",
];

/// Some multiprocessors of a device, used by all engines with the same share.
pub struct Partition {
    device: Arc<Context>,
    context: sys::CUgreenCtx,
    percent: u32,
    /// Indices of the device's groups.
    groups: Vec<usize>,
    pub(super) multiprocessors: u32,
}

// SAFETY: the handle is used for making streams, which the driver allows from any thread, and given back.
unsafe impl Send for Partition {}
// SAFETY: as above.
unsafe impl Sync for Partition {}

/// A device's groups of multiprocessors, and the partitions of them that are in use.
#[derive(Default)]
pub(super) struct Partitions {
    groups: Vec<CUdevResource>,
    used: Vec<Weak<Partition>>,
}

// SAFETY: plain data of the driver's, which any thread may hand to it.
unsafe impl Send for Partitions {}

impl Partitions {
    /// A partition of about `percent` of the device's multiprocessors, as close as whole groups allow; engines that ask for the
    /// same share get the same partition. Unused groups are taken first, among them those of the share `leaving` that the
    /// caller gives up, if nobody else uses it. So shares that add up to 100 % do not overlap.
    pub fn get(&mut self, device: &Arc<Context>, percent: u32, leaving: u32) -> Result<Arc<Partition>> {
        supported(device)?;
        let _current = device.enter()?;
        if self.groups.is_empty() {
            self.groups = split(device)?;
        }
        self.used.retain(|partition| partition.strong_count() > 0);
        let used: Vec<Arc<Partition>> = self.used.iter().filter_map(Weak::upgrade).collect();
        if let Some(known) = used.iter().find(|partition| partition.percent == percent) {
            return Ok(known.clone());
        }
        let sizes: Vec<u32> = self.groups.iter().map(size).collect();
        let mut users = vec![0; sizes.len()];
        // One is the caller's, one is `used`.
        let stays = |partition: &&Arc<Partition>| partition.percent != leaving || Arc::strong_count(partition) > 2;
        used.iter().filter(stays).flat_map(|partition| &partition.groups).for_each(|group| users[*group] += 1);
        let groups = choose(&sizes, &users, percent);
        let resources: Vec<CUdevResource> = groups.iter().map(|group| self.groups[*group]).collect();
        let multiprocessors = groups.iter().map(|group| sizes[*group]).sum();
        let context = green(device, resources)?;
        let partition = Arc::new(Partition { device: device.clone(), context, percent, groups, multiprocessors });
        self.used.push(Arc::downgrade(&partition));
        Ok(partition)
    }
}

impl Partition {
    pub(super) fn raw(&self) -> sys::CUgreenCtx {
        self.context
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: made by `Partitions::get`, destroyed once; its streams hold it, so they are gone.
            unsafe { sys::cuGreenCtxDestroy(self.context) };
        }
    }
}

fn supported(device: &Context) -> Result<()> {
    let version = ready()?;
    if version < OLDEST_DRIVER || USED.iter().any(|name| !has(name)) {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        bail!(
            Unsupported,
            "a part of the multiprocessors of CUDA device {}: the driver is for CUDA {major}.{minor}, expected one for 12.5 or newer",
            device.ordinal
        );
    }
    Ok(())
}

fn size(resource: &CUdevResource) -> u32 {
    // SAFETY: the driver made it as one of multiprocessors.
    unsafe { resource.__bindgen_anon_1.sm.smCount }
}

/// Splits a device into the smallest groups that the driver offers; the remainder is the last group.
fn split(device: &Context) -> Result<Vec<CUdevResource>> {
    let doing = format!("split the multiprocessors of CUDA device {}", device.ordinal);
    // SAFETY: numbers, of which 0 is one.
    let (mut whole, mut rest): (CUdevResource, CUdevResource) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: writes one resource.
    check(unsafe { sys::cuDeviceGetDevResource(device.handle, &mut whole, Kind::CU_DEV_RESOURCE_TYPE_SM) }, &doing)?;
    let mut n = 0;
    let nothing = std::ptr::null_mut();
    // SAFETY: without room for groups it only counts them. They are of at least one, which is rounded up.
    check(unsafe { sys::cuDevSmResourceSplitByCount(nothing, &mut n, &whole, nothing, 0, 1) }, &doing)?;
    let mut groups = vec![rest; n as usize];
    // SAFETY: there is room for n groups, and for what is left.
    let done = unsafe { sys::cuDevSmResourceSplitByCount(groups.as_mut_ptr(), &mut n, &whole, &mut rest, 0, 1) };
    check(done, &doing)?;
    groups.truncate(n as usize);
    if size(&rest) > 0 {
        groups.push(rest);
    }
    if groups.len() < 2 {
        bail!(Unsupported, "cannot {doing}: {} of them are one group", size(&whole));
    }
    Ok(groups)
}

fn green(device: &Context, mut resources: Vec<CUdevResource>) -> Result<sys::CUgreenCtx> {
    let doing = format!("use a part of the multiprocessors of CUDA device {}", device.ordinal);
    let (mut description, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
    let n = resources.len() as u32;
    // SAFETY: n resources of one split; writes one handle.
    check(unsafe { sys::cuDevResourceGenerateDesc(&mut description, resources.as_mut_ptr(), n) }, &doing)?;
    let flags = sys::CUgreenCtxCreate_flags::CU_GREEN_CTX_DEFAULT_STREAM as u32;
    // SAFETY: a descriptor that was just made; writes one handle, which Partition's drop gives back.
    check(unsafe { sys::cuGreenCtxCreate(&mut context, description, device.handle, flags) }, &doing)?;
    Ok(context)
}

/// Chooses groups whose total size is nearest to `percent`, at least one: the least used first, then in order.
fn choose(sizes: &[u32], users: &[u32], percent: u32) -> Vec<usize> {
    let wanted = i64::from(percent) * sizes.iter().map(|size| i64::from(*size)).sum::<i64>();
    // Both sides are a hundred times too large, so that nothing is rounded.
    let off = |n: u32| (i64::from(n) * 100 - wanted).abs();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|group| users[*group]);
    let (mut out, mut sum) = (Vec::new(), 0);
    for group in order {
        let next = sum + sizes[group];
        if !out.is_empty() && off(next) >= off(sum) {
            break;
        }
        out.push(group);
        sum = next;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::choose;

    /// The 132 multiprocessors of an H100, in groups of 8 and a remainder.
    fn h100() -> Vec<u32> {
        let mut sizes = vec![8; 15];
        sizes.push(12);
        sizes
    }

    fn taken(percents: &[u32]) -> (Vec<u32>, u32) {
        let sizes = h100();
        let mut users = vec![0; sizes.len()];
        let of = |groups: Vec<usize>, users: &mut Vec<u32>| {
            groups.iter().for_each(|group| users[*group] += 1);
            groups.iter().map(|group| sizes[*group]).sum()
        };
        let sums = percents.iter().map(|percent| of(choose(&sizes, &users.clone(), *percent), &mut users)).collect();
        (sums, users.into_iter().max().unwrap_or(0))
    }

    #[test]
    fn shares_that_are_all_together_do_not_overlap() {
        for (percents, sums) in
            [([30, 70], [40, 92]), ([70, 30], [96, 36]), ([50, 50], [64, 68]), ([10, 90], [16, 116])]
        {
            assert_eq!(taken(&percents), (sums.to_vec(), 1), "{percents:?}");
        }
        for percent in 1..100 {
            assert_eq!(
                taken(&[percent, 100 - percent]).1,
                if (4..=95).contains(&percent) { 1 } else { 2 },
                "{percent}"
            );
        }
    }

    #[test]
    fn shares_that_are_more_overlap() {
        assert_eq!(taken(&[80, 80]), (vec![104, 108], 2));
    }

    #[test]
    fn a_small_share_is_one_group() {
        assert_eq!(taken(&[1]), (vec![8], 1));
        assert_eq!(taken(&[99]), (vec![132], 1));
    }
}
