//! Settings as `key=value`, separated by spaces or commas.

/// Settings of the simulated machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `devices=N`. With 0, cuInit finds no device.
    pub devices: usize,
    /// `driver=11040`: version that cuDriverGetVersion reports.
    pub driver: i32,
    /// `compute=75`: compute capability, here 7.5.
    pub compute: i32,
    /// `memory=BYTES`: memory of each device.
    pub memory: usize,
    /// `sms=N`: number of multiprocessors.
    pub sms: i32,
    /// `peer=0`: devices cannot access each other's memory.
    pub peer: bool,
    /// `ipc=0`: cuIpcGetMemHandle is not supported.
    pub ipc: bool,
    /// `vmm=0`: cuMemCreate and related calls are not supported.
    pub vmm: bool,
    /// `green=0`: green contexts are not supported. Drivers before 12.4 do not support them either.
    pub green: bool,
    /// `graphs=0`: instantiating a graph fails for lack of memory.
    pub graphs: bool,
    /// `pools=1`: memory pools are supported, so that cudarc uses cuMemAllocAsync.
    pub pools: bool,
    /// `lanes=reversed`: the threads of a block run from the last to the first.
    pub reversed: bool,
    /// `fail=N`: the Nth next fallible call fails, once. 0: no call fails.
    pub fail: u64,
    /// `error=CODE`: error that the failing call returns. 700, 702 and 714 to 719 stay with the context, as on a GPU.
    pub error: i32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            devices: 1,
            driver: 13000,
            compute: 90,
            memory: 1 << 30,
            sms: 132,
            peer: true,
            ipc: true,
            vmm: true,
            green: true,
            graphs: true,
            pools: false,
            reversed: false,
            fail: 0,
            error: crate::OUT_OF_MEMORY.0,
        }
    }
}

impl Settings {
    /// Shared memory available to a block that opts in.
    pub fn shared_memory(&self) -> i32 {
        match self.compute {
            70 => 96 << 10,
            75 => 64 << 10,
            80 | 87 => 163 << 10,
            86 | 89 | 120 | 121 => 99 << 10,
            _ => 227 << 10,
        }
    }

    /// Returns these settings with changes; `None` if a setting is unknown. The word `reset` restores the defaults.
    pub fn with(&self, text: &str) -> Option<Settings> {
        let mut out = self.clone();
        for word in text.split([' ', ',', '\n']).filter(|word| !word.is_empty()) {
            if word == "reset" {
                out = Settings::default();
                continue;
            }
            let (key, value) = word.split_once('=')?;
            match key {
                "devices" => out.devices = value.parse().ok().filter(|n| *n <= 16)?,
                "driver" => out.driver = value.parse().ok()?,
                "compute" => out.compute = value.parse().ok()?,
                "memory" => out.memory = value.parse().ok()?,
                "sms" => out.sms = value.parse().ok().filter(|n| (1..=256).contains(n))?,
                "peer" => out.peer = switch(value)?,
                "ipc" => out.ipc = switch(value)?,
                "vmm" => out.vmm = switch(value)?,
                "green" => out.green = switch(value)?,
                "graphs" => out.graphs = switch(value)?,
                "pools" => out.pools = switch(value)?,
                "lanes" => {
                    out.reversed = match value {
                        "reversed" => true,
                        "ascending" => false,
                        _ => return None,
                    }
                }
                "fail" => out.fail = value.parse().ok()?,
                "error" => out.error = value.parse().ok().filter(|code| *code > 0)?,
                _ => return None,
            }
        }
        Some(out)
    }
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}
