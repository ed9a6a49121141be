//! Memory for weights: an allocation per tensor, or one piece for all tensors that several processes share. The first
//! process loads the shared weights, later ones map them; each passes the memory on, so it stays available while any of
//! them lives.

use super::device::Device;
use super::memory::Allocation;
use super::shareable;
use crate::bail;
use crate::error::Result;
use crate::sys::handout::{self, Handout, Making};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Alignment of tensors in shared memory, the same as that of allocations.
const ALIGN: usize = 256;
/// Interval at which a waiting process checks whether the loading one has finished or died.
const LOOK: Duration = Duration::from_millis(10);

/// Memory for all weights of a model.
pub(super) struct Arena {
    /// Declared first: it is dropped before the memory that it hands out.
    handout: Mutex<Option<Handout>>,
    pub memory: Allocation,
}

/// The memory of one tensor.
pub(super) struct Weight {
    arena: Arc<Arena>,
    offset: usize,
    bytes: usize,
}

impl Weight {
    pub fn address(&self) -> u64 {
        self.arena.memory.at(self.offset, self.bytes)
    }

    pub fn memory(&self) -> (&Allocation, usize) {
        (&self.arena.memory, self.offset)
    }
}

/// Allocates memory for weights.
pub enum Depot {
    /// An allocation per tensor.
    Apart(Arc<Device>),
    SharedWeights(Box<SharedWeights>),
}

/// One piece of memory for all weights of a model.
pub struct SharedWeights {
    name: String,
    arena: Arc<Arena>,
    used: usize,
    /// Hash of all offsets and sizes, by which processes check that they agree on the layout.
    places: blake3::Hasher,
    state: WeightsState,
}

enum WeightsState {
    /// This process loads them, others wait.
    Making(#[expect(dead_code, reason = "held, not used")] Making),
    /// Another process has loaded them; the hash of its layout.
    There([u8; 32]),
}

impl Depot {
    /// Finds or creates the shared weights called `name`: `tensors` tensors of `bytes` bytes in total. UNSUPPORTED where
    /// device memory cannot be shared. While another process loads them, `wait` is called; its error ends the wait.
    pub fn shared(
        device: &Arc<Device>,
        name: &str,
        bytes: u64,
        tensors: usize,
        wait: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Depot> {
        if !shareable::supported(device) {
            bail!(Unsupported, "CUDA device {}: weights cannot be shared with other processes", device.ordinal());
        }
        loop {
            if let Some(there) = SharedWeights::take(device, name)? {
                return Ok(Depot::SharedWeights(Box::new(there)));
            }
            if let Some(making) = handout::make(name)? {
                // Another process may have finished since the check above.
                let room = match SharedWeights::take(device, name)? {
                    Some(there) => there,
                    None => SharedWeights::new(device, name, bytes, tensors, making)?,
                };
                return Ok(Depot::SharedWeights(Box::new(room)));
            }
            wait()?;
            std::thread::sleep(LOOK);
        }
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        match self {
            Depot::Apart(device) => device,
            Depot::SharedWeights(shared) => shared.arena.memory.device(),
        }
    }

    /// True if placed tensors have their contents already.
    pub fn is_filled(&self) -> bool {
        matches!(self, Depot::SharedWeights(shared) if matches!(shared.state, WeightsState::There(_)))
    }

    pub(super) fn place(&mut self, bytes: usize) -> Result<Weight> {
        match self {
            Depot::Apart(device) => {
                let arena = Arena { memory: Allocation::new(device, bytes)?, handout: Mutex::default() };
                Ok(Weight { arena: Arc::new(arena), offset: 0, bytes })
            }
            Depot::SharedWeights(shared) => shared.place(bytes),
        }
    }

    /// Offers the loaded weights to other processes. INCOMPATIBLE if another process, whose weights these are, has laid
    /// them out differently.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Depot::Apart(_) => Ok(()),
            Depot::SharedWeights(shared) => shared.finish(),
        }
    }
}

impl SharedWeights {
    fn new(device: &Arc<Device>, name: &str, bytes: u64, tensors: usize, making: Making) -> Result<SharedWeights> {
        let whole = usize::try_from(bytes).ok().and_then(|bytes| bytes.checked_add(tensors * ALIGN));
        let whole = whole.ok_or_else(|| crate::error!(OutOfMemory, "weights of {bytes} bytes"))?;
        Ok(Self::of(name, Allocation::only_shareable(device, whole)?, WeightsState::Making(making)))
    }

    /// The weights that another process offers, if there are any.
    fn take(device: &Arc<Device>, name: &str) -> Result<Option<SharedWeights>> {
        let Some((fd, note)) = handout::take(name) else { return Ok(None) };
        let note = note.split_first_chunk::<8>().and_then(|(bytes, places)| Some((bytes, places.try_into().ok()?)));
        let Some((bytes, places)) = note else {
            bail!(Corrupt, "shared weights: the note of the other process has the wrong size")
        };
        let memory = Allocation::open(device, fd, u64::from_le_bytes(*bytes) as usize)?;
        Ok(Some(Self::of(name, memory, WeightsState::There(places))))
    }

    fn of(name: &str, memory: Allocation, state: WeightsState) -> SharedWeights {
        let arena = Arc::new(Arena { handout: Mutex::default(), memory });
        SharedWeights { name: name.to_string(), arena, used: 0, places: blake3::Hasher::new(), state }
    }

    fn place(&mut self, bytes: usize) -> Result<Weight> {
        let offset = self.used;
        let end = offset.checked_add(bytes).filter(|end| *end <= self.arena.memory.bytes());
        let Some(end) = end else {
            bail!(Incompatible, "weights: {bytes} bytes at {offset} of {}", self.arena.memory.bytes())
        };
        self.used = end.next_multiple_of(ALIGN);
        self.places.update(&(offset as u64).to_le_bytes()).update(&(bytes as u64).to_le_bytes());
        Ok(Weight { arena: self.arena.clone(), offset, bytes })
    }

    fn finish(self) -> Result<()> {
        let places = *self.places.finalize().as_bytes();
        if let WeightsState::There(there) = self.state
            && there != places
        {
            bail!(Incompatible, "shared weights: the other process has laid them out differently");
        }
        let (fd, bytes) = self.arena.memory.descriptor()?;
        let note = [&(bytes as u64).to_le_bytes()[..], &places].concat();
        // Failing to hand them on is no reason not to use them.
        match Handout::start(&self.name, fd, &note) {
            Ok(handout) => *self.arena.handout.lock().unwrap_or_else(PoisonError::into_inner) = handout,
            Err(error) => crate::log!(Warn, "cuda", "weights are not shared with other processes: {error}"),
        }
        Ok(())
    }
}
