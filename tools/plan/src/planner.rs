//! Recommends a layout: candidates are ranked by what their parts can carry, and the best are simulated at rising load until
//! too many requests miss the limits. It knows deployments and reports, and must not know how a simulation works.

use crate::cost::{Efficiency, Roofline, StepCost, StepWork};
use crate::hardware::Device;
use crate::models::Model;
use crate::report::{Report, Slo};
use crate::sim::{BLOCK_TOKENS, Deployment, Pool, Role, Routing, blocks_that_fit, simulate};
use crate::workload::{Arrival, Lengths, SharedPrefix, Workload, poisson};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where requests come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A Poisson process.
    Poisson {
        /// Lengths.
        lengths: Lengths,
        /// Shared beginnings of prompts.
        shared: Option<SharedPrefix>,
    },
    /// A trace, replayed faster or slower.
    Trace(Vec<Arrival>),
}

impl Source {
    /// About `count` requests that arrive at `rate` per second.
    pub fn workload(&self, rate: f64, count: usize, seed: u64) -> Workload {
        match self {
            Source::Poisson { lengths, shared } => Workload::Open(poisson(rate, count, *lengths, *shared, seed)),
            Source::Trace(arrivals) => {
                let part = &arrivals[..count.min(arrivals.len())];
                let seconds = part.last().map_or(0.0, |last| last.at_ns as f64 / 1e9).max(1e-3);
                Workload::Open(part.to_vec()).faster(rate * seconds / part.len() as f64)
            }
        }
    }

    /// Mean tokens of prompts and of answers.
    pub fn means(&self) -> (f64, f64) {
        match self {
            Source::Poisson { lengths, .. } => (lengths.prompt as f64, lengths.output as f64),
            Source::Trace(arrivals) => {
                let n = arrivals.len() as f64;
                let sum = |of: fn(&Arrival) -> usize| arrivals.iter().map(of).sum::<usize>() as f64 / n;
                (sum(|arrival| arrival.prompt), sum(|arrival| arrival.output))
            }
        }
    }
}

/// Engines of one role: how many, and how many devices each has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Engines.
    pub engines: usize,
    /// Devices of an engine.
    pub degree: usize,
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x TP{}", self.engines, self.degree)
    }
}

/// A way to use the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Mixed engines with a token budget for each step.
    Mixed(Group, usize),
    /// Separate engines for prefill and decode.
    Apart(Group, Group),
}

/// Token budget of steps that take whole prompts.
pub const WHOLE_PROMPTS: usize = 32768;

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Layout::Mixed(group, WHOLE_PROMPTS) => write!(f, "mixed {group}, whole prompts"),
            Layout::Mixed(group, budget) => write!(f, "mixed {group}, chunks of {budget}"),
            Layout::Apart(prefill, decode) => write!(f, "prefill {prefill} + decode {decode}"),
        }
    }
}

/// What is planned for.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The model.
    pub model: Model,
    /// The device.
    pub device: Device,
    /// Number of devices.
    pub devices: usize,
    /// Requests.
    pub source: Source,
    /// Limits.
    pub slo: Slo,
    /// Share of the requests that has to keep them.
    pub attainment: f64,
    /// Choice of engines.
    pub routing: Routing,
    /// Seed of everything random.
    pub seed: u64,
}

/// The highest load at which a layout keeps the limits.
#[derive(Clone, Debug)]
pub struct Peak {
    /// The layout.
    pub layout: Layout,
    /// Requests per second.
    pub rate: f64,
    /// Figures at that load.
    pub report: Report,
}

/// Step budgets tried in mixed engines.
const BUDGETS: [usize; 5] = [256, 512, 1024, 2048, WHOLE_PROMPTS];
/// Devices of the cell that is searched; larger deployments are several of it.
const CELL: usize = 32;

