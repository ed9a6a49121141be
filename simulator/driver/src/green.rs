//! Green contexts: subsets of a device's multiprocessors, and the streams whose kernels run on them.

use crate::state::State;
use crate::*;

/// CU_DEV_RESOURCE_TYPE_SM
pub const MULTIPROCESSORS: i32 = 1;

/// One bit per multiprocessor.
pub type Set = [u64; 4];

/// CUdevResource of CUDA 13.0, with this driver's contents in its private part.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Resource {
    kind: i32,
    device: u32,
    /// Identifies the split that made this resource; 0 if it is all of a device or green context.
    split: u64,
    set: Set,
    private: [u8; 48],
    count: u32,
    least: u32,
    alignment: u32,
    more: [u32; 9],
}

const _: () = assert!(size_of::<Resource>() == 144 && std::mem::offset_of!(Resource, count) == 96);

pub struct Green {
    /// The primary context, which the green context retains.
    pub context: usize,
    pub device: usize,
    pub set: Set,
}

pub fn count(set: &Set) -> u32 {
    set.iter().map(|word| word.count_ones()).sum()
}

/// Removes the first `n` multiprocessors of a set and returns them.
fn take(set: &mut Set, n: u32) -> Set {
    let mut out = Set::default();
    for bit in (0..256).filter(|bit| set[bit / 64] >> (bit % 64) & 1 == 1).take(n as usize).collect::<Vec<_>>() {
        out[bit / 64] |= 1 << (bit % 64);
        set[bit / 64] &= !(1 << (bit % 64));
    }
    out
}

impl State {
    /// Returns the minimum size of a partition and the multiple to which sizes are rounded. The values follow the
    /// guideline in CUDA's documentation for each compute capability.
    fn granularity(&self, alone: bool) -> (u32, u32) {
        match self.settings.compute / 10 {
            _ if alone => (2, 2),
            ..=6 => (1, 1),
            7 => (2, 2),
            8 => (4, 2),
            _ => (8, 8),
        }
    }

    fn resource(&self, device: usize, split: u64, set: Set) -> Resource {
        let (least, alignment) = self.granularity(false);
        let (private, more) = ([0; 48], [0; 9]);
        let device = device as u32;
        Resource { kind: MULTIPROCESSORS, device, split, set, private, count: count(&set), least, alignment, more }
    }

    pub fn whole(&self, device: usize) -> Resource {
        let mut all = [u64::MAX; 4];
        self.resource(device, 0, take(&mut all, self.settings.sms as u32))
    }

    pub fn of_green(&self, handle: usize) -> Result<Resource> {
        let green = self.greens.get(&handle).ok_or(INVALID_CONTEXT)?;
        Ok(self.resource(green.device, 0, green.set))
    }

    /// Splits a resource into at most `most` equal groups of at least this many multiprocessors, and the rest.
    pub fn split(
        &mut self,
        input: &Resource,
        least: u32,
        flags: u32,
        most: usize,
    ) -> Result<(Vec<Resource>, Resource)> {
        if input.kind != MULTIPROCESSORS {
            return Err(INVALID_RESOURCE_TYPE);
        }
        if flags > 3 {
            return Err(INVALID_VALUE);
        }
        // The result of a split cannot be split again.
        if input.split != 0 || count(&input.set) != input.count {
            return Err(INVALID_RESOURCE_CONFIGURATION);
        }
        let (smallest, alignment) = self.granularity(flags & 1 != 0);
        let size = least.max(smallest).next_multiple_of(alignment);
        let possible = (input.count / size) as usize;
        if possible == 0 {
            return Err(INVALID_RESOURCE_CONFIGURATION);
        }
        let (split, mut rest) = (self.handle() as u64, input.set);
        let groups = (0..possible.min(most)).map(|_| take(&mut rest, size)).collect::<Vec<_>>();
        let groups = groups.into_iter().map(|set| self.resource(input.device as usize, split, set)).collect();
        Ok((groups, self.resource(input.device as usize, split, rest)))
    }

    /// Combines resources for a descriptor. All must come from the same split.
    pub fn described(&self, resources: &[Resource]) -> Result<(usize, Set)> {
        let first = resources.first().ok_or(INVALID_VALUE)?;
        let mut all = Set::default();
        for resource in resources {
            if resource.kind != MULTIPROCESSORS {
                return Err(INVALID_RESOURCE_TYPE);
            }
            let alike = (resource.device, resource.split) == (first.device, first.split);
            let overlaps = all.iter().zip(&resource.set).any(|(a, b)| a & b != 0);
            if !alike || overlaps || count(&resource.set) != resource.count || resource.count == 0 {
                return Err(INVALID_RESOURCE_CONFIGURATION);
            }
            all.iter_mut().zip(&resource.set).for_each(|(a, b)| *a |= b);
        }
        Ok((first.device as usize, all))
    }

    /// Number of multiprocessors of a green context, or of the device for None. Returns None if the green context is
    /// destroyed.
    pub fn multiprocessors_of(&self, green: Option<usize>) -> Option<u32> {
        match green {
            Some(green) => self.greens.get(&green).map(|green| count(&green.set)),
            None => Some(self.settings.sms as u32),
        }
    }
}
