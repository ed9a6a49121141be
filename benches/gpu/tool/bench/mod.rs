//! Speed on device 0, each figure beside a bound measured in the same run.

mod beside;
pub mod model;
mod peer;
mod phases;
mod rates;
pub mod report;

use super::host::{Outcome, words};
use cleave::backend::devices;
use cleave::model::Model;
use model::{LLAMA_1B, LLAMA_8B, Shape, TOY};
use report::Report;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Phases of a run, in order. Phases of a model run once per model.
pub const PHASES: [&str; 9] = ["rates", "start", "step", "prefill", "handoff", "role", "split", "decode", "peer"];

#[derive(Clone, Debug)]
pub struct Options {
    /// Phases to run; all if empty.
    pub only: Vec<String>,
    /// Names of the models to run; all if empty.
    pub models: Vec<String>,
    /// Smaller sweeps; on a simulated device a toy model.
    pub quick: bool,
    pub simulated: bool,
    /// Directory for the models.
    pub dir: PathBuf,
    pub json: Option<PathBuf>,
    /// Path of tools/gpu-peer.py, if the peer is to run.
    pub peer: Option<PathBuf>,
    /// Time limit of the whole run.
    pub seconds: u64,
    /// Token budget of a prefill engine's step.
    pub chunk: usize,
}

/// Sizes of the sweeps over a model.
struct Plan {
    prompts: Vec<usize>,
    batches: Vec<usize>,
    context: usize,
    new_tokens: usize,
    handoff: usize,
    /// Number of repetitions; the best counts, or the worst where a row says so.
    repeats: u64,
    /// Number of sequences in flight while roles change.
    in_flight: u64,
}

impl Options {
    fn wants(&self, phase: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == phase)
    }

    fn shapes(&self) -> Vec<Shape> {
        let all = if self.simulated { vec![TOY] } else { vec![LLAMA_1B, LLAMA_8B] };
        all.into_iter().filter(|s| self.models.is_empty() || self.models.iter().any(|name| name == s.name)).collect()
    }

    fn plan(&self) -> Plan {
        let (prompts, batches) = match (self.simulated, self.quick) {
            (true, _) => (vec![16, 40], vec![1, 3]),
            (_, true) => (vec![512, 8192], vec![1, 64]),
            _ => (vec![512, 2048, 8192, 32768], vec![1, 8, 64, 256]),
        };
        if self.simulated {
            return Plan { prompts, batches, context: 24, new_tokens: 12, handoff: 40, repeats: 1, in_flight: 2 };
        }
        let context = if self.quick { 1024 } else { 2048 };
        Plan { prompts, batches, context, new_tokens: 72, handoff: 8192, repeats: 7, in_flight: 8 }
    }
}

