//! `cleave-plan` recommends layouts, simulates deployments and measures this machine's steps for them.

mod options;

use clap::Parser;
use cleave_plan::calibrate::{self, calibrate};
use cleave_plan::cost::{Fitted, StepCost, read_samples};
use cleave_plan::planner::{Demand, Source};
use cleave_plan::recommend::recommend;
use cleave_plan::report::Report;
use cleave_plan::sim::{BLOCK_TOKENS, Deployment, Links, Pool, Role, Switching, simulate};
use cleave_plan::workload::{Lengths, Workload};
use cleave_plan::{hardware, models, study};
use options::{Calibrate, Command, Options, Recommend, Requests, Shape, Simulate};
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match Options::parse().command {
        Command::Recommend(options) => run_recommend(&options),
        Command::Simulate(options) => run_simulate(&options),
        Command::Calibrate(options) => run_calibrate(&options),
        Command::Study { out } => study::write(&out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cleave-plan: {error}");
            ExitCode::FAILURE
        }
    }
}

fn source(requests: &Requests) -> Result<Source, String> {
    match &requests.trace {
        Some(path) => match Workload::trace(path)? {
            Workload::Open(arrivals) => Ok(Source::Trace(arrivals)),
            Workload::Closed { .. } => Err(format!("{}: not a trace", path.display())),
        },
        None => Ok(Source::Poisson { lengths: requests.lengths(), shared: requests.shared() }),
    }
}

fn run_recommend(options: &Recommend) -> Result<(), String> {
    let source = source(&options.requests)?;
    if let Source::Trace(arrivals) = &source
        && arrivals.last().is_none_or(|last| last.at_ns == 0)
    {
        return Err("the requests of the trace all arrive at once, so it has no rate that could be changed".into());
    }
    let demand = Demand {
        model: models::model(&options.model)?,
        device: hardware::device(&options.gpu)?,
        devices: options.gpus,
        source,
        slo: options.limits.slo(),
        attainment: options.attainment,
        max_sequences: options.max_sequences,
        routing: options.routing.into(),
        seed: options.requests.seed,
    };
    print!("{}", recommend(&demand, options.rate)?);
    Ok(())
}

fn workload(options: &Simulate) -> Result<Workload, String> {
    let requests = &options.requests;
    if let Some(streams) = options.streams {
        let until_ns = (options.seconds * 1e9) as u64;
        return Ok(Workload::Closed { streams, lengths: requests.lengths(), until_ns, seed: requests.seed });
    }
    let count = |default| options.count.unwrap_or(default);
    Ok(match (source(requests)?, options.rate) {
        (Source::Trace(mut arrivals), None) => {
            arrivals.truncate(count(usize::MAX));
            Workload::Open(arrivals).faster(options.speed.unwrap_or(1.0))
        }
        (Source::Trace(mut arrivals), Some(rate)) => {
            arrivals.truncate(count(usize::MAX));
            let all = arrivals.len();
            Source::Trace(arrivals).workload(rate, all, requests.seed)
        }
        (poisson, rate) => poisson.workload(rate.unwrap_or(1.0), count(1000), requests.seed),
    })
}

