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
    /// Angles of the base set, by page of positions.
    pages: Vec<Option<Page>>,
}

/// Cosines and sines of [`PAGE`] consecutive positions, one position after the other each.
struct Page {
    cos: Box<[f32]>,
    sin: Box<[f32]>,
}

/// Positions whose angles are computed at once, and those beyond which they are not kept: 16 MiB with heads of 128.
const PAGE: u32 = 16;
const KEPT: u32 = 32 << 10;

impl Rope {
    /// Computes the frequencies that do not depend on the sequence.
    pub fn new(config: &Config) -> Self {
        let (base, attention_scaling) = inverse_frequencies(config);
        Rope { config: config.clone(), base, attention_scaling, stretched: None, pages: Vec::new() }
    }

    /// Inverse frequencies for a sequence of `len` tokens.
    pub fn inverse_frequencies(&mut self, len: u32) -> &[f32] {
        let Scaling::Dynamic { factor } = self.config.scaling else { return &self.base };
        if !self.stretches(len) {
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

    /// Whether a sequence of `len` tokens has other frequencies than the base.
    fn stretches(&self, len: u32) -> bool {
        matches!(self.config.scaling, Scaling::Dynamic { .. }) && len > self.config.max_positions
    }

    /// Fills `out` with the cosines and sines of all rows of `batch`. Those of the base are kept: the device waits for them,
    /// and sines of 64 pairs take half a microsecond a row.
    pub fn rows(&mut self, batch: &Batch, out: &mut RopeRows) -> Result<()> {
        let half = self.config.head_dim as usize / 2;
        out.cos.clear();
        out.sin.clear();
        out.cos.reserve(batch.positions.len() * half);
        out.sin.reserve(batch.positions.len() * half);
        let scaling = self.attention_scaling;
        for (&position, &len) in batch.positions.iter().zip(&batch.rope_lens) {
            if position < KEPT && !self.stretches(len) {
                let at = (position % PAGE) as usize * half;
                let page = self.page(position / PAGE);
                out.cos.extend_from_slice(&page.cos[at..at + half]);
                out.sin.extend_from_slice(&page.sin[at..at + half]);
                continue;
            }
            for &frequency in self.inverse_frequencies(len) {
                let (cos, sin) = angle(position, frequency, scaling);
                out.cos.push(cos);
                out.sin.push(sin);
            }
        }
        Ok(())
    }

    fn page(&mut self, index: u32) -> &Page {
        let (at, first) = (index as usize, index * PAGE);
        if self.pages.len() <= at {
            self.pages.resize_with(at + 1, || None);
        }
        self.pages[at].get_or_insert_with(|| {
            let rows = first..first + PAGE;
            let angles = rows.flat_map(|position| self.base.iter().map(move |frequency| (position, *frequency)));
            let (cos, sin): (Vec<_>, Vec<_>) = angles.map(|(p, f)| angle(p, f, self.attention_scaling)).unzip();
            Page { cos: cos.into(), sin: sin.into() }
        })
    }
}

/// The cosine and the sine that a pair is turned by at a position.
fn angle(position: u32, frequency: f32, scaling: f32) -> (f32, f32) {
    let (sin, cos) = (position as f32 * frequency).sin_cos();
    (cos * scaling, sin * scaling)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rope: &mut Rope, positions: &[u32], lens: &[u32]) -> RopeRows {
        let mut out = RopeRows::default();
        let batch = Batch { positions: positions.to_vec(), rope_lens: lens.to_vec(), ..Batch::default() };
        rope.rows(&batch, &mut out).unwrap();
        out
    }

    /// Whatever was asked for before, a row's angles are those of its position and length, to the bit.
    #[test]
    fn what_is_kept_is_what_is_computed() {
        let positions = [0, 15, 16, 700, KEPT - 1, KEPT, KEPT + 1, 700, 100_000];
        for scaling in [Scaling::Default, Scaling::Dynamic { factor: 4.0 }] {
            let config = Config { head_dim: 8, theta: 1e4, max_positions: 600, scaling };
            let mut rope = Rope::new(&config);
            for _ in 0..2 {
                let lens: Vec<u32> = positions.iter().map(|position| position + 1).collect();
                let found = rows(&mut rope, &positions, &lens);
                let mut at = 0;
                for (position, len) in positions.iter().zip(&lens) {
                    for frequency in rope.inverse_frequencies(*len).to_vec() {
                        let x = *position as f32 * frequency;
                        assert_eq!((found.cos[at], found.sin[at]), (x.cos(), x.sin()), "{position}");
                        at += 1;
                    }
                }
                assert_eq!((found.cos.len(), found.sin.len()), (at, at));
            }
            assert!(rope.pages.len() <= (KEPT / PAGE) as usize);
        }
    }
}