pub fn run(options: &Options) -> Arc<Mutex<Report>> {
    let report = Arc::new(Mutex::new(Report {
        simulated: options.simulated,
        facts: facts(options),
        json: options.json.clone(),
        ..Report::default()
    }));
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let done = watch(&report, until + Duration::from_secs(15));
    if options.wants("rates") {
        phase(&report, "rates", until, 40, |_, _| rates::run(&report, options.simulated));
    }
    let mut ran = Vec::new();
    for shape in options.shapes() {
        let mut dir = PathBuf::new();
        phase(&report, &format!("{}: writing the model", shape.name), until, 90, |_, _| {
            dir = shape.write(&options.dir).map_err(words)?;
            Ok(())
        });
        if dir.as_os_str().is_empty() {
            continue;
        }
        of_model(options, &report, shape, &dir, until);
        ran.push((shape, dir));
    }
    if options.wants("peer") && !options.simulated {
        for (i, (shape, dir)) in ran.iter().enumerate() {
            // The remaining time in equal parts.
            let left = until.saturating_duration_since(Instant::now()).as_secs();
            let name = format!("{}: peer", shape.name);
            phase(&report, &name, until, left / (ran.len() - i) as u64, |report, until| {
                peer::run(options, report, shape, dir, until)
            });
        }
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    locked(&report).write();
    report
}

/// Runs the phases over one cache, which the first phase creates.
fn of_model(options: &Options, report: &Arc<Mutex<Report>>, shape: Shape, dir: &std::path::Path, until: Instant) {
    if !["start", "step", "prefill", "handoff", "role", "split", "decode"].iter().any(|phase| options.wants(phase)) {
        return;
    }
    let plan = options.plan();
    let mut bench = None;
    phase(report, &format!("{}: start", shape.name), until, 120, |report, until| {
        let begun = Instant::now();
        let model = Model::load(dir.to_str().ok_or("a path that is no text")?).map_err(words)?;
        bench = Some(phases::Bench::start(options, &plan, report, shape, model, begun, until)?);
        Ok(())
    });
    let Some(bench) = &mut bench else { return };
    type Phase = fn(&phases::Bench, &Plan, &Mutex<Report>) -> Outcome<()>;
    let all: [(&str, u64, Phase); 6] = [
        ("step", 20, phases::Bench::step),
        ("prefill", 45, phases::Bench::prefill),
        ("handoff", 20, phases::Bench::handoff),
        ("role", 20, phases::Bench::role),
        ("split", 40, phases::Bench::split),
        ("decode", 90, phases::Bench::decode),
    ];
    for (name, seconds, body) in all {
        if options.wants(name) {
            phase(report, &format!("{}: {name}", shape.name), until, seconds, |report, until| {
                bench.host.until = until;
                body(bench, &plan, report)
            });
        }
    }
}

/// Runs a phase within its time. Whatever happens in it, the next phase runs.
fn phase(
    report: &Arc<Mutex<Report>>,
    name: &str,
    until: Instant,
    seconds: u64,
    body: impl FnOnce(&Mutex<Report>, Instant) -> Outcome<()>,
) {
    let now = Instant::now();
    let until = until.min(now + Duration::from_secs(seconds));
    eprintln!("{name}");
    let outcome = if until <= now {
        Err("no time was left".to_string())
    } else {
        std::panic::catch_unwind(AssertUnwindSafe(|| body(report, until))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(format!("panicked: {}", text.unwrap_or("?")))
        })
    };
    locked(report).phase(name, outcome);
}

pub fn locked(report: &Mutex<Report>) -> std::sync::MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process with the table so far if a kernel never ends, because its thread cannot be stopped.
fn watch(report: &Arc<Mutex<Report>>, until: Instant) -> Arc<std::sync::atomic::AtomicBool> {
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (report, ended) = (report.clone(), done.clone());
    std::thread::spawn(move || {
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
            if ended.load(std::sync::atomic::Ordering::Relaxed) {
                return;
            }
        }
        let mut report = locked(&report);
        report.failures.push("the run did not end in its time, and was ended".to_string());
        report.write();
        println!("{}", report.markdown());
        std::process::exit(3);
    });
    done
}

fn facts(options: &Options) -> Vec<(&'static str, String)> {
    let first = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_string();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let unknown = || "unknown".to_string();
    let mut facts = vec![("date", first("date", &["-u", "+%Y-%m-%d %H:%M"]).unwrap_or_else(unknown))];
    match devices::info(0) {
        Err(error) => facts.push(("device", error.to_string())),
        Ok(info) => {
            let (major, minor) = (info.compute_capability / 10, info.compute_capability % 10);
            let gib = info.total_bytes as f64 / (1u64 << 30) as f64;
            facts.push(("device", format!("{} (compute capability {major}.{minor}, {gib:.0} GiB)", info.name)));
        }
    }
    let ask = ["--query-gpu=driver_version", "--format=csv,noheader", "--id=0"];
    let driver =
        if options.simulated { "simulated".to_string() } else { first("nvidia-smi", &ask).unwrap_or_else(unknown) };
    facts.push(("driver", driver));
    facts.push(("cleave", env!("CARGO_PKG_VERSION").to_string()));
    facts
}
