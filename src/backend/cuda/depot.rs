//! Where weights lie: memory of their own for each, or one piece for all that processes share. The first process that wants
//! them loads them, later ones map them; each hands the memory on, so that it can be had as long as any of them lives.

use super::device::Device;
use super::memory::Allocation;
use super::shareable;
use crate::bail;
use crate::error::Result;
use crate::sys::handout::{self, Handout, Making};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Every tensor begins at a multiple of this, as each allocation does.
const ALIGN: usize = 256;
/// How often it is seen whether the process that loads them is done, or gone.
const LOOK: Duration = Duration::from_millis(10);

/// Memory for all weights of a model.
pub(super) struct Arena {
    /// First: what hands the memory out goes before it.
    handout: Mutex<Option<Handout>>,
    pub memory: Allocation,
}

/// A tensor's memory.
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

/// Gives weights their places.
pub enum Depot {
    /// Each in memory of its own.
    Apart(Arc<Device>),
    SharedWeights(Box<SharedWeights>),
}

/// One piece of memory for all.
pub struct SharedWeights {
    name: String,
    arena: Arc<Arena>,
    used: usize,
    /// What has been placed where: the same in all processes, or they do not mean the same.
    places: blake3::Hasher,
    state: WeightsState,
}

enum WeightsState {
    /// This process loads them; others wait until it is done or gone.
    Making(#[expect(dead_code, reason = "held, not used")] Making),
    /// Another process has: they lie as its places say.
    There([u8; 32]),
}

impl Depot {
    /// For weights of `bytes` and `tensors` tensors that go by `name`. UNSUPPORTED where devices share no memory. `wait` is
    /// asked while another process loads them; what it fails with ends this.
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
                // They may have been made between the two questions.
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

    /// Whether what is placed has its bytes already.
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

    /// All is placed, and has its bytes: from now on other processes can have it. INCOMPATIBLE if it lies otherwise than
    /// where another process put it.
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

    /// Another process's.
    fn take(device: &Arc<Device>, name: &str) -> Result<Option<SharedWeights>> {
        let Some((fd, note)) = handout::take(name) else { return Ok(None) };
        let note = note.split_first_chunk::<8>().and_then(|(bytes, places)| Some((bytes, places.try_into().ok()?)));
        let Some((bytes, places)) = note else { bail!(Corrupt, "weights of another process: an odd note of them") };
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
            bail!(Incompatible, "weights of another process lie otherwise than here");
        }
        let (fd, bytes) = self.arena.memory.descriptor()?;
        let note = [&(bytes as u64).to_le_bytes()[..], &places].concat();
        // Failing to hand them on is no reason not to use them.
        match Handout::start(&self.name, fd, &note) {
            Ok(handout) => *self.arena.handout.lock().unwrap_or_else(PoisonError::into_inner) = handout,
            Err(error) => crate::log!(Warn, "cuda", "weights for this process alone: {error}"),
        }
        Ok(())
    }
}
