//! The library's state, behind one mutex, and the wrappers through which its functions are entered.

use crate::control::Settings;
use crate::driver::Module;
use crate::product::{Layout, Operation};
use crate::*;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard};

/// Objects that handles refer to.
pub enum Thing {
    Library(Module),
    Operation(Operation),
    Layout(Layout),
    Preference(Preference),
}

#[derive(Clone, Copy, Default)]
pub struct Preference {
    pub workspace: u64,
}

pub struct State {
    pub settings: Settings,
    pub calls: u64,
    pub products: u64,
    pub heuristics: u64,
    next_handle: usize,
    pub things: BTreeMap<usize, Thing>,
}

static STATE: Mutex<State> = Mutex::new(State {
    settings: Settings::DEFAULT,
    calls: 0,
    products: 0,
    heuristics: 0,
    next_handle: 0x6200_0000,
    things: BTreeMap::new(),
});

pub fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Entry of a function that can fail. The call is counted, and `fail=N` can make it fail.
pub fn enter(f: impl FnOnce(&mut State) -> Result<()>) -> i32 {
    leave(|state| {
        state.calls += 1;
        if state.calls == state.settings.fail {
            return Err(Error(state.settings.error));
        }
        f(state)
    })
}

/// Entry of a function that destroys something. Such a call never fails on demand.
pub fn leave(f: impl FnOnce(&mut State) -> Result<()>) -> i32 {
    match catch_unwind(AssertUnwindSafe(|| f(&mut lock()))) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => error.0,
        Err(_) => INTERNAL_ERROR.0,
    }
}

impl State {
    /// Writes the handle of a new object to `to`.
    ///
    /// # Safety
    ///
    /// `to` is null or has room for a handle.
    pub unsafe fn add(&mut self, to: *mut usize, thing: Thing) -> Result<()> {
        if to.is_null() {
            return Err(INVALID_VALUE);
        }
        self.next_handle += 16;
        self.things.insert(self.next_handle, thing);
        // SAFETY: checked for null, and the caller vouches for the rest.
        unsafe { to.write(self.next_handle) };
        Ok(())
    }

    /// Removes the object with this handle if it has the right kind.
    pub fn remove(&mut self, handle: usize, is: fn(&Thing) -> bool) -> Result<Thing> {
        if !self.things.get(&handle).is_some_and(is) {
            return Err(INVALID_VALUE);
        }
        self.things.remove(&handle).ok_or(INVALID_VALUE)
    }

    pub fn library(&self, handle: usize) -> Result<&Module> {
        match self.things.get(&handle) {
            Some(Thing::Library(module)) => Ok(module),
            _ => Err(NOT_INITIALIZED),
        }
    }

    pub fn operation(&mut self, handle: usize) -> Result<&mut Operation> {
        match self.things.get_mut(&handle) {
            Some(Thing::Operation(operation)) => Ok(operation),
            _ => Err(INVALID_VALUE),
        }
    }

    pub fn layout(&self, handle: usize) -> Result<Layout> {
        match self.things.get(&handle) {
            Some(Thing::Layout(layout)) => Ok(*layout),
            _ => Err(INVALID_VALUE),
        }
    }

    pub fn preference(&mut self, handle: usize) -> Result<&mut Preference> {
        match self.things.get_mut(&handle) {
            Some(Thing::Preference(preference)) => Ok(preference),
            _ => Err(INVALID_VALUE),
        }
    }
}
