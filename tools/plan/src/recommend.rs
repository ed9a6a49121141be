//! The text of a recommendation.

use crate::cost::{Efficiency, Roofline, StepCost, StepWork};
use crate::planner::{Demand, Group, Kind, Layout, Peak, devices, parallel};
use std::fmt::Write;

/// Requests of a simulation while layouts are compared, and in the final ones.
const SEARCH: usize = 1200;
const FINAL: usize = 5000;
/// Layouts with separate pools that are simulated.
const APART: usize = 10;

/// Compares layouts and writes what to use and why. `rate` is the load to carry, if it is known.
pub fn recommend(demand: &Demand, rate: Option<f64>) -> Result<String, String> {
    if demand.layouts(Kind::Whole, APART).is_empty() {
        return Err(format!("{} does not fit into {} x {}", demand.model.name, demand.devices, demand.device.name));
    }
    let kinds = [Kind::Apart, Kind::Chunked, Kind::Whole];
    let best = parallel(&kinds, |&kind| demand.best(&demand.layouts(kind, APART), SEARCH));
    let finalists: Vec<Layout> = best.into_iter().flatten().map(|peak| peak.layout).collect();
    let finals = demand.peaks(&finalists, FINAL);
    let Some(best) = finals.first() else {
        return Err(hopeless(demand));
    };
    let mut text = String::new();
    head(&mut text, demand);
    table(&mut text, &finals);
    let _ = writeln!(text, "\nRecommended: {}", scaled(demand, &best.layout));
    let _ = writeln!(text, "Set max_sequences to {} in each engine.", demand.max_sequences);
    why(&mut text, demand, best, &finals);
    if let Some(rate) = rate {
        load(&mut text, demand, best, rate);
    }
    Ok(text)
}

fn hopeless(demand: &Demand) -> String {
    let least = demand.slo;
    let alone = demand.alone();
    format!(
        "no layout of {} x {} keeps {:.0} ms to the first token and {:.1} ms between tokens at any load; a request alone \
         takes {:.0} ms and {:.1} ms at best",
        demand.devices,
        demand.device.name,
        least.ttft * 1e3,
        least.itl * 1e3,
        alone.0 * 1e3,
        alone.1 * 1e3
    )
}

fn head(text: &mut String, demand: &Demand) {
    let (prompt, output) = demand.source.means();
    let _ = writeln!(
        text,
        "{} on {} x {}: prompts of {prompt:.0} and answers of {output:.0} tokens on average, {:.0} % of the requests within \
         {:.0} ms to the first token and {:.1} ms between tokens\n",
        demand.model.name,
        demand.devices,
        demand.device.name,
        demand.attainment * 100.0,
        demand.slo.ttft * 1e3,
        demand.slo.itl * 1e3
    );
}

fn table(text: &mut String, peaks: &[Peak]) {
    let _ = writeln!(
        text,
        "| layout | requests/s/device | tokens/s/device | TTFT p50 / p90 | ITL p50 / p90 | used |\n| --- | --- | --- | --- | --- | --- |"
    );
    for peak in peaks {
        let report = &peak.report;
        let used: Vec<String> = report.pools.iter().map(|pool| format!("{:.0} %", pool.utilisation * 100.0)).collect();
        let _ = writeln!(
            text,
            "| {} | {:.3} | {:.0} | {:.0} / {:.0} ms | {:.1} / {:.1} ms | {} |",
            peak.layout,
            peak.rate_per_device(),
            peak.tokens_per_device(),
            report.ttft.p50 * 1e3,
            report.ttft.p90 * 1e3,
            report.itl.p50 * 1e3,
            report.itl.p90 * 1e3,
            used.join(", ")
        );
    }
}

/// How often the cell that was searched fits into all devices.
fn copies(demand: &Demand) -> usize {
    demand.devices / demand.cell()
}