fn deployment(options: &Simulate) -> Result<Deployment, String> {
    let model = models::model(&options.model)?;
    let device = hardware::device(&options.gpu)?;
    let mut pools = Vec::new();
    for (role, shape) in
        [(Role::Mixed, options.mixed), (Role::Prefill, options.prefill), (Role::Decode, options.decode)]
    {
        let Some(Shape { engines, degree }) = shape else { continue };
        let mut pool = Pool::on(&device, &model, role, engines, degree)
            .ok_or_else(|| format!("{} does not fit into {degree} x {}", model.name, device.name))?;
        let (own, own_disturbed) = match role {
            Role::Decode => (options.decode_samples.as_ref(), options.decode_disturbed_samples.as_ref()),
            Role::Mixed | Role::Prefill => (None, None),
        };
        let mut budget = options.budget;
        if let Some(path) = own.or(options.samples.as_ref()) {
            let fitted = Fitted::new(&read_samples(path)?);
            let most = fitted.most_rows();
            if budget.is_some_and(|budget| budget > most) {
                return Err(format!(
                    "{}: has no steps of more than {most} tokens: give --budget {most}",
                    path.display()
                ));
            }
            budget = budget.or(Some(most));
            pool.cost = StepCost::Fitted(fitted);
        }
        if let Some(path) = own_disturbed.or(options.disturbed_samples.as_ref()) {
            pool.disturbed = Some(StepCost::Fitted(Fitted::new(&read_samples(path)?)));
        }
        pool.max_sequences = options.max_sequences;
        // Engines do the same: a given budget limits the sequences, and a default one grows to hold them.
        match budget {
            Some(budget) => {
                pool.max_batch_tokens = budget;
                pool.max_sequences = pool.max_sequences.min(budget);
            }
            None => pool.max_batch_tokens = pool.max_batch_tokens.max(pool.max_sequences),
        }
        if let Some(tokens) = options.kv_tokens {
            pool.blocks = tokens / BLOCK_TOKENS;
        }
        pools.push(pool);
    }
    let has = |role| pools.iter().any(|pool: &Pool| pool.role == role && pool.engines > 0);
    if !has(Role::Mixed) && !has(Role::Decode) {
        return Err("no engine generates tokens: give --mixed, or --prefill and --decode".into());
    }
    let mut deployment = Deployment::new(pools, &device, &model);
    deployment.routing = options.routing.into();
    deployment.failures = options.fail.clone();
    let engines: usize = deployment.pools.iter().map(|pool| pool.engines).sum();
    if let Some(failure) = deployment.failures.iter().find(|failure| failure.engine >= engines) {
        return Err(format!("--fail {}: there are {engines} engines, numbered from 0", failure.engine));
    }
    deployment.prefix_cache = !options.no_prefix_cache;
    if let Some(ms) = options.request_overhead_ms {
        deployment.request_overhead = ms / 1e3;
    }
    let links = deployment.links;
    deployment.links = Links {
        rate: options.link_gb.map_or(links.rate, |rate| rate * 1e9),
        latency: options.link_ms.map_or(links.latency, |ms| ms / 1e3),
        streaming: !options.no_streaming,
        ..links
    };
    deployment.switching = options.switch_every.map(|seconds| Switching {
        every_ns: (seconds * 1e9) as u64,
        ttft_limit: options.limits.slo().ttft,
        itl_limit: options.limits.slo().itl,
    });
    Ok(deployment)
}

fn run_simulate(options: &Simulate) -> Result<(), String> {
    let deployment = deployment(options)?;
    let begun = std::time::Instant::now();
    let outcome = simulate(&deployment, &workload(options)?);
    let report = Report::new(&deployment, &outcome, &options.limits.slo());
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?);
        return Ok(());
    }
    let line = |name: &str, q: &cleave_plan::report::Quantiles| {
        let [mean, p50, p90, p99] = [q.mean, q.p50, q.p90, q.p99].map(|seconds| seconds * 1e3);
        println!("{name:<5} mean {mean:.1} ms, p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}");
    };
    println!("{} requests in {:.1} simulated seconds, {} rejected", report.finished, report.seconds, report.rejected);
    if report.rejected > 0 && deployment.failures.is_empty() {
        let room = deployment.pools.iter().map(|pool| pool.blocks * BLOCK_TOKENS).min().unwrap_or(0);
        println!("Rejected requests need more KV than an engine has: room for {room} tokens of prompt and answer.");
    }
    line("TTFT", &report.ttft);
    line("ITL", &report.itl);
    line("E2E", &report.e2e);
    println!("longest gaps between tokens: p99 {:.1} ms", report.gap_p99 * 1e3);
    println!(
        "within the limits: {:.1} %; {:.3} requests/s and {:.1} tokens/s per device",
        report.attainment * 100.0,
        report.goodput_per_device,
        report.tokens_per_device
    );
    for (pool, spec) in report.pools.iter().zip(&deployment.pools) {
        println!("{:?} x {}: {:.0} % busy", spec.role, pool.engines, pool.utilisation * 100.0);
    }
    println!(
        "{} preemptions, {} tokens from prefix caches, {:.1} GB of KV moved, {} migrations, {} role switches",
        report.preemptions,
        report.prefix_hits,
        report.moved_bytes / 1e9,
        report.migrations,
        report.switches
    );
    println!("{} steps in {:.2} s", report.steps, begun.elapsed().as_secs_f64());
    Ok(())
}

fn run_calibrate(options: &Calibrate) -> Result<(), String> {
    let plan = calibrate::Plan {
        threads: options.threads,
        budget: options.budget,
        context: options.context,
        batch: options.batch,
        repeats: options.repeats,
        beside: options.beside.map(Into::into),
    };
    let samples = calibrate(&options.model, &plan)?;
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", options.out.display());
    let mut writer = csv::Writer::from_path(&options.out).map_err(|error| fail(&error))?;
    for sample in &samples {
        writer.serialize(sample).map_err(|error| fail(&error))?;
    }
    writer.flush().map_err(|error| fail(&error))?;
    let (mean, most) = Fitted::new(&samples).errors(&samples);
    eprintln!(
        "{} samples; the fit is off by {:.1} % on average, {:.1} % at most",
        samples.len(),
        mean * 100.0,
        most * 100.0
    );
    Ok(())
}

impl Requests {
    fn lengths(&self) -> Lengths {
        Lengths { prompt: self.prompt, output: self.output, spread: self.spread }
    }
}