impl Demand {
    /// A deployment of the layout. None if the model does not fit.
    pub fn deployment(&self, layout: &Layout) -> Option<Deployment> {
        let pool = |role, group: &Group| Pool::on(&self.device, &self.model, role, group.engines, group.degree);
        let pools = match layout {
            Layout::Mixed(group, budget) => {
                let mut pool = pool(Role::Mixed, group)?;
                pool.max_batch_tokens = *budget;
                vec![pool]
            }
            Layout::Apart(prefill, decode) => vec![pool(Role::Prefill, prefill)?, pool(Role::Decode, decode)?],
        };
        let mut deployment = Deployment::new(pools, &self.device, &self.model);
        deployment.routing = self.routing;
        Some(deployment)
    }

    fn cost(&self, degree: usize) -> StepCost {
        StepCost::Roofline(Roofline::new(&self.device, &self.model, degree, &Efficiency::default()))
    }

    /// Requests per second whose prompts one engine of this degree computes.
    pub fn prefill_capacity(&self, degree: usize) -> f64 {
        let (prompt, _) = self.source.means();
        let cost = self.cost(degree);
        let step = cost.saturating_tokens().min(prompt as usize).max(1);
        let steps = prompt / step as f64;
        1.0 / (steps * cost.seconds(&StepWork::prefill(step, (prompt / 2.0) as usize)))
    }

    /// Sequences that one engine of this degree can decode within the limit between tokens and within its memory.
    pub fn decode_batch(&self, degree: usize) -> usize {
        let (prompt, output) = self.source.means();
        let context = prompt + output / 2.0;
        let cost = self.cost(degree);
        let memory = blocks_that_fit(&self.device, &self.model, degree) * BLOCK_TOKENS;
        let most = ((memory as f64 / (prompt + output)) as usize).min(256);
        (1..=most)
            .take_while(|&batch| cost.seconds(&StepWork::decode(batch, context)) <= self.slo.itl)
            .last()
            .unwrap_or(0)
    }

    /// Requests per second that one engine of this degree decodes within the limit between tokens.
    pub fn decode_capacity(&self, degree: usize) -> f64 {
        let (prompt, output) = self.source.means();
        let batch = self.decode_batch(degree);
        let step = self.cost(degree).seconds(&StepWork::decode(batch.max(1), prompt + output / 2.0));
        batch as f64 / (output * step)
    }

    fn degrees(&self, devices: usize) -> Vec<usize> {
        let powers = [1, 2, 4, 8].into_iter().filter(|&degree| degree <= self.device.per_node.min(devices));
        let (prompt, output) = self.source.means();
        // Room for two requests at least.
        let fits = |degree: &usize| {
            let tokens = blocks_that_fit(&self.device, &self.model, *degree) * BLOCK_TOKENS;
            tokens as f64 >= 2.0 * (prompt + output)
        };
        powers.filter(fits).collect()
    }

    /// Devices that are searched over.
    pub fn cell(&self) -> usize {
        self.devices.min(CELL)
    }

    /// Mixed layouts: every degree with every step budget.
    pub fn mixed_layouts(&self) -> Vec<Layout> {
        let cell = self.cell();
        let groups = self.degrees(cell).into_iter().map(|degree| Group { engines: cell / degree, degree });
        groups.flat_map(|group| BUDGETS.map(|budget| Layout::Mixed(group, budget))).collect()
    }

    /// Layouts with separate pools: for every pair of degrees the numbers of engines that balance best, and their neighbours;
    /// of all these the `most` with the highest capacity.
    pub fn apart_layouts(&self, most: usize) -> Vec<Layout> {
        let cell = self.cell();
        let degrees = self.degrees(cell);
        let mut ranked: Vec<(f64, Layout)> = Vec::new();
        for &p in &degrees {
            for &d in &degrees {
                let (prefill, decode) = (self.prefill_capacity(p), self.decode_capacity(d));
                let mut of_pair: Vec<(f64, Layout)> = (1..=cell / p)
                    .map(|engines| (engines, (cell - engines * p) / d))
                    .filter(|&(_, decodes)| decodes > 0)
                    .map(|(prefills, decodes)| {
                        let groups = (Group { engines: prefills, degree: p }, Group { engines: decodes, degree: d });
                        let capacity = (prefills as f64 * prefill).min(decodes as f64 * decode);
                        (capacity, Layout::Apart(groups.0, groups.1))
                    })
                    .collect();
                of_pair.sort_by(|a, b| b.0.total_cmp(&a.0));
                of_pair.truncate(3);
                ranked.extend(of_pair);
            }
        }
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        ranked.into_iter().filter(|layout| layout.0 > 0.0).map(|layout| layout.1).take(most).collect()
    }

