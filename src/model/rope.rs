//! Rotary position embedding: which frequencies each head dimension turns with, computed in f32 as
//! transformers does, and the angles of the rows of a batch.
//!
//! `f[j] = theta^(-2j/d)`; tests/fixtures/README.md states each scaling's formula. Only dynamic NTK depends on
//! the length of the sequence: there [`Batch::rope_lens`] chooses the base of each row.

use crate::backend::{Batch, RopeRows};
use crate::error::Result;
use crate::model::rope_config::{RopeConfig as Config, Scaling};

pub use crate::model::rope_config::RopeConfig;

/// Frequencies of a model and the scratch to turn a batch with them.
pub struct Rope {
    config: Config,
    /// `head_dim / 2` inverse frequencies of a sequence within the original length.
    base: Vec<f32>,
    attention_scaling: f32,
    /// The last stretched set (dynamic NTK) and its length.
    stretched: Option<(u32, Vec<f32>)>,
}

impl Rope {
    pub fn new(config: &Config) -> Self {
        let (base, attention_scaling) = inverse_frequencies(config);
        Rope { config: config.clone(), base, attention_scaling, stretched: None }
    }

    /// Inverse frequencies for a sequence of `len` tokens.
    pub fn inverse_frequencies(&mut self, len: u32) -> &[f32] {
        let Scaling::Dynamic { factor } = self.config.scaling else { return &self.base };
        if len <= self.config.max_positions {
            return &self.base;
        }
        let fresh = self.stretched.as_ref().is_some_and(|(cached, _)| *cached == len);
        if !fresh {
            let (_, mut buffer) = self.stretched.take().unwrap_or_default();
            buffer.clear();
            buffer.extend(powers(stretched_theta(&self.config, factor, len), self.config.head_dim).map(|p| 1.0 / p));
            self.stretched = Some((len, buffer));
        }
        self.stretched.as_ref().map_or(&self.base, |(_, set)| set)
    }

    /// Fills `out` with the cosines and sines of all rows of `batch`.
    pub fn rows(&mut self, batch: &Batch, out: &mut RopeRows) -> Result<()> {
        let half = self.config.head_dim as usize / 2;
        out.cos.clear();
        out.sin.clear();
        out.cos.reserve(batch.positions.len() * half);
        out.sin.reserve(batch.positions.len() * half);
        let scaling = self.attention_scaling;
        for (&position, &len) in batch.positions.iter().zip(&batch.rope_lens) {
            for &frequency in self.inverse_frequencies(len) {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                out.cos.push(cos * scaling);
                out.sin.push(sin * scaling);
            }
        }
        Ok(())
    }
}

/// `theta^(2j/d)` for each j, in f32. The power is taken in f64 and rounded once: within an ulp of the f32
/// power that torch takes.
fn powers(theta: f32, head_dim: u32) -> impl Iterator<Item = f32> {
    (0..head_dim / 2).map(move |j| {
        let exponent = (2 * j) as f32 / head_dim as f32;
        f64::from(theta).powf(f64::from(exponent)) as f32
    })
}

/// The base of dynamic NTK beyond the original length; transformers computes it from an integer tensor, hence
/// in f32.
fn stretched_theta(config: &Config, factor: f64, len: u32) -> f32 {
    let d = f64::from(config.head_dim);
    let ratio = len as f32 * factor as f32 / config.max_positions as f32 - (factor - 1.0) as f32;
    config.theta as f32 * f64::from(ratio).powf(f64::from((d / (d - 2.0)) as f32)) as f32
}

/// The frequencies of a sequence within the original length, and the factor on cos and sin.
fn inverse_frequencies(config: &Config) -> (Vec<f32>, f32) {
    let plain = || powers(config.theta as f32, config.head_dim).map(|p| 1.0 / p);
    match config.scaling {
        Scaling::Default | Scaling::Dynamic { .. } => (plain().collect(), 1.0),
        Scaling::Linear { factor } => (plain().map(|f| f / factor as f32).collect(), 1.0),
        Scaling::Llama3 { factor, low, high, original } => {
            let set = plain().map(|f| llama3(f, factor as f32, low, high, f64::from(original)));
            (set.collect(), 1.0)
        }
        Scaling::Yarn { .. } => yarn(config),
    }
}

fn llama3(f: f32, factor: f32, low: f64, high: f64, original: f64) -> f32 {
    let wavelength = (2.0 * std::f64::consts::PI) as f32 / f;
    if wavelength > (original / low) as f32 {
        f / factor
    } else if wavelength < (original / high) as f32 {
        f
    } else {
        let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
        (1.0 - smooth) * f / factor + smooth * f
    }
}

fn yarn(config: &Config) -> (Vec<f32>, f32) {
    let Scaling::Yarn { factor, attention_factor, beta_fast, beta_slow, original, truncate } = config.scaling else {
        return (Vec::new(), 1.0);
    };
    let d = f64::from(config.head_dim);
    let turns = |rotations: f64| {
        d * (f64::from(original) / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * config.theta.ln())
    };
    let (mut low, mut high) = (turns(beta_fast), turns(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(d - 1.0));
    if low == high {
        high += 0.001;
    }
    let set = powers(config.theta as f32, config.head_dim).enumerate().map(|(j, power)| {
        let ramp = ((j as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        1.0 / (factor as f32 * power) * (1.0 - keep) + 1.0 / power * keep
    });
    (set.collect(), attention_factor as f32)
}
