//! The machine that this process runs on: CPU, memory, limits.

use std::fs::read_to_string;

/// The machine as this process sees it.
pub struct HostInfo {
    /// Model name of the CPU.
    pub cpu_name: String,
    /// Bytes of memory: the machine's, or the control group's limit if that is lower.
    pub total_bytes: u64,
    /// Bytes of memory that are available.
    pub free_bytes: u64,
}

/// Reads /proc and the control group's limits; what cannot be read is "unknown" or 0.
pub fn host_info() -> HostInfo {
    let cpu = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let memory = read_to_string("/proc/meminfo").unwrap_or_default();
    let name = ["model name", "Model", "Hardware", "uarch"].iter().find_map(|key| field(&cpu, key));
    let mut total = kib(&memory, "MemTotal");
    let mut free = kib(&memory, "MemAvailable");
    let group = |file: &str| read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    if let Some(limit) = group("memory.max") {
        total = total.min(limit);
        free = free.min(limit.saturating_sub(group("memory.current").unwrap_or(0)));
    }
    HostInfo { cpu_name: name.unwrap_or(std::env::consts::ARCH).to_string(), total_bytes: total, free_bytes: free }
}

/// Number of descriptors that this process may have open at once (its soft limit).
pub fn max_open_files() -> u64 {
    // SAFETY: zero is a valid rlimit, and the call fills it in; if it fails, the limit stays zero.
    let limit = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur
    };
    if limit == 0 { 1024 } else { limit }
}

fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key && !value.trim().is_empty()).then(|| value.trim())
    })
}

fn kib(text: &str, key: &str) -> u64 {
    let number = field(text, key).and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}
