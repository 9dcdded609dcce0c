//! The ways between the machines of a route.

use serde::Serialize;

use super::phase::{StageTime, Times};
use crate::talk::RouteStage;

/// The way from one machine of the route to the next.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Link {
    /// Who sends: a peer's id, or `self`.
    pub(crate) from: String,
    /// Who is sent to.
    pub(crate) to: String,
    /// Milliseconds there and back, as the transport of one of both has measured; none where it has not.
    pub(crate) rtt_ms: Option<f64>,
    /// Bytes on it for each token.
    pub(crate) bytes_per_token: f64,
}

/// What a prompt of one step tells of how much the links carry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Transfer {
    /// Bytes on all links together.
    bytes: f64,
    /// Milliseconds on the way, less half of each round trip.
    ms: f64,
    /// Bytes over that time: the harmonic mean of the links, as one prompt sees them after a pause.
    pub(super) bytes_per_s: f64,
}

/// Half the round trips have to leave at least this share of a prompt's time on the way: less is noise.
const TRANSFER_SHARE: f64 = 0.3;

/// Bytes on the way below which a transfer tells nothing.
const TRANSFER_BYTES_MIN: f64 = 64e3;

/// The links of a route in order, the last one back to the client, with what a token takes on each. Stages of one machine have
/// none between them.
pub(crate) fn links(route: &[RouteStage], token: &Times) -> Vec<Link> {
    let mut links = Vec::new();
    let mut before: Option<(&RouteStage, &StageTime)> = None;
    for (place, time) in route.iter().zip(&token.stages) {
        links.extend(match before {
            None => link("self", place.peer.as_str(), Some(place.rtt_ms), time.bytes_in),
            Some((from, sent)) => {
                // Of a way with the client at one end, the client has measured it; of others, the sender.
                let rtt = match (from.peer.as_str(), place.peer.as_str()) {
                    ("self", _) => Some(place.rtt_ms),
                    (_, "self") => Some(from.rtt_ms),
                    _ => sent.next_rtt_ms,
                };
                link(&from.peer, &place.peer, rtt, sent.bytes_out)
            }
        });
        before = Some((place, time));
    }
    links.extend(before.and_then(|(tail, sent)| link(&tail.peer, "self", Some(tail.rtt_ms), sent.bytes_out)));
    links
}

fn link(from: &str, to: &str, rtt_ms: Option<f64>, bytes_per_token: f64) -> Option<Link> {
    (from != to).then(|| Link { from: from.to_owned(), to: to.to_owned(), rtt_ms, bytes_per_token })
}

/// Half of each round trip: what the way takes at least.
pub(crate) fn one_way_ms(links: &[Link]) -> f64 {
    links.iter().filter_map(|link| link.rtt_ms).sum::<f64>() / 2.0
}

/// How much the links carried of a prompt that went down the route as one step; none where that took no time to speak of, or went
/// as several steps, which overlap.
pub(crate) fn transfer(links: &[Link], prompt: &Times) -> Option<Transfer> {
    let between = prompt.stages.windows(2).filter(|pair| pair[0].peer != pair[1].peer).map(|pair| pair[0].bytes_out);
    let ends = [
        prompt.stages.first().filter(|head| !head.is_own()).map(|head| head.bytes_in),
        prompt.stages.last().filter(|tail| !tail.is_own()).map(|tail| tail.bytes_out),
    ];
    let bytes: f64 = between.chain(ends.into_iter().flatten()).sum();
    let ms = prompt.way_ms - one_way_ms(links);
    let tells = prompt.steps == 1 && bytes >= TRANSFER_BYTES_MIN && ms > prompt.way_ms * TRANSFER_SHARE;
    tells.then(|| Transfer { bytes, ms, bytes_per_s: bytes * 1e3 / ms })
}

#[cfg(test)]
mod tests {
    use potluck_chain::plan::Sees;

    use super::*;

    fn place(peer: &str, rtt_ms: f64) -> RouteStage {
        RouteStage {
            peer: peer.into(),
            layers: [0, 1],
            path: "direct",
            sees: Sees::HiddenStates,
            rtt_ms,
            standby: None,
        }
    }

    fn time(peer: &str, bytes: f64, next_rtt_ms: Option<f64>) -> StageTime {
        StageTime {
            peer: peer.into(),
            layers: [0, 1],
            queue_ms: 0.0,
            compute_ms: 1.0,
            handover_ms: 0.0,
            codec_ms: 0.0,
            bytes_in: bytes / 10.0,
            bytes_out: bytes,
            next_rtt_ms,
        }
    }

    fn times(stages: Vec<StageTime>, way_ms: f64) -> Times {
        Times { steps: 1, ms: 100.0, stages, choosing_ms: 0.0, way_ms }
    }

    #[test]
    fn each_way_is_told_once_by_who_has_measured_it() {
        let route = [place("a", 10.0), place("b", 20.0)];
        let token = times(vec![time("a", 1_000.0, Some(7.0)), time("b", 200.0, None)], 30.0);
        let told = links(&route, &token);
        let text = |link: &Link| format!("{}-{} {:?} {}", link.from, link.to, link.rtt_ms, link.bytes_per_token);
        let text: Vec<_> = told.iter().map(text).collect();
        assert_eq!(text, ["self-a Some(10.0) 100", "a-b Some(7.0) 1000", "b-self Some(20.0) 200"]);
        assert!((one_way_ms(&told) - 18.5).abs() < 1e-9);
        let ends = [place("self", 0.0), place("a", 10.0), place("self", 0.0)];
        let token = times(vec![time("self", 5.0, None), time("a", 6.0, None), time("self", 7.0, None)], 9.0);
        let told: Vec<_> = links(&ends, &token).iter().map(|link| (link.to.clone(), link.rtt_ms)).collect();
        assert_eq!(told, [("a".to_owned(), Some(10.0)), ("self".to_owned(), Some(10.0))]);
        assert!(links(&[place("self", 0.0)], &times(vec![time("self", 1.0, None)], 0.0)).is_empty());
    }

    #[test]
    fn a_prompt_tells_how_much_the_links_carry_where_they_take_time() {
        let route = [place("a", 10.0), place("b", 10.0)];
        let prompt = |way| times(vec![time("a", 500_000.0, Some(10.0)), time("b", 2_000.0, None)], way);
        let told = links(&route, &prompt(1.0));
        // 552 kB in 215 ms, 15 of which are half of three round trips.
        let carried = transfer(&told, &prompt(215.0)).unwrap();
        assert!((carried.bytes - 552_000.0).abs() < 1e-6, "{carried:?}");
        assert!((carried.bytes_per_s - 2.76e6).abs() < 1.0, "{carried:?}");
        assert_eq!(transfer(&told, &prompt(16.0)), None, "a millisecond is noise");
        assert_eq!(transfer(&told, &Times { steps: 2, ..prompt(215.0) }), None, "steps overlap");
    }
}
