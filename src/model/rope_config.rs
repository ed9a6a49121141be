//! The rope keys of config.json: `rope_scaling` and `rope_theta` as transformers 4 writes them, or
//! `rope_parameters` of transformers 5.

use serde_json::Value;

use crate::bail;
use crate::error::Result;
use crate::model::json::Object;

/// How positions turn into angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Elements of a head, all of which are rotated.
    pub head_dim: u32,
    /// `max_position_embeddings`.
    pub max_positions: u32,
    /// Stretching beyond the trained length.
    pub scaling: Scaling,
}

/// How positions beyond the trained length are reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// No scaling.
    Default,
    /// All frequencies are divided by a factor.
    Linear {
        /// Divisor of the frequencies: the stretched length over the trained length.
        factor: f64,
    },
    /// Dynamic NTK: the base grows with the sequence's length once that exceeds the trained length.
    Dynamic {
        /// How fast the base grows with the length.
        factor: f64,
    },
    /// YaRN: low frequencies are divided by a factor, high ones kept, with a linear ramp between.
    Yarn {
        /// Divisor of the low frequencies: the stretched length over the trained length.
        factor: f64,
        /// Factor on cosines and sines, which scales the attention logits by its square.
        attention_factor: f64,
        /// Number of turns over the trained length above which a frequency is kept.
        beta_fast: f64,
        /// Number of turns over the trained length below which a frequency is divided by `factor`.
        beta_slow: f64,
        /// Trained length in tokens.
        original: u32,
        /// Rounds the ends of the ramp outwards to whole dimensions.
        truncate: bool,
    },
    /// Llama 3: long wavelengths are divided by a factor, short ones kept, with a smooth transition between.
    Llama3 {
        /// Divisor of the frequencies with long wavelengths.
        factor: f64,
        /// `low_freq_factor`: wavelengths above `original / low` are scaled in full.
        low: f64,
        /// `high_freq_factor`: wavelengths below `original / high` are kept.
        high: f64,
        /// Trained length in tokens.
        original: u32,
    },
}

const POSITIONS_MAX: u64 = 1 << 30;

impl RopeConfig {
    /// Reads `rope_theta` with `rope_scaling`, or `rope_parameters` as transformers 5 writes it.
    pub fn from_object(config: &Object, head_dim: u32, max_positions: u32) -> Result<Self> {
        let rope = match config.object("rope_scaling")? {
            Some(rope) if !rope.map().is_empty() => rope,
            _ => match config.object("rope_parameters")? {
                Some(rope) => flat(rope)?,
                None => Object::new(config.place(), serde_json::Map::new()),
            },
        };
        for object in [&rope, config] {
            let whole = object.number("partial_rotary_factor", "a number", |_| true)?;
            if let Some(part) = whole
                && part != 1.0
            {
                bail!(Unsupported, "{}: partial_rotary_factor = {part}: supported is 1", object.place());
            }
        }
        const THETA: &str = "a number above 1";
        let theta = match rope.number("rope_theta", THETA, above_one)? {
            Some(theta) => theta,
            None => config.number("rope_theta", THETA, above_one)?.unwrap_or(10000.0),
        };
        let kind = match (rope.str("rope_type")?, rope.str("type")?) {
            (Some(kind), Some(old)) if kind != old => {
                bail!(Corrupt, "{}: rope_type = \"{kind}\" and type = \"{old}\" disagree", rope.place())
            }
            (Some(kind), _) | (None, Some(kind)) => kind,
            (None, None) => "default",
        };
        let scaling = match kind {
            "default" => Scaling::Default,
            "linear" => Scaling::Linear { factor: required(&rope, "factor")? },
            "dynamic" => Scaling::Dynamic { factor: required(&rope, "factor")? },
            "yarn" => yarn(config, &rope, max_positions)?,
            "llama3" => llama3(config, &rope, max_positions)?,
            other => bail!(
                Unsupported,
                "{}: rope_type = \"{other}\": supported are default, linear, dynamic, yarn and llama3",
                rope.place()
            ),
        };
        if matches!(scaling, Scaling::Dynamic { .. }) && head_dim < 4 {
            bail!(
                Unsupported,
                "{}: rope_type = \"dynamic\" with head_dim = {head_dim}: expected 4 or more",
                rope.place()
            );
        }
        Ok(RopeConfig { theta, head_dim, max_positions, scaling })
    }

    /// The length above which the rotation of all tokens depends on the length of their sequence.
    pub fn depends_on_length(&self) -> Option<u32> {
        matches!(self.scaling, Scaling::Dynamic { .. }).then_some(self.max_positions)
    }

