//! A roofline over a device, a model and a degree of tensor parallelism.

use super::StepWork;
use crate::hardware::{Device, WeightFormat};
use crate::models::Model;

/// Shares of a device's figures that programs reach, and costs that no data sheet has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Efficiency {
    /// Share of the FLOP/s in large matrix products.
    pub products: f64,
    /// Share of the FLOP/s in attention over prompts.
    pub attention: f64,
    /// Share of the memory bandwidth.
    pub memory: f64,
    /// Share of a link's bandwidth.
    pub links: f64,
    /// Latency of one all-reduce in a node, and between nodes, in seconds.
    pub all_reduce: [f64; 2],
    /// Time of a step outside of the model: scheduling, sampling, launches. In seconds.
    pub step: f64,
    /// Time for each sequence of a step, in seconds.
    pub sequence: f64,
}

impl Default for Efficiency {
    /// On an H200, products in bf16 reached 80 % and copies 90 % (measured). Eight-bit products and
    /// attention reach less; the step's own time is a guess that favours nobody.
    fn default() -> Self {
        Efficiency {
            products: 0.70,
            attention: 0.55,
            memory: 0.85,
            links: 0.80,
            all_reduce: [10e-6, 30e-6],
            step: 300e-6,
            sequence: 2e-6,
        }
    }
}

/// Times per unit of work, in seconds.
#[derive(Clone, Debug)]
pub struct Roofline {
    row: f64,
    logit: f64,
    common_read: f64,
    experts_read: f64,
    expert_share: f64,
    head_read: f64,
    pair: f64,
    context: f64,
    all_reduces: f64,
    reduced_row: f64,
    step: f64,
    sequence: f64,
}

impl Roofline {
    /// The roofline of `degree` devices that hold the model together.
    pub fn new(device: &Device, model: &Model, degree: usize, efficiency: &Efficiency) -> Roofline {
        let n = degree as f64;
        let products = n * device.flops(model.weights) * efficiency.products;
        let bf16 = n * device.bf16;
        let memory = n * device.memory_rate * efficiency.memory;
        let (common, experts) = model.layer_weights();
        let head = model.head_weights();
        let head_bytes = head * WeightFormat::Bf16.bytes();
        let embedding = head_bytes;
        // Whatever is neither an expert, the output projection nor an embedding is read by every step.
        let experts_bytes = experts * model.weights.bytes();
        let common_bytes = model.weight_bytes() - experts_bytes - head_bytes - embedding;
        // KV heads are divided among the devices as long as there are enough.
        let kv_shards = degree.min(model.kv_heads) as f64;
        let attention_width = (model.heads * model.head_dim * model.layers) as f64;
        let (link, latency) = match degree <= device.per_node {
            true => (device.node_link, efficiency.all_reduce[0]),
            false => (device.network_link, efficiency.all_reduce[1]),
        };
        let reductions = if degree > 1 { 2.0 * model.layers as f64 } else { 0.0 };
        let sent = 2.0 * (n - 1.0) / n * model.hidden as f64 * WeightFormat::Bf16.bytes();
        Roofline {
            row: 2.0 * (common + experts * model.expert_share()) / products,
            logit: 2.0 * head / (bf16 * efficiency.products),
            common_read: common_bytes / memory,
            experts_read: experts_bytes / memory,
            expert_share: model.expert_share(),
            head_read: head_bytes / memory,
            pair: 4.0 * attention_width / (bf16 * efficiency.attention),
            context: model.kv_bytes_per_token() / (kv_shards * device.memory_rate * efficiency.memory),
            all_reduces: reductions * latency,
            reduced_row: reductions * sent / (link * efficiency.links),
            step: efficiency.step,
            sequence: efficiency.sequence,
        }
    }

    /// Duration of a step in seconds. Reading weights and computing overlap; attention and all-reduces come on top.
    pub fn seconds(&self, work: &StepWork) -> f64 {
        let touched = if self.experts_read > 0.0 { 1.0 - (1.0 - self.expert_share).powf(work.rows) } else { 0.0 };
        let layers = overlap(self.row * work.rows, self.common_read + self.experts_read * touched);
        let head = match work.logits > 0.0 {
            true => overlap(self.logit * work.logits, self.head_read),
            false => 0.0,
        };
        let attention = self.pair * work.prefill_pairs + self.context * work.decode_context;
        let reduce = self.all_reduces + self.reduced_row * work.rows;
        layers + head + attention + reduce + self.step + self.sequence * work.sequences
    }
}

/// Duration of two things that overlap, with a soft knee where both take equally long.
fn overlap(a: f64, b: f64) -> f64 {
    let (a2, b2) = (a * a, b * b);
    (a2 * a2 + b2 * b2).sqrt().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::device;
    use crate::models::model;

    fn roofline(device_name: &str, model_name: &str, degree: usize) -> Roofline {
        Roofline::new(&device(device_name).unwrap(), &model(model_name).unwrap(), degree, &Efficiency::default())
    }

    /// Reading 16 GB of weights at 4.08 TB/s, less the embedding, takes 3.7 ms.
    #[test]
    fn a_single_decode_reads_the_weights() {
        let seconds = roofline("h200", "llama-3.1-8b", 1).seconds(&StepWork::decode(1, 100.0));
        assert!((3.7e-3..4.3e-3).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_long_prompt_is_bound_by_products() {
        let seconds = roofline("h200", "llama-3.1-8b", 1).seconds(&StepWork::prefill(8192, 0));
        // 2 · 7 · 10⁹ · 8192 operations at 692 TFLOP/s are 0.165 s; attention adds about 0.03 s.
        assert!((0.17..0.22).contains(&seconds), "{seconds}");
    }

    #[test]
    fn more_of_anything_is_never_faster() {
        let roofline = roofline("h100", "gpt-oss-120b", 2);
        let base = StepWork { rows: 64.0, logits: 8.0, sequences: 8.0, decode_context: 1e4, prefill_pairs: 1e5 };
        for more in [
            StepWork { rows: 128.0, ..base },
            StepWork { logits: 16.0, ..base },
            StepWork { sequences: 16.0, ..base },
            StepWork { decode_context: 2e4, ..base },
            StepWork { prefill_pairs: 2e5, ..base },
        ] {
            assert!(roofline.seconds(&more) > roofline.seconds(&base));
        }
    }

    #[test]
    fn a_faster_device_is_never_slower() {
        let model = model("llama-3.3-70b-fp8").unwrap();
        let slow = device("h100").unwrap();
        let mut faster = vec![slow.clone(); 4];
        faster[0].memory_rate *= 1.5;
        faster[1].node_link *= 1.5;
        faster[2].fp8 *= 1.5;
        faster[3].bf16 *= 1.5;
        for device in &faster {
            for work in [StepWork::decode(32, 2000.0), StepWork::prefill(2048, 1000), StepWork::decode(1, 1.0)] {
                let of = |device| Roofline::new(device, &model, 4, &Efficiency::default()).seconds(&work);
                assert!(of(device) <= of(&slow));
            }
        }
    }

    #[test]
    fn few_rows_touch_few_experts() {
        let one = roofline("h100", "gpt-oss-120b", 1).seconds(&StepWork::decode(1, 1.0));
        let many = roofline("h100", "gpt-oss-120b", 1).seconds(&StepWork::decode(256, 1.0));
        assert!(many > 5.0 * one, "{one} {many}");
    }
}
