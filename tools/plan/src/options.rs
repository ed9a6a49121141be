//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use cleave_plan::report::Slo;
use cleave_plan::sim::{BLOCK_TOKENS, Failure, Role, Routing};
use cleave_plan::workload::{BLOCK, SharedPrefix};
use std::path::PathBuf;
use std::str::FromStr;

/// Plans deployments of cleave engines by simulation.
#[derive(Parser)]
#[command(name = "cleave-plan", bin_name = "cleave-plan", version, after_help = EXAMPLES)]
pub struct Options {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cleave-plan recommend --model llama-3.1-8b --gpu h100 --gpus 8 --prompt 1000 --output 200 --ttft 500 --itl 25
  cleave-plan simulate --model llama-3.1-8b --prefill 4x1 --decode 4x1 --rate 40 --prompt 3000 --output 200
  cleave-plan simulate --model llama-3.3-70b-fp8 --mixed 4x2 --trace requests.csv

docs/scale.md says what is modelled.";

#[derive(Subcommand)]
pub enum Command {
    /// Recommend a layout for a model, a device and a workload
    Recommend(Recommend),
    /// Simulate one deployment and print its figures
    Simulate(Box<Simulate>),
    /// Measure the steps of one engine on this machine's CPU, for simulate --samples
    Calibrate(Calibrate),
    /// Write the data behind the figures of docs/scale.md
    Study {
        /// Directory for the CSV files
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Args)]
pub struct Recommend {
    /// Model: llama-3.1-8b, llama-3.1-8b-fp8, llama-3.3-70b, llama-3.3-70b-fp8, llama-3.3-70b-nvfp4, r1-distill-llama-70b-fp8,
    /// gpt-oss-120b, or a directory with config.json
    #[arg(long)]
    pub model: String,
    /// Device: a100, l40s, h100, h200, b200 or epyc-2
    #[arg(long)]
    pub gpu: String,
    /// Number of devices
    #[arg(long, value_parser = count)]
    pub gpus: usize,
    /// Requests per second to carry
    #[arg(long, value_parser = positive)]
    pub rate: Option<f64>,
    /// Share of the requests that has to keep the limits
    #[arg(long, default_value_t = 0.95, value_parser = share)]
    pub attainment: f64,
    /// Sequences that run at once in an engine; to be set there likewise
    #[arg(long, default_value_t = 256, value_parser = count)]
    pub max_sequences: usize,
    /// Choice of an engine
    #[arg(long, value_enum, default_value = "least-loaded")]
    pub routing: Policy,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub requests: Requests,
}

#[derive(Args)]
pub struct Simulate {
    /// Model: llama-3.1-8b, llama-3.1-8b-fp8, llama-3.3-70b, llama-3.3-70b-fp8, llama-3.3-70b-nvfp4, r1-distill-llama-70b-fp8,
    /// gpt-oss-120b, or a directory with config.json
    #[arg(long)]
    pub model: String,
    /// Device: a100, l40s, h100, h200, b200 or epyc-2
    #[arg(long, default_value = "h100")]
    pub gpu: String,
    /// Mixed engines: number x degree, such as 4x2
    #[arg(long, conflicts_with_all = ["prefill", "decode", "switch_every"])]
    pub mixed: Option<Shape>,
    /// Prefill engines, written likewise; they hand over to --decode
    #[arg(long, requires = "decode")]
    pub prefill: Option<Shape>,
    /// Decode engines; without --prefill they compute prompts too
    #[arg(long)]
    pub decode: Option<Shape>,
    /// Token budget of a step (default: the smallest that saturates the device)
    #[arg(long, value_parser = count)]
    pub budget: Option<usize>,
    /// Sequences that run at once in an engine
    #[arg(long, default_value_t = 256, value_parser = count)]
    pub max_sequences: usize,
    /// KV tokens of an engine, at least 16 (default: as many as fit)
    #[arg(long, value_parser = kv_tokens)]
    pub kv_tokens: Option<usize>,
    /// CSV file of measured steps, instead of the device's figures
    #[arg(long)]
    pub samples: Option<PathBuf>,
    /// CSV file of measured steps of decode engines, if theirs differ
    #[arg(long)]
    pub decode_samples: Option<PathBuf>,
    /// CSV file of steps measured while another engine computed on the same machine; they count while one does
    #[arg(long, requires = "samples")]
    pub disturbed_samples: Option<PathBuf>,
    /// CSV file of such steps of decode engines, if theirs differ
    #[arg(long, requires = "disturbed_samples")]
    pub decode_disturbed_samples: Option<PathBuf>,
    /// Milliseconds of a request outside of engines
    #[arg(long, value_parser = not_negative)]
    pub request_overhead_ms: Option<f64>,
    /// GB/s of a link between engines
    #[arg(long, value_parser = positive)]
    pub link_gb: Option<f64>,
    /// Milliseconds of latency of a link
    #[arg(long, value_parser = not_negative)]
    pub link_ms: Option<f64>,
    /// Move KV after the prompt, not while it is computed
    #[arg(long)]
    pub no_streaming: bool,
    /// Keep no KV of former prompts
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// Choice of an engine
    #[arg(long, value_enum, default_value = "least-loaded")]
    pub routing: Policy,
    /// Failure: engine@seconds, or engine@seconds+seconds-until-back
    #[arg(long, value_parser = failure)]
    pub fail: Vec<Failure>,
    /// Seconds between decisions about roles, at least 0.001
    #[arg(long, value_parser = interval, requires_all = ["prefill", "decode"])]
    pub switch_every: Option<f64>,
    /// Requests per second (default: 1); with --trace the trace is stretched to it
    #[arg(long, value_parser = positive)]
    pub rate: Option<f64>,
    /// Requests (default: 1000, or the whole trace)
    #[arg(long, value_parser = count)]
    pub count: Option<usize>,
    /// Factor by which a trace is replayed faster
    #[arg(long, value_parser = positive, requires = "trace", conflicts_with = "rate")]
    pub speed: Option<f64>,
    /// Streams that each send one request after the other, instead of a rate
    #[arg(long, value_parser = count, conflicts_with_all = ["trace", "rate", "count", "shared_tokens"])]
    pub streams: Option<usize>,
    /// Seconds for which streams send
    #[arg(long, default_value_t = 60.0, value_parser = positive, requires = "streams")]
    pub seconds: f64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub requests: Requests,
}

#[derive(Args)]
pub struct Calibrate {
    /// Directory of the model
    #[arg(long)]
    pub model: PathBuf,
    /// Threads of the engine
    #[arg(long, value_parser = count)]
    pub threads: usize,
    /// Token budget of a step
    #[arg(long, default_value_t = 512, value_parser = count)]
    pub budget: usize,
    /// Longest context
    #[arg(long, default_value_t = 1024, value_parser = count)]
    pub context: usize,
    /// Largest batch
    #[arg(long, default_value_t = 8, value_parser = count)]
    pub batch: usize,
    /// Measurements of each kind of step
    #[arg(long, default_value_t = 5, value_parser = count)]
    pub repeats: usize,
    /// Run a second engine during the measurement, which computes prompts or generates (default: none)
    #[arg(long, value_enum)]
    pub beside: Option<Phase>,
    /// CSV file to write
    #[arg(long)]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct Limits {
    /// Most milliseconds to the first token
    #[arg(long, default_value_t = 1000.0, value_parser = positive)]
    pub ttft: f64,
    /// Most milliseconds between tokens, as the mean of a request
    #[arg(long, default_value_t = 50.0, value_parser = positive)]
    pub itl: f64,
}

impl Limits {
    pub fn slo(&self) -> Slo {
        Slo { ttft: self.ttft / 1e3, itl: self.itl / 1e3 }
    }
}

#[derive(Args)]
pub struct Requests {
    /// Mean tokens of a prompt
    #[arg(long, default_value_t = 1000, value_parser = count)]
    pub prompt: usize,
    /// Mean tokens of an answer
    #[arg(long, default_value_t = 200, value_parser = count)]
    pub output: usize,
    /// Spread of both around their means, from 0 to 1
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub spread: f64,
    /// Tokens at the beginning of prompts that others begin with too, in whole blocks of 512
    #[arg(long, default_value_t = 0, value_parser = whole_blocks)]
    pub shared_tokens: usize,
    /// Number of such beginnings
    #[arg(long, default_value_t = 1, requires = "shared_tokens", value_parser = clap::value_parser!(u64).range(1..))]
    pub shared_groups: u64,
    /// Trace to replay: .jsonl in Mooncake's format, otherwise CSV in Azure's
    #[arg(long, conflicts_with_all = ["prompt", "output", "spread", "shared_tokens"])]
    pub trace: Option<PathBuf>,
    /// Seed of arrivals and lengths
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Requests {
    pub fn shared(&self) -> Option<SharedPrefix> {
        let (groups, tokens) = (self.shared_groups, self.shared_tokens);
        (tokens > 0).then_some(SharedPrefix { groups, tokens })
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Policy {
    /// One after the other
    RoundRobin,
    /// Fewest open requests
    LeastLoaded,
    /// Least to compute and to read, given what is cached where
    PrefixAware,
}

impl From<Policy> for Routing {
    fn from(policy: Policy) -> Routing {
        match policy {
            Policy::RoundRobin => Routing::RoundRobin,
            Policy::LeastLoaded => Routing::LeastLoaded,
            Policy::PrefixAware => Routing::PrefixAware,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Phase {
    /// Whole prompts
    Prefill,
    /// Half of the largest batch, from short contexts to the longest
    Decode,
}

impl From<Phase> for Role {
    fn from(phase: Phase) -> Role {
        match phase {
            Phase::Prefill => Role::Prefill,
            Phase::Decode => Role::Decode,
        }
    }
}

/// Engines and devices of each: `4x2`.
#[derive(Clone, Copy)]
pub struct Shape {
    pub engines: usize,
    pub degree: usize,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Shape, String> {
        let parse = |part: &str| part.parse().ok().filter(|&n: &usize| n > 0);
        let (engines, degree) = text.split_once('x').unwrap_or((text, "1"));
        match (parse(engines), parse(degree)) {
            (Some(engines), Some(degree)) => Ok(Shape { engines, degree }),
            _ => Err("expected engines x degree, such as 4x2".into()),
        }
    }
}

fn number(text: &str, expected: &str, allowed: impl Fn(f64) -> bool) -> Result<f64, String> {
    text.parse().ok().filter(|n: &f64| n.is_finite() && allowed(*n)).ok_or_else(|| format!("expected {expected}"))
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, "a number above 0", |n| n > 0.0)
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 on", |n| n >= 0.0)
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 1", |n| (0.0..=1.0).contains(&n))
}

fn interval(text: &str) -> Result<f64, String> {
    number(text, "a number of seconds from 0.001 on", |n| n >= 0.001)
}

fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number above 0".into())
}

fn kv_tokens(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&n| n >= BLOCK_TOKENS)
        .ok_or_else(|| format!("expected a whole number from {BLOCK_TOKENS} on"))
}

fn whole_blocks(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| n % BLOCK == 0).ok_or_else(|| format!("expected a multiple of {BLOCK}"))
}

fn failure(text: &str) -> Result<Failure, String> {
    let ns = |text: &str| text.parse::<f64>().ok().filter(|s| *s >= 0.0).map(|seconds| (seconds * 1e9) as u64);
    let parse = || {
        let (engine, times) = text.split_once('@')?;
        let (at, back) = match times.split_once('+') {
            Some((at, back)) => (at, Some(ns(back)?)),
            None => (times, None),
        };
        Some(Failure { engine: engine.parse().ok()?, at_ns: ns(at)?, back_after_ns: back })
    };
    parse().ok_or_else(|| "expected engine@seconds or engine@seconds+seconds, such as 3@60+20".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &str) -> Result<Options, clap::Error> {
        let words = "cleave-plan simulate --model llama-3.1-8b --mixed 1".split(' ').chain(more.split_whitespace());
        Options::try_parse_from(words)
    }

    #[test]
    fn values_out_of_bounds_are_refused_with_what_is_expected() {
        for (more, expected) in [
            ("--switch-every 0", "a number of seconds from 0.001 on"),
            ("--rate 0", "a number above 0"),
            ("--rate inf", "a number above 0"),
            ("--trace t.csv --speed 0", "a number above 0"),
            ("--speed=-1", "a number above 0"),
            ("--spread 1.5", "a number from 0 to 1"),
            ("--spread NaN", "a number from 0 to 1"),
            ("--budget 0", "a whole number above 0"),
            ("--prompt 0", "a whole number above 0"),
            ("--kv-tokens 15", "a whole number from 16 on"),
            ("--shared-tokens 300", "a multiple of 512"),
        ] {
            let error = parse(more).err().unwrap_or_else(|| panic!("{more} is accepted")).to_string();
            assert!(error.contains(expected), "{more}: {error}");
        }
    }

    #[test]
    fn help_lists_what_is_known() {
        for command in ["recommend", "simulate"] {
            let help = Options::try_parse_from(["cleave-plan", command, "--help"]).err().unwrap().to_string();
            let known = cleave_plan::models::known().into_iter().map(|model| model.name);
            for name in known.chain(cleave_plan::hardware::DEVICES.iter().map(|device| device.name.to_string())) {
                assert!(help.contains(&name), "{command} --help does not name {name}");
            }
        }
    }

    #[test]
    fn options_that_would_be_ignored_are_refused() {
        for more in [
            "--trace t.csv --rate 2 --speed 3",
            "--speed 3",
            "--streams 2 --trace t.csv",
            "--streams 2 --rate 3",
            "--streams 2 --count 3",
            "--seconds 3",
            "--trace t.csv --prompt 3",
            "--prefill 1",
            "--decode 1x2",
            "--switch-every 1",
            "--shared-groups 3",
        ] {
            assert!(parse(more).is_err(), "{more} is accepted");
        }
        for more in
            ["", "--trace t.csv --rate 2 --count 9", "--trace t.csv --speed 3", "--streams 2 --seconds 3 --prompt 9"]
        {
            assert!(parse(more).is_ok(), "{more} is refused");
        }
    }
}
