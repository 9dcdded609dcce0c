//! A placement that the user has chosen, and what to expect of it: `--peers N`.

use std::collections::BTreeSet;

use potluck_core::LayerRange;

use super::{
    PlanError,
    alone::{Alone, alone},
    cost::Costs,
    facts::{Link, Machine, ModelFacts, Preference, Speed, Who, Wish},
    preview::{Alternative, Preview, Verdict, VerdictKind, gigabytes, per_second, planned},
    stage::Piece,
};

/// The machine that all stages of a placement run on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Here {
    /// Bytes that it gives to all of them together.
    pub memory_bytes: u64,
    /// How fast it is.
    pub speed: Speed,
    /// The way between two of its processes.
    pub link: Link,
}

/// What to expect of `stages`, all on one machine: the command's own, and those of peers that it starts.
///
/// They share the processor. So a prompt gains nothing from them, unlike with a machine for each, and a token pays for the
/// hops: the verdict says by how much fewer stages would be faster.
/// # Errors
/// `NoLayers` where there are no stages.
pub fn placed(
    model: &ModelFacts,
    here: &Here,
    stages: &[(Who, LayerRange)],
    wish: &Wish,
) -> Result<Preview, PlanError> {
    if stages.is_empty() {
        return Err(PlanError::NoLayers);
    }
    let machine = |&(who, _): &(Who, LayerRange)| Machine {
        who,
        memory_bytes: here.memory_bytes,
        speed: Some(here.speed),
        link: here.link,
        loaded: None,
        trusted: true,
        missing: BTreeSet::new(),
    };
    let machines: Vec<Machine> = stages.iter().map(machine).collect();
    let costs = Costs { model, machines: &machines, wish };
    let pieces: Vec<Piece> =
        (0..).zip(stages).map(|(index, &(_, layers))| Piece::fresh(model, wish, here.speed, index, layers)).collect();
    let decode_tokens_per_s = per_second(costs.decode_us(&pieces));
    let sum = |of: fn(&Piece) -> u64| pieces.iter().map(of).fold(0, u64::saturating_add);
    let by_itself = alone(model, &Machine::own(here.memory_bytes, here.speed), wish).ok_or(PlanError::NoLayers)?;
    let fewer = Alternative { stages: 1, decode_tokens_per_s: by_itself.decode_tokens_per_s, private: true };
    let bytes = sum(Piece::bytes);
    Ok(Preview {
        model: model.model.to_string(),
        stages: (0..pieces.len()).map(|i| planned(&costs, &pieces, i)).collect(),
        weight_bytes: sum(|piece| piece.weight_bytes),
        cache_bytes: sum(|piece| piece.cache_bytes),
        positions: wish.positions,
        preference: if machines[0].who == Who::Own { Preference::Private } else { Preference::Latency },
        prefill_tokens_per_s: per_second(pieces.iter().map(|piece| piece.prefill_us).sum()),
        decode_tokens_per_s,
        bytes_per_position: costs.bytes_per_position(&pieces),
        chunk_ms: costs.chunk_alone_us(&pieces) / 1e3,
        alone: Some(by_itself),
        verdict: verdict(stages, bytes, here.memory_bytes, decode_tokens_per_s, &by_itself),
        alternatives: vec![fewer],
        left_out: Vec::new(),
    })
}

fn verdict(stages: &[(Who, LayerRange)], bytes: u64, memory: u64, rate: f64, alone: &Alone) -> Verdict {
    let peers = stages.iter().filter(|(who, _)| *who != Who::Own).count();
    let ends = if peers < stages.len() { ", with both ends in the command" } else { "" };
    let faster = match alone.decode_tokens_per_s > rate {
        true => {
            format!("; fewer would be faster: one engine (--local) is predicted at {:.1}", alone.decode_tokens_per_s)
        }
        false => String::new(),
    };
    let room = match bytes > memory {
        true => format!("; that is more than this machine gives ({})", gigabytes(memory)),
        false => String::new(),
    };
    if peers == 0 {
        let reason = format!("{} in one engine on this machine: {rate:.1} tokens/s predicted{room}", gigabytes(bytes));
        return Verdict { kind: VerdictKind::Single, reason };
    }
    let plural = if peers == 1 { "peer" } else { "peers" };
    let reason = format!(
        "{} over {peers} {plural} of this machine{ends}, as asked for: {rate:.1} tokens/s predicted{faster}{room}",
        gigabytes(bytes)
    );
    Verdict { kind: if stages.len() == 1 { VerdictKind::Single } else { VerdictKind::Pooled }, reason }
}
