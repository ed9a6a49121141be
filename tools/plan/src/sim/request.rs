//! A request on its way through a simulated deployment.

use cleave::scheduler::SeqId;
use std::sync::Arc;

/// Index of an engine that is none.
pub const NOWHERE: usize = usize::MAX;

/// Stage in which a request is computed from its tokens: all of it in a mixed engine, the prompt in a prefill engine.
pub const FROM_TOKENS: usize = 0;
/// Stage in which a request continues from KV that arrived.
pub const FROM_KV: usize = 1;

/// The scheduler's id of a request in one of its stages.
pub fn encode_id(request: usize, stage: usize) -> SeqId {
    (request * 2 + stage) as SeqId
}

/// Request and stage of a scheduler's id.
pub fn decode_id(seq: SeqId) -> (usize, usize) {
    (seq as usize / 2, seq as usize % 2)
}

/// KV blocks that a request holds in one engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Blocks of its own.
    pub own: usize,
    /// Leading named prefix blocks, shared through the cache.
    pub prefix: usize,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All tokens were generated.
    Finished,
    /// It does not fit into any engine.
    Rejected,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Time at which the client sent it, in nanoseconds.
    pub arrived_ns: u64,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens to generate.
    pub output: usize,
    /// Names of the prompt's leading blocks.
    pub blocks: Arc<[u64]>,
    /// Tokens that the client has.
    pub generated: usize,
    /// Engine of each stage, or [`NOWHERE`].
    pub engines: [usize; 2],
    /// Blocks held in each stage.
    pub holds: [Holding; 2],
    /// Tokens that the engine of the first stage has not computed for the first time.
    pub uncomputed: usize,
    /// Whether the first stage only computes the prompt.
    pub prefill_only: bool,
    /// Number of times the request was routed anew, which outdates events of former attempts.
    pub attempt: u32,
    /// Tokens whose KV the prefill engine has, those sent from there, and those that arrived.
    pub kv: Transfer,
    /// Times of the first and the last token; 0 before.
    pub first_ns: u64,
    /// See `first_ns`.
    pub last_ns: u64,
    /// How it ended.
    pub end: Option<End>,
}

/// Progress of a handoff, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Computed by the prefill engine.
    pub computed: usize,
    /// On their way, or arrived.
    pub sent: usize,
    /// Arrived at the decode engine.
    pub arrived: usize,
    /// Whether the decode engine has reserved blocks.
    pub reserved: bool,
    /// Whether the request stands in the decode engine's queue for blocks.
    pub queued: bool,
}

impl Request {
    /// A request that was just sent.
    pub fn new(arrived_ns: u64, prompt: usize, output: usize, blocks: Arc<[u64]>) -> Request {
        Request {
            arrived_ns,
            prompt,
            output,
            blocks,
            generated: 0,
            engines: [NOWHERE; 2],
            holds: [Holding::default(); 2],
            uncomputed: 0,
            prefill_only: false,
            attempt: 0,
            kv: Transfer::default(),
            first_ns: 0,
            last_ns: 0,
            end: None,
        }
    }

    /// Tokens known so far.
    pub fn known(&self) -> usize {
        self.prompt + self.generated
    }

    /// Time to the first token in seconds.
    pub fn ttft(&self) -> f64 {
        (self.first_ns - self.arrived_ns) as f64 / 1e9
    }

    /// Mean time between tokens in seconds; 0 with one token.
    pub fn itl(&self) -> f64 {
        match self.output {
            0 | 1 => 0.0,
            n => (self.last_ns - self.first_ns) as f64 / 1e9 / (n - 1) as f64,
        }
    }

    /// Time from the request to its last token in seconds.
    pub fn e2e(&self) -> f64 {
        (self.last_ns - self.arrived_ns) as f64 / 1e9
    }
}