    /// Linear and dynamic scaling stretch `max_position_embeddings`, which stays the original length; yarn
    /// configs give either length there; the others mean it as it stands.
    pub fn max_context_tokens(&self) -> u32 {
        let stretched = match self.scaling {
            Scaling::Default | Scaling::Llama3 { .. } => 0.0,
            Scaling::Linear { factor } | Scaling::Dynamic { factor } => f64::from(self.max_positions) * factor,
            Scaling::Yarn { factor, original, .. } => f64::from(original) * factor,
        };
        self.max_positions.max(stretched.min(POSITIONS_MAX as f64) as u32)
    }

    /// One line with the exact bits of all values, for the model's fingerprint.
    pub fn canonical(&self) -> String {
        let bits = |x: f64| format!("{:016x}", x.to_bits());
        let scaling = match self.scaling {
            Scaling::Default => "default".to_owned(),
            Scaling::Linear { factor } => format!("linear {}", bits(factor)),
            Scaling::Dynamic { factor } => format!("dynamic {} {}", bits(factor), self.max_positions),
            Scaling::Yarn { factor, attention_factor, beta_fast, beta_slow, original, truncate } => format!(
                "yarn {} {} {} {} {original} {truncate}",
                bits(factor),
                bits(attention_factor),
                bits(beta_fast),
                bits(beta_slow)
            ),
            Scaling::Llama3 { factor, low, high, original } => {
                format!("llama3 {} {} {} {original}", bits(factor), bits(low), bits(high))
            }
        };
        format!("rope {} {scaling}\n", bits(self.theta))
    }
}

fn above_one(x: f64) -> bool {
    x > 1.0 && x <= 1e30
}

fn positive(x: f64) -> bool {
    x > 0.0 && x <= 1e9
}

const POSITIVE: &str = "a number above 0, at most 1e9";

fn required(rope: &Object, key: &str) -> Result<f64> {
    rope.number(key, POSITIVE, positive)?.ok_or_else(|| rope.wrong(key, POSITIVE))
}

/// `rope_parameters` may be given per layer type. One set of angles serves all layers here, so the sets must
/// be the same.
fn flat(rope: Object) -> Result<Object> {
    let nested: Vec<&String> = rope.map().iter().filter(|(_, v)| v.is_object()).map(|(k, _)| k).collect();
    let Some(first) = nested.first() else { return Ok(rope) };
    let Some(Value::Object(set)) = rope.get(first) else { return Ok(rope.clone()) };
    if rope.map().values().any(|other| other.as_object() != Some(set)) {
        bail!(
            Unsupported,
            "{}: layer types have different parameters: supported is one set for all layers",
            rope.place()
        );
    }
    Ok(Object::new(format!("{}: {first}", rope.place()), set.clone()))
}

/// `original_max_position_embeddings`: the top-level key before the one among the rope keys.
fn original(config: &Object, rope: &Object, max_positions: u32) -> Result<u32> {
    const KEY: &str = "original_max_position_embeddings";
    let inside = rope.int(KEY, 1, POSITIONS_MAX)?;
    let outside = config.int(KEY, 1, POSITIONS_MAX)?;
    Ok(outside.or(inside).map_or(max_positions, |n| n as u32))
}

fn llama3(config: &Object, rope: &Object, max_positions: u32) -> Result<Scaling> {
    let (low, high) = (required(rope, "low_freq_factor")?, required(rope, "high_freq_factor")?);
    if high <= low {
        bail!(Corrupt, "{}: high_freq_factor = {high}: expected more than low_freq_factor = {low}", rope.place());
    }
    let original = original(config, rope, max_positions)?;
    Ok(Scaling::Llama3 { factor: required(rope, "factor")?, low, high, original })
}

fn yarn(config: &Object, rope: &Object, max_positions: u32) -> Result<Scaling> {
    let original = original(config, rope, max_positions)?;
    let factor = match rope.number("factor", POSITIVE, positive)? {
        Some(factor) => factor,
        None => f64::from(max_positions) / f64::from(original),
    };
    // A beta of 0 means the default, as does an absent one.
    let beta = |key: &str, default: f64| -> Result<f64> {
        let given = rope.number(key, "a number from 0 to 1e9", |x| (0.0..=1e9).contains(&x))?;
        Ok(given.filter(|x| *x != 0.0).unwrap_or(default))
    };
    let number = |key: &str| rope.number(key, "a number from 0 to 1e9", |x| (0.0..=1e9).contains(&x));
    let magnitude = |k: f64| if factor <= 1.0 { 1.0 } else { 0.1 * k * factor.ln() + 1.0 };
    let (mscale, mscale_all_dim) = (number("mscale")?.unwrap_or(0.0), number("mscale_all_dim")?.unwrap_or(0.0));
    let attention_factor = match number("attention_factor")? {
        Some(given) => given,
        None if mscale != 0.0 && mscale_all_dim != 0.0 => magnitude(mscale) / magnitude(mscale_all_dim),
        None => magnitude(1.0),
    };
    Ok(Scaling::Yarn {
        factor,
        attention_factor,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        original,
        truncate: rope.bool("truncate", true)?,
    })
}
