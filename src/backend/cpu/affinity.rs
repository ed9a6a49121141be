//! The CPUs that a thread may run on.

use crate::error::{Error, Result, Status};

/// Binds the calling thread to a set of CPUs.
pub fn bind_current_thread(cpus: &[usize]) -> Result<()> {
    // SAFETY: cpu_set_t is a plain bit set, and all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(Error::new(Status::InvalidArgument, format!("CPU {cpu} does not exist")));
        }
        // SAFETY: the index is inside the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the set is alive during the call; 0 means the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Error::new(Status::InvalidArgument, format!("cannot bind to CPUs {cpus:?}: {error}")));
    }
    Ok(())
}