/// The layout for all devices: that of the cell, as often as it fits.
fn scaled(demand: &Demand, layout: &Layout) -> String {
    let times = copies(demand);
    let more = |group: &Group| Group { engines: group.engines * times, degree: group.degree };
    let all = match layout {
        Layout::Mixed(group, budget) => Layout::Mixed(more(group), *budget),
        Layout::Apart(prefill, decode) => Layout::Apart(more(prefill), more(decode)),
    };
    let idle = demand.devices - devices(&all);
    let rest = if idle > 0 { format!(", {idle} devices left over") } else { String::new() };
    format!("{all}{rest}")
}

fn why(text: &mut String, demand: &Demand, best: &Peak, finals: &[Peak]) {
    let cost =
        |degree| StepCost::Roofline(Roofline::new(&demand.device, &demand.model, degree, &Efficiency::default()));
    let (prompt, output) = demand.source.means();
    let context = prompt + output / 2.0;
    let (prefill, decode) = match best.layout {
        Layout::Apart(prefill, decode) => (prefill.degree, decode.degree),
        Layout::Mixed(group, _) => (group.degree, group.degree),
    };
    let tokens = cost(prefill).saturating_tokens();
    let step = cost(prefill).seconds(&StepWork::prefill(tokens, 0));
    let batch = demand.decode_batch(decode);
    let pace = cost(decode).seconds(&StepWork::decode(batch.max(1), context));
    let _ = writeln!(text, "Why:");
    let _ = writeln!(
        text,
        "- Prefill at TP{prefill} saturates at {tokens} tokens in a step ({:.0} ms): {:.1} requests/s for an engine that does \
         nothing else.",
        step * 1e3,
        demand.prefill_capacity(prefill)
    );
    let _ = writeln!(
        text,
        "- Decode at TP{decode} runs {batch} sequences within the limit ({:.1} ms a step): {:.1} requests/s for an engine that \
         does nothing else.",
        pace * 1e3,
        demand.decode_capacity(decode)
    );
    for other in finals.iter().filter(|peak| peak.layout != best.layout) {
        let gain = best.rate / other.rate;
        let _ = writeln!(text, "- {:.2} times the goodput per device of {}.", gain, other.layout);
    }
    if let Some(Layout::Mixed(group, budget)) =
        finals.iter().map(|peak| peak.layout).find(|layout| matches!(layout, Layout::Mixed(..)))
    {
        let batch = demand.decode_batch(group.degree).max(1);
        // Decodes come out of the same budget, and first.
        let chunk = budget.saturating_sub(batch).min(prompt as usize);
        let start = (prompt as usize - chunk) / 2;
        let both = StepWork::decode(batch, context) + StepWork::prefill(chunk, start);
        if chunk > 0 {
            let _ = writeln!(
                text,
                "- In a mixed engine at TP{} a step with {chunk} prompt tokens beside {batch} sequences takes {:.1} ms, and every \
                 token of these waits for it.",
                group.degree,
                cost(group.degree).seconds(&both) * 1e3
            );
        }
    }
}

fn load(text: &mut String, demand: &Demand, best: &Peak, rate: f64) {
    let layouts = (rate / best.rate).ceil() as usize;
    let needed = layouts * devices(&best.layout);
    let _ = writeln!(
        text,
        "\nFor {rate:.2} requests/s this layout needs {needed} devices: {layouts} times {}.",
        best.layout
    );
    if let Some(report) = demand.at(&best.layout, rate / copies(demand) as f64, FINAL) {
        let _ = writeln!(
            text,
            "On the {} given: TTFT p50 {:.0} ms, p99 {:.0} ms; ITL p50 {:.1} ms, p99 {:.1} ms; {:.1} % within the limits.",
            demand.devices,
            report.ttft.p50 * 1e3,
            report.ttft.p99 * 1e3,
            report.itl.p50 * 1e3,
            report.itl.p99 * 1e3,
            report.attainment * 100.0
        );
    }
}
