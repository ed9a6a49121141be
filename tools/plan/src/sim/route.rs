//! Choice of an engine for a request.

use super::blocks::BLOCK_TOKENS;
use super::deployment::{Role, Routing};
use super::engine::Engine;
use super::request::Request;
use crate::workload::BLOCK;

/// Chooses engines. Its only state is whose turn it is among the engines of each role.
pub struct Router {
    routing: Routing,
    turns: [usize; 3],
}

impl Router {
    /// A router that follows a policy.
    pub fn new(routing: Routing) -> Router {
        Router { routing, turns: [0; 3] }
    }

    /// The engine with this role that shall take the request; None if none is alive.
    pub fn pick(&mut self, engines: &[Engine], role: Role, request: &Request) -> Option<usize> {
        let fits = |engine: &&Engine| engine.alive && engine.role == role;
        let candidates = engines.iter().enumerate().filter(|(_, engine)| fits(engine));
        match self.routing {
            Routing::RoundRobin => {
                let many = engines.iter().filter(fits).count();
                let turn = &mut self.turns[role as usize];
                *turn += 1;
                candidates.map(|(index, _)| index).nth((*turn - 1) % many.max(1))
            }
            // Decode engines receive KV, so what they have cached does not help them.
            Routing::PrefixAware if role != Role::Decode => {
                candidates.min_by_key(|(_, engine)| load(engine, request)).map(|(index, _)| index)
            }
            Routing::LeastLoaded | Routing::PrefixAware => {
                candidates.min_by_key(|(_, engine)| engine.open).map(|(index, _)| index)
            }
        }
    }
}

/// Tokens to compute before the request's own first token, and tokens of KV in use: the sum that NVIDIA Dynamo's router
/// minimises.
fn load(engine: &Engine, request: &Request) -> usize {
    let cached = (engine.blocks.cached(&request.blocks) * BLOCK).min(request.known() - 1);
    engine.backlog + request.known() - cached + engine.blocks.held() * BLOCK_TOKENS
}
