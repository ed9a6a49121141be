//! A planning problem, the capacity of the parts of its solutions, and the solutions worth a simulation.

use super::layout::{Group, Kind, Layout, WHOLE_PROMPTS};
use super::source::Source;
use crate::cost::{Efficiency, Roofline, StepCost, StepWork};
use crate::hardware::Device;
use crate::models::Model;
use crate::report::Slo;
use crate::sim::{BLOCK_TOKENS, Deployment, Pool, Role, Routing, blocks_that_fit};

/// A planning problem: model, devices, traffic and limits.
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
    /// Most sequences that run at once in an engine.
    pub max_sequences: usize,
    /// Choice of engines.
    pub routing: Routing,
    /// Seed of everything random.
    pub seed: u64,
}

/// Step budgets tried in mixed engines.
const BUDGETS: [usize; 5] = [256, 512, 1024, 2048, WHOLE_PROMPTS];
/// Devices of the cell that is searched; larger deployments are several of it.
const CELL: usize = 32;

impl Demand {
    /// A deployment of the layout. None if the model does not fit.
    pub fn deployment(&self, layout: &Layout) -> Option<Deployment> {
        let pool = |role, group: &Group| {
            let pool = Pool::on(&self.device, &self.model, role, group.engines, group.degree)?;
            let max_batch_tokens = pool.max_batch_tokens.max(self.max_sequences);
            Some(Pool { max_sequences: self.max_sequences, max_batch_tokens, ..pool })
        };
        let pools = match layout {
            Layout::Mixed(group, budget) => {
                let mut pool = pool(Role::Mixed, group)?;
                // Engines run no more sequences than the budget has tokens.
                pool.max_batch_tokens = *budget;
                pool.max_sequences = pool.max_sequences.min(*budget);
                vec![pool]
            }
            Layout::Apart(prefill, decode) => vec![pool(Role::Prefill, prefill)?, pool(Role::Decode, decode)?],
        };
        let mut deployment = Deployment::new(pools, &self.device, &self.model);
        deployment.routing = self.routing;
        Some(deployment)
    }

    pub(super) fn cost(&self, degree: usize) -> StepCost {
        StepCost::Roofline(Roofline::new(&self.device, &self.model, degree, &Efficiency::default()))
    }

    /// Requests per second whose prompts one engine of this degree computes.
    pub fn prefill_capacity(&self, degree: usize) -> f64 {
        let (prompt, _) = self.source.means();
        let cost = self.cost(degree);
        let step = cost.saturating_tokens().min(prompt as usize).max(1);
        let steps = prompt / step as f64;
        // The steps of a prompt begin from 0 to `prompt - step`.
        let start = (prompt - step as f64).max(0.0) / 2.0;
        1.0 / (steps * cost.seconds(&StepWork::prefill(step, start as usize)))
    }

    /// Sequences that one engine of this degree can decode within the limit between tokens and within its memory.
    pub fn decode_batch(&self, degree: usize) -> usize {
        let (prompt, output) = self.source.means();
        let context = prompt + output / 2.0;
        let cost = self.cost(degree);
        let memory = blocks_that_fit(&self.device, &self.model, degree) * BLOCK_TOKENS;
        let most = ((memory as f64 / (prompt + output)) as usize).min(self.max_sequences);
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

    pub(super) fn degrees(&self, devices: usize) -> Vec<usize> {
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

    /// Layouts of a kind; of those with separate pools the `apart` most promising.
    pub fn layouts(&self, kind: Kind, apart: usize) -> Vec<Layout> {
        match kind {
            Kind::Apart => self.apart_layouts(apart),
            _ => self.mixed_layouts().into_iter().filter(|layout| layout.kind() == kind).collect(),
        }
    }

    /// Mixed layouts: every degree with every step budget.
    fn mixed_layouts(&self) -> Vec<Layout> {
        let cell = self.cell();
        let groups = self.degrees(cell).into_iter().map(|degree| Group { engines: cell / degree, degree });
        groups.flat_map(|group| BUDGETS.map(|budget| Layout::Mixed(group, budget))).collect()
    }

    /// Layouts with separate pools: for every pair of degrees the numbers of engines that balance best, and their neighbours;
    /// of all these the `most` with the highest capacity.
    fn apart_layouts(&self, most: usize) -> Vec<Layout> {
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
}
