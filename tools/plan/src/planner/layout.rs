//! Ways to use a number of devices.

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

/// Ways to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Mixed engines that compute a prompt in one step.
    Whole,
    /// Mixed engines that compute prompts in chunks.
    Chunked,
    /// Separate engines for prefill and decode.
    Apart,
}

impl Layout {
    /// Kind of serving: whole prompts or chunks in mixed engines, or separate pools.
    pub fn kind(&self) -> Kind {
        match self {
            Layout::Mixed(_, WHOLE_PROMPTS) => Kind::Whole,
            Layout::Mixed(..) => Kind::Chunked,
            Layout::Apart(..) => Kind::Apart,
        }
    }
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

/// Devices of a layout.
pub fn devices(layout: &Layout) -> usize {
    match layout {
        Layout::Mixed(group, _) => group.engines * group.degree,
        Layout::Apart(prefill, decode) => prefill.engines * prefill.degree + decode.engines * decode.degree,
    }
}
