//! `make gpu-check`: the CUDA backend on a GPU, or with `--simulated` on the simulated one. See
//! docs/performance-gpu.md.
//!
//!     kernels [--small] [GROUP...]    each operation against the CPU backend
//!     processes [--model DIR]         a handoff between two processes, against one process
//!     bench [--quick] [--only PHASE,PHASE...] [--models 1b,8b] [--dir DIR] [--json FILE] [--peer SCRIPT] [--seconds N]
//!           [--chunk TOKENS]          speed; phases: rates, start, step, prefill, handoff, role, split, decode, peer
//!
//! Exit status 0: all is well, 1: a check failed, 2: wrong arguments, 3: cut off, 4: no device.

mod tool;

use cleave::backend::devices;
use std::path::PathBuf;
use std::process::ExitCode;
use tool::bench::{self, Options, PHASES};
use tool::operations::{self, Sizes};
use tool::processes;

#[path = "../../tests/cuda/device.rs"]
mod device;

/// Removes an option from the arguments and returns its value.
fn take(arguments: &mut Vec<String>, name: &str) -> Result<Option<String>, String> {
    let Some(at) = arguments.iter().position(|argument| argument == name) else { return Ok(None) };
    if at + 1 >= arguments.len() {
        return Err(format!("{name} needs a value"));
    }
    arguments.remove(at);
    Ok(Some(arguments.remove(at)))
}

fn flag(arguments: &mut Vec<String>, name: &str) -> bool {
    let n = arguments.len();
    arguments.retain(|argument| argument != name);
    arguments.len() < n
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    flag(&mut arguments, "--bench"); // added by cargo
    let simulated = flag(&mut arguments, "--simulated");
    if simulated {
        device::simulate();
    }
    match run(arguments, simulated) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("gpu-check: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(mut arguments: Vec<String>, simulated: bool) -> Result<u8, String> {
    if arguments.is_empty() {
        return Err("expected kernels, processes or bench; see docs/performance-gpu.md".to_string());
    }
    let command = arguments.remove(0);
    if devices::count() == 0 {
        let why = devices::info(0).map_or_else(|error| error.to_string(), |_| String::new());
        eprintln!("gpu-check: no CUDA device: {why}");
        return Ok(4);
    }
    let model = take(&mut arguments, "--model")?.unwrap_or_else(|| "models/tiny".to_string());
    match command.as_str() {
        "kernels" => {
            let sizes = if flag(&mut arguments, "--small") { Sizes::Small } else { Sizes::Full };
            let known: Vec<&str> = operations::GROUPS.iter().map(|(name, _)| *name).collect();
            if let Some(unknown) = arguments.iter().find(|name| !known.contains(&name.as_str())) {
                return Err(format!("{unknown}: expected some of {known:?}"));
            }
            let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|wanted| wanted == name);
            let mut failed = 0;
            for name in known.into_iter().filter(|name| wanted(name)) {
                match operations::run(name, sizes) {
                    Ok(summary) => println!("ok      {name}: {summary}"),
                    Err(error) => {
                        failed = 1;
                        println!("FAILED  {name}: {error}");
                    }
                }
            }
            Ok(failed)
        }
        "processes" => {
            nothing_left(&arguments)?;
            let mut child = vec!["prefilling-process".to_string(), "--model".to_string(), model.clone()];
            child.extend(simulated.then(|| "--simulated".to_string()));
            said("processes", processes::run(&model, &child))
        }
        "prefilling-process" => {
            nothing_left(&arguments)?;
            processes::prefill(&model).map(|()| 0)
        }
        "bench" => measure(arguments, simulated || is_simulated()),
        other => Err(format!("{other}: expected kernels, processes or bench")),
    }
}

/// Whether the driver is the simulated one, however it was loaded: its times are never reported as those of a device.
fn is_simulated() -> bool {
    devices::info(0).is_ok_and(|info| info.name.starts_with("Simulated"))
}

fn said(what: &str, outcome: Result<String, String>) -> Result<u8, String> {
    match outcome {
        Ok(summary) => println!("ok      {what}: {summary}"),
        Err(error) => {
            println!("FAILED  {what}: {error}");
            return Ok(1);
        }
    }
    Ok(0)
}

fn nothing_left(arguments: &[String]) -> Result<(), String> {
    match arguments.first() {
        Some(unknown) => Err(format!("unknown argument {unknown}")),
        None => Ok(()),
    }
}

fn measure(mut arguments: Vec<String>, simulated: bool) -> Result<u8, String> {
    let list = |text: Option<String>| text.map_or(Vec::new(), |text| text.split(',').map(String::from).collect());
    let number = |text: Option<String>, otherwise: u64| match text {
        Some(text) => text.parse().map_err(|_| format!("{text}: expected a number")),
        None => Ok(otherwise),
    };
    let options = Options {
        only: list(take(&mut arguments, "--only")?),
        models: list(take(&mut arguments, "--models")?),
        quick: flag(&mut arguments, "--quick"),
        simulated,
        dir: take(&mut arguments, "--dir")?.map_or_else(std::env::temp_dir, PathBuf::from),
        json: take(&mut arguments, "--json")?.map(PathBuf::from),
        peer: take(&mut arguments, "--peer")?.map(PathBuf::from),
        seconds: number(take(&mut arguments, "--seconds")?, 500)?,
        chunk: number(take(&mut arguments, "--chunk")?, 16384)? as usize,
    };
    nothing_left(&arguments)?;
    if let Some(unknown) = options.only.iter().find(|phase| !PHASES.contains(&phase.as_str())) {
        return Err(format!("--only {unknown}: expected some of {PHASES:?}"));
    }
    let report = bench::run(&options);
    let report = bench::locked(&report);
    println!("\n{}", report.markdown());
    Ok(u8::from(!report.failures.is_empty()))
}
