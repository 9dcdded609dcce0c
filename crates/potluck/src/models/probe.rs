//! A family that is not known to slice exactly is tried before it serves, and refused where it does not: fail closed.

use potluck_core::{LayerRange, StageSpec};
use potluck_engine::{
    EngineSettings, FlashAttention, KvType,
    probe::{Verdict, probe},
};
use potluck_model::{Admission, Family};
use potluck_store::Entry;
use tokio::task::spawn_blocking;

use super::{all_layers, load_stage};
use crate::{
    engines,
    failure::{Failure, OrFail},
};

/// Positions of a probe's caches: more than it uses.
const PROBE_CONTEXT: u32 = 256;

/// Lets a stage serve if its family is proven, or if both its cuts are exact on this very model.
///
/// # Errors
/// `illegal_cut` where a cut is not exact, or the family is refused.
pub(crate) async fn admit(entry: &Entry, spec: StageSpec) -> Result<(), Failure> {
    let refused = |reason: String| Failure::new("illegal_cut", reason, "run it whole on one machine: --local");
    match Family::of(&entry.manifest).admission {
        Admission::Exact => return Ok(()),
        Admission::Refused(reason) => return Err(refused(reason)),
        Admission::Probe => {}
    }
    let all = all_layers(&entry.manifest)?;
    let ends = [spec.layers.start(), spec.layers.end()];
    for cut in ends.into_iter().filter(|&cut| cut > 0 && cut < all.end()) {
        tracing::info!(cut, model = entry.name, "probing a cut");
        let reason = match probe_cut(entry, cut).await? {
            Verdict::Exact => continue,
            Verdict::Differs { position, largest } => {
                format!("position {position} of the probe differs by up to {largest}")
            }
            Verdict::Fails(reason) => reason,
        };
        return Err(refused(format!("{} cannot be cut before layer {cut}: {reason}", entry.name)));
    }
    Ok(())
}

async fn probe_cut(entry: &Entry, cut: u32) -> Result<Verdict, Failure> {
    let settings = EngineSettings {
        exact: true,
        flash: FlashAttention::Off,
        kv: KvType::F16,
        context: PROBE_CONTEXT,
        caches: 1,
        ..EngineSettings::default()
    };
    let load = |start, end| {
        let layers = LayerRange::new(start, end).or_fail("illegal_cut", "run it whole: --local")?;
        load_stage(entry, StageSpec { model: entry.id, layers, head: false, tail: false }, &settings)
    };
    let (joined, first, second) = (load(cut - 1, cut + 1)?, load(cut - 1, cut)?, load(cut, cut + 1)?);
    let program = engines::program()?;
    let probed = spawn_blocking(move || probe(&program, &joined, &first, &second));
    Ok(probed.await.or_fail("internal", "report this")??)
}
