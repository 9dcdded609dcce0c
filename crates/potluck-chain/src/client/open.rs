//! How a session opens: each peer of the route is told its neighbours.

use potluck_core::{StageCommand, StageSpec, bounds};
use potluck_wire::{
    CONTROL_BYTES_MAX, Codec, Frame, Keep, NextHop, OpenSession, Prefix, PreviousHop, answer_frame_bytes_max,
    padded_bytes, step_frame_bytes_max,
};

use super::{ClientSession, Effect, Hop, OwnStage};
use crate::SessionError;

impl ClientSession {
    pub(super) fn open(&mut self, hop: usize) {
        let positions = self.config.positions;
        let Some(remote) = self.remote(hop) else {
            if let Hop::Own(OwnStage { cache, .. }) = self.config.route[hop] {
                let shared = self.config.prefix.as_ref().and_then(|shared| {
                    let from = shared.own.iter().find(|(own, _)| *own == hop).map(|(_, cache)| *cache)?;
                    Some(StageCommand::Fork { from, to: cache, positions: shared.prefix.positions })
                });
                let command = shared.unwrap_or(StageCommand::Open { cache, positions });
                self.effects.push_back(Effect::Own { hop, command });
            }
            return;
        };
        let (spec, next) = (remote.spec, self.next(hop));
        // A substitute is sent all of the session's positions.
        let prefix = self.config.prefix.as_ref().filter(|_| !self.ready).map(|shared| shared.prefix);
        let answered = if self.last_remote() == Some(hop) { self.answered(hop) } else { 0 };
        self.open_peer(hop, (hop, spec), self.repair.epoch_of(hop), next, (prefix, answered));
    }

    /// Opens the session at the peer at the end of the stream `at`, which has the stage of `hop`, or stands by for it.
    pub(super) fn open_peer(
        &mut self,
        at: usize,
        (hop, stage): (usize, StageSpec),
        epoch: u32,
        next: NextHop,
        (prefix, answered): (Option<Prefix>, u32),
    ) {
        let previous = self.previous(hop);
        let codec_in = if stage.head { Codec::Tokens } else { self.config.codec };
        let idle_ms = u32::try_from(self.config.deadlines.idle.as_millis()).unwrap_or(u32::MAX);
        let open = OpenSession {
            session: self.config.key.id,
            epoch,
            stage,
            positions: self.config.positions,
            previous,
            next,
            codec_in,
            codec_out: self.config.codec,
            prefix,
            idle_ms,
        };
        self.send(at, Frame::Open(Box::new(open)));
        if let Some(grace) = self.config.deadlines.grace {
            let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
            self.send(at, Frame::Keep(Keep { grace_ms, answered }));
        }
        self.limit(at, (hop, stage));
    }

    /// How long frames may be on the stream `at`, from a peer that has the stage of `hop`.
    pub(super) fn limit(&mut self, at: usize, (hop, stage): (usize, StageSpec)) {
        let (width, vocabulary) = (self.config.width, self.config.vocabulary);
        let frame_bytes_max = match (stage.tail, self.remote(hop + 1)) {
            (true, _) if self.config.pad => padded_bytes(answer_frame_bytes_max(width, vocabulary)),
            (true, _) => answer_frame_bytes_max(width, vocabulary),
            (false, None) => step_frame_bytes_max(width),
            (false, Some(_)) => CONTROL_BYTES_MAX,
        };
        let frame_bytes_max = frame_bytes_max.max(CONTROL_BYTES_MAX);
        self.effects.push_back(Effect::Limit { hop: at, frame_bytes_max });
    }
}

impl ClientSession {
    /// Whom that stage takes the session's steps from.
    pub(super) fn previous(&self, hop: usize) -> PreviousHop {
        match hop.checked_sub(1).and_then(|hop| self.remote(hop)) {
            Some(previous) => PreviousHop::Peer(previous.address.peer),
            None => PreviousHop::Client,
        }
    }

    /// Whom it passes them to.
    pub(super) fn next(&self, hop: usize) -> NextHop {
        match self.remote(hop + 1) {
            Some(next) => NextHop::Peer { address: next.address.clone(), grant: next.grant.clone() },
            None => NextHop::Client,
        }
    }
}

/// Whether the stages cover one model from head to tail, own stages at the ends only.
pub(super) fn check_route(route: &[Hop]) -> Result<(), SessionError> {
    let bad = |text: String| Err(SessionError::BadStep(text));
    let (Some(first), Some(last)) = (route.first(), route.last()) else { return bad("a route without stages".into()) };
    if route.len() > bounds::ROUTE_STAGES_MAX {
        return bad(format!("a route of {} stages; at most {} fit", route.len(), bounds::ROUTE_STAGES_MAX));
    }
    if !first.spec().head || !last.spec().tail || first.layers().start() != 0 {
        return bad("a route starts at the head of the chain and ends at its tail".into());
    }
    for (i, pair) in route.windows(2).enumerate() {
        let (a, b) = (pair[0].spec(), pair[1].spec());
        if a.layers.end() != b.layers.start() || a.model != b.model || a.tail || b.head {
            return bad(format!("stage {} ({}) does not follow {} of the same model", b.layers, i + 1, a.layers));
        }
    }
    let inner = route.iter().skip(1).take(route.len().saturating_sub(2));
    if inner.clone().any(|hop| hop.peer().is_none()) || route.len() == 2 && route.iter().all(|h| h.peer().is_none()) {
        return bad("an own stage can be the first or the last of a route".into());
    }
    let mut peers: Vec<_> = route.iter().filter_map(Hop::peer).collect();
    peers.sort_unstable();
    if peers.windows(2).any(|pair| pair[0] == pair[1]) {
        return bad("a peer appears twice on the route".into());
    }
    Ok(())
}