    /// Figures of a layout at a load.
    pub fn at(&self, layout: &Layout, rate: f64, count: usize) -> Option<Report> {
        let deployment = self.deployment(layout)?;
        let outcome = simulate(&deployment, &self.source.workload(rate, count, self.seed));
        Some(Report::new(&deployment, &outcome, &self.slo))
    }

    /// The highest load at which the layout keeps the limits, to within 3 %. None if it keeps them at no load.
    pub fn peak(&self, layout: &Layout, count: usize) -> Option<Peak> {
        let keeps = |rate: f64| self.at(layout, rate, count).filter(|report| report.attainment >= self.attainment);
        let guess = match layout {
            Layout::Mixed(group, _) => group.engines as f64 * self.prefill_capacity(group.degree) / 2.0,
            Layout::Apart(p, d) => (p.engines as f64 * self.prefill_capacity(p.degree))
                .min(d.engines as f64 * self.decode_capacity(d.degree)),
        };
        let (mut low, mut high) = (None, guess.max(1e-3));
        while low.is_none() {
            match keeps(high) {
                Some(report) => low = Some((high, report)),
                None if high < guess / 500.0 => return None,
                None => high /= 1.6,
            }
        }
        let (mut rate, mut report) = low?;
        // What was tried above `rate` failed, unless the first guess held.
        high = rate * 1.6;
        while let Some(better) = (rate >= guess * 0.99).then(|| keeps(high)).flatten() {
            (rate, report, high) = (high, better, high * 1.6);
        }
        while high / rate > 1.03 {
            let middle = (rate * high).sqrt();
            match keeps(middle) {
                Some(better) => (rate, report) = (middle, better),
                None => high = middle,
            }
        }
        Some(Peak { layout: *layout, rate, report })
    }

    /// Least seconds to the first token and between tokens over all degrees, for a request alone.
    pub fn alone(&self) -> (f64, f64) {
        let (prompt, _) = self.source.means();
        let best = |work: StepWork| {
            let times = self.degrees(self.cell()).into_iter().map(|degree| self.cost(degree).seconds(&work));
            times.fold(f64::INFINITY, f64::min)
        };
        (best(StepWork::prefill(prompt as usize, 0)), best(StepWork::decode(1, prompt)))
    }

    /// Peaks of layouts, the best first. Threads take layouts as they become free; the result does not depend on them.
    pub fn peaks(&self, layouts: &[Layout], count: usize) -> Vec<Peak> {
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::new());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((index, layout)) = {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        layouts.get(index).map(|layout| (index, layout))
                    } {
                        let peak = self.peak(layout, count);
                        found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, peak));
                    }
                });
            }
        });
        let mut found = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        found.sort_by_key(|peak| peak.0);
        let mut peaks: Vec<Peak> = found.into_iter().filter_map(|peak| peak.1).collect();
        peaks.sort_by(|a, b| per_device(b).total_cmp(&per_device(a)));
        peaks
    }
}

/// Devices of a layout.
pub fn devices(layout: &Layout) -> usize {
    match layout {
        Layout::Mixed(group, _) => group.engines * group.degree,
        Layout::Apart(prefill, decode) => prefill.engines * prefill.degree + decode.engines * decode.degree,
    }
}

/// Requests per second and device at a peak.
pub fn per_device(peak: &Peak) -> f64 {
    peak.rate / devices(&peak.layout) as f64
}
