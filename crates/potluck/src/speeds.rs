//! How fast this machine is known to be, for each model that it ran alone: kept in its home.

use potluck_chain::plan::Speed;
use potluck_core::{LayerRange, ModelId};
use potluck_engine::EngineSettings;
use potluck_store::Entry;
use serde::{Deserialize, Serialize};

use crate::{commands::swarm::utc_now, failure::Failure, home::Home, placement::model_facts};

const FILE: &str = "speed.json";

/// Entries that are kept: the newest.
const KNOWN_MAX: usize = 64;

/// Seconds for which what `potluck bench` measured counts for more than what an answer shows by the way.
const BENCH_COUNTS_S: u64 = 30 * 24 * 3_600;

/// How fast this machine was with one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Known {
    model: String,
    /// When, in seconds since 1970.
    at: u64,
    by: By,
    threads: u16,
    gpu_layers: u32,
    /// Microseconds for each byte of weights that a position reads: alone in its step, and of a full chunk.
    decode_us_per_byte: f64,
    prefill_us_per_byte: f64,
}

/// What has measured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum By {
    /// `potluck bench`.
    Bench,
    /// An answer that this machine gave alone.
    Answer,
}

/// How fast this machine is with this model, as it was measured last; where it never was, as with another model, by the bytes that each
/// reads. None: nobody measured anything.
pub(crate) fn known(home: &Home, model: ModelId, settings: &EngineSettings) -> Result<Option<Speed>, Failure> {
    Ok(choose(&read(home)?, &model.to_string(), settings.gpu_layers))
}

/// Keeps it: the next plan is the better for it. `decode_us` and `prefill_us`: microseconds of a position alone, and of one of a
/// full chunk.
pub(crate) fn remember(
    home: &Home,
    entry: &Entry,
    settings: &EngineSettings,
    by: By,
    (decode_us, prefill_us): (f64, f64),
) -> Result<(), Failure> {
    let bytes = read_bytes(entry, settings)? as f64;
    let known = Known {
        model: entry.id.to_string(),
        at: utc_now(),
        by,
        threads: settings.threads,
        gpu_layers: settings.gpu_layers,
        decode_us_per_byte: decode_us / bytes,
        prefill_us_per_byte: prefill_us / bytes,
    };
    if !known.is_usable() {
        return Ok(());
    }
    let list = with(read(home)?, known);
    let text = serde_json::to_string(&list).map_err(|error| Failure::new("internal", error, "report this"))?;
    home.write(FILE, &text)
}

/// Bytes of weights that each position reads.
pub(crate) fn read_bytes(entry: &Entry, settings: &EngineSettings) -> Result<u64, Failure> {
    let facts = model_facts(entry, settings.kv)?;
    let all = LayerRange::new(0, facts.layers.len() as u32);
    Ok(all.map_or(0, |all| facts.read_bytes(all)))
}

/// What is known. A file that cannot be read as that says nothing: it is measured again.
fn read(home: &Home) -> Result<Vec<Known>, Failure> {
    let list = home.read(FILE)?.and_then(|text| serde_json::from_str::<Vec<Known>>(&text).ok()).unwrap_or_default();
    Ok(list.into_iter().filter(Known::is_usable).collect())
}

fn choose(list: &[Known], model: &str, gpu_layers: u32) -> Option<Speed> {
    let comparable = || list.iter().rev().filter(|known| known.gpu_layers == gpu_layers);
    let same = comparable().find(|known| known.model == model);
    let known = same.or_else(|| comparable().next())?;
    Some(Speed {
        decode_us_per_byte: known.decode_us_per_byte,
        prefill_us_per_byte: known.prefill_us_per_byte,
        measured: same.is_some(),
    })
}

/// The list with one more, the newest last. One entry for each way to run a model.
fn with(mut list: Vec<Known>, known: Known) -> Vec<Known> {
    let same = |other: &Known| {
        (&other.model, other.threads, other.gpu_layers) == (&known.model, known.threads, known.gpu_layers)
    };
    let counts = |other: &Known| other.by == By::Bench && known.at.saturating_sub(other.at) < BENCH_COUNTS_S;
    if known.by == By::Answer && list.iter().any(|other| same(other) && counts(other)) {
        return list;
    }
    list.retain(|other| !same(other));
    list.push(known);
    let over = list.len().saturating_sub(KNOWN_MAX);
    list.drain(..over);
    list
}

impl Known {
    fn is_usable(&self) -> bool {
        [self.decode_us_per_byte, self.prefill_us_per_byte].iter().all(|us| us.is_finite() && *us > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(model: &str, at: u64, by: By, decode: f64) -> Known {
        let (threads, gpu_layers, prefill_us_per_byte) = (2, 0, 1.0);
        Known { model: model.into(), at, by, threads, gpu_layers, decode_us_per_byte: decode, prefill_us_per_byte }
    }

    fn decode(list: &[Known], model: &str, gpu_layers: u32) -> Option<(f64, bool)> {
        choose(list, model, gpu_layers).map(|speed| (speed.decode_us_per_byte, speed.measured))
    }

    #[test]
    fn the_same_model_counts_before_another_and_a_gpu_is_another_machine() {
        let list = [known("a", 1, By::Answer, 2.0), known("b", 2, By::Answer, 3.0)];
        assert_eq!(decode(&list, "a", 0), Some((2.0, true)));
        assert_eq!(decode(&list, "c", 0), Some((3.0, false)), "the newest of another");
        assert_eq!(decode(&list, "a", 99), None);
        assert_eq!(decode(&[], "a", 0), None);
    }

    #[test]
    fn a_bench_is_not_forgotten_over_an_answer_until_it_is_old() {
        let list = with(vec![known("a", 100, By::Bench, 2.0)], known("a", 200, By::Answer, 9.0));
        assert_eq!(decode(&list, "a", 0), Some((2.0, true)));
        let list = with(list, known("a", 100 + BENCH_COUNTS_S, By::Answer, 9.0));
        assert_eq!(decode(&list, "a", 0), Some((9.0, true)));
        let list = with(list, known("a", 300, By::Bench, 4.0));
        assert_eq!((decode(&list, "a", 0), list.len()), (Some((4.0, true)), 1));
    }

    #[test]
    fn the_list_is_bounded_and_nonsense_is_not_read() {
        let many = (0..KNOWN_MAX as u64 + 9).map(|n| known(&n.to_string(), n, By::Answer, 1.0));
        let list = many.fold(Vec::new(), with);
        assert_eq!((list.len(), list[0].model.as_str()), (KNOWN_MAX, "9"));
        for nonsense in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(!known("a", 1, By::Bench, nonsense).is_usable(), "{nonsense}");
        }
    }
}
