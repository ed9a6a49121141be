//! The objects behind the handles of the C API.
//!
//! The pointers that the host holds are tokens: a tag, the type, a generation and an index into a process-wide table.
//! They are never dereferenced, so a handle that is NULL, stale, of another type or garbage is an error and nothing
//! else. A look-up clones an `Arc`: destroying an object while another thread is in a call on it removes the token, and
//! the object goes when that call ends.

use crate::bail;
use crate::error::Result;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A type whose objects have handles.
pub(super) trait Object: Any + Send + Sync {
    /// The opaque C type.
    type C;
    const KIND: Kind;
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Model = 1,
    Cache = 2,
    Queue = 3,
    Engine = 4,
    Detokenizer = 5,
}

impl Kind {
    fn c_name(code: u64) -> Option<&'static str> {
        const NAMES: [&str; 5] =
            ["cleave_model_t", "cleave_cache_t", "cleave_queue_t", "cleave_engine_t", "cleave_detokenizer_t"];
        NAMES.get((code as usize).wrapping_sub(1)).copied()
    }
}

/// Top byte of every handle. No address of a process has it (it is not canonical on x86-64 and outside user space on
/// AArch64), so a program that follows a handle faults at once.
const TAG: u64 = 0xc1;
const INDEX_BITS: u32 = 20;
const MAX_OBJECTS: usize = 1 << INDEX_BITS;
const GENERATION_SHIFT: u32 = INDEX_BITS;
const KIND_SHIFT: u32 = 52;
const TAG_SHIFT: u32 = 56;

struct Slot {
    generation: u32,
    kind: u8,
    object: Option<Arc<dyn Any + Send + Sync>>,
}

struct Table {
    slots: Vec<Slot>,
    /// Free slots, oldest first: a slot rests as long as possible before it is used again.
    free: VecDeque<usize>,
}

static TABLE: RwLock<Table> = RwLock::new(Table { slots: Vec::new(), free: VecDeque::new() });

fn read() -> RwLockReadGuard<'static, Table> {
    TABLE.read().unwrap_or_else(PoisonError::into_inner)
}

fn write() -> RwLockWriteGuard<'static, Table> {
    TABLE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Enters an object and returns its handle.
pub(super) fn insert<T: Object>(object: Arc<T>) -> Result<*mut T::C> {
    let mut table = write();
    let index = match table.free.pop_front() {
        Some(index) => index,
        None if table.slots.len() < MAX_OBJECTS => {
            table.slots.push(Slot { generation: 0, kind: 0, object: None });
            table.slots.len() - 1
        }
        None => bail!(OutOfMemory, "{MAX_OBJECTS} objects are alive, no more can be made"),
    };
    let slot = &mut table.slots[index];
    slot.kind = T::KIND as u8;
    slot.object = Some(object);
    let token = TAG << TAG_SHIFT
        | u64::from(slot.kind) << KIND_SHIFT
        | u64::from(slot.generation) << GENERATION_SHIFT
        | index as u64;
    Ok(std::ptr::without_provenance_mut(token as usize))
}

/// Index and generation of a handle that has the right form and type.
fn decode<T: Object>(handle: *const T::C, name: &str) -> Result<(usize, u32)> {
    let token = handle.addr() as u64;
    let wanted = Kind::c_name(T::KIND as u64).unwrap_or_default();
    if token == 0 {
        bail!(InvalidArgument, "{name} is NULL");
    }
    let kind = token >> KIND_SHIFT & 0xf;
    match Kind::c_name(kind) {
        Some(found) if token >> TAG_SHIFT == TAG => {
            if kind != T::KIND as u64 {
                bail!(InvalidArgument, "{name} is a {found}, a {wanted} is needed");
            }
        }
        _ => bail!(InvalidArgument, "{name} is not a handle of this library"),
    }
    Ok((token as usize & (MAX_OBJECTS - 1), (token >> GENERATION_SHIFT) as u32))
}

fn stale<R, T: Object>(name: &str) -> Result<R> {
    bail!(NotFound, "{name}: this {} was destroyed", Kind::c_name(T::KIND as u64).unwrap_or_default())
}

/// The object behind a handle.
pub(super) fn get<T: Object>(handle: *const T::C, name: &str) -> Result<Arc<T>> {
    let (index, generation) = decode::<T>(handle, name)?;
    let object = match read().slots.get(index) {
        Some(slot) if slot.generation == generation && slot.kind == T::KIND as u8 => slot.object.clone(),
        _ => None,
    };
    match object.and_then(|object| object.downcast::<T>().ok()) {
        Some(object) => Ok(object),
        None => stale::<_, T>(name),
    }
}

/// Removes a handle and returns its object. When two threads try, one gets it.
pub(super) fn take<T: Object>(handle: *const T::C, name: &str) -> Result<Arc<T>> {
    let (index, generation) = decode::<T>(handle, name)?;
    let mut table = write();
    let object = match table.slots.get_mut(index) {
        Some(slot) if slot.generation == generation && slot.kind == T::KIND as u8 => {
            slot.generation = slot.generation.wrapping_add(1);
            slot.object.take()
        }
        _ => None,
    };
    // A slot whose generations are used up rests for ever.
    if object.is_some() && generation != u32::MAX {
        table.free.push_back(index);
    }
    drop(table);
    match object.and_then(|object| object.downcast::<T>().ok()) {
        Some(object) => Ok(object),
        None => stale::<_, T>(name),
    }
}

/// Every live object of a type.
pub(super) fn all<T: Object>() -> Vec<Arc<T>> {
    let objects: Vec<_> =
        read().slots.iter().filter(|s| s.kind == T::KIND as u8).filter_map(|s| s.object.clone()).collect();
    objects.into_iter().filter_map(|object| object.downcast::<T>().ok()).collect()
}
