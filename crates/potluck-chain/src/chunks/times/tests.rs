//! Prompts over routes in virtual time, which the client's knowledge has never seen from within.

use potluck_wire::{Codec, HEADER_BYTES, HOP_FRAMES_MAX};
use proptest::prelude::*;

use super::*;

const WIDTH: usize = 576;
const LAYERS: usize = 30;

/// A route with own ends, a layer each, and peers between them; every machine has one line, as wide down as up.
#[derive(Debug, Clone, Copy)]
struct Route {
    peers: usize,
    rtt_s: f64,
    bytes_per_second: f64,
    /// Seconds of a layer: a step's, whatever its size, and a row's.
    fixed: f64,
    per_row: f64,
}

impl Route {
    fn new(peers: usize, rtt_ms: f64, mbit: f64) -> Self {
        // A laptop: 205 positions a second through the whole model, and 9 ms for a single one.
        Self { peers, rtt_s: rtt_ms / 1e3, bytes_per_second: mbit * 1e6 / 8.0, fixed: 1.4e-4, per_row: 1.6e-4 }
    }

    fn layers(&self) -> Vec<usize> {
        let inner = LAYERS - 2;
        let peers = (0..self.peers).map(|peer| inner * (peer + 1) / self.peers - inner * peer / self.peers);
        std::iter::once(1).chain(peers).chain([1]).collect()
    }

    /// Engines are not linear: what is short of a block of sixteen takes nearly as long as the block, and from 32 rows on they have
    /// kernels that are worth it from some more on.
    fn step_s(&self, layers: usize, rows: usize) -> f64 {
        let least = if rows < 32 { 0.0 } else { 1.42 * 32.0 };
        let rows = if rows > 8 { 0.7 * rows as f64 + 0.3 * rows.next_multiple_of(16) as f64 } else { rows as f64 };
        let rows = rows.max(least);
        layers as f64 * (self.fixed + self.per_row * rows)
    }

    fn sending_s(&self, rows: usize) -> f64 {
        (HEADER_BYTES + Codec::F16.bytes(rows, WIDTH)) as f64 / self.bytes_per_second
    }

    /// Steps of these sizes, with so many unanswered at most, and as many between neighbours as there is credit for. Seconds to the
    /// last answer.
    fn play(&self, sizes: &[usize], window: usize) -> f64 {
        let (layers, delay) = (self.layers(), self.rtt_s / 2.0);
        let hops = HOP_FRAMES_MAX as usize;
        // When each step had run, by stage; when the ways are free; answers.
        let mut ran: Vec<Vec<f64>> = vec![Vec::new(); layers.len()];
        let mut free = vec![0.0; layers.len()];
        let mut answers: Vec<f64> = Vec::new();
        for (number, &rows) in sizes.iter().enumerate() {
            let mut at = number.checked_sub(window).map_or(0.0, |before| answers[before]);
            for (stage, &layers) in layers.iter().enumerate() {
                if stage > 0 {
                    // Credit comes back for a quarter of it at a time.
                    let granted =
                        number.checked_sub(hops).map_or(0.0, |taken| ran[stage][taken | (hops / 4 - 1)] + delay);
                    free[stage] = f64::max(at, free[stage]).max(granted) + self.sending_s(rows);
                    at = free[stage] + delay;
                }
                at = ran[stage].last().map_or(at, |before| before.max(at)) + self.step_s(layers, rows);
                ran[stage].push(at);
            }
            answers.push(at);
        }
        answers[answers.len() - 1]
    }

    /// The one of the bench: delays, the first chunk through all, the rest at the slowest; of the best chunk.
    fn bound(&self, positions: usize) -> f64 {
        let of = |chunk: usize| {
            let stages = self.layers().into_iter().map(|layers| self.step_s(layers, chunk));
            let hops = (self.peers + 1) as f64;
            let first = hops * (self.rtt_s / 2.0 + self.sending_s(chunk)) + stages.clone().sum::<f64>();
            let slowest = stages.fold(self.sending_s(chunk), f64::max);
            first + (positions as f64 / chunk as f64 - 1.0) * slowest
        };
        [32, 64, 128, 256, 512].into_iter().map(of).fold(f64::INFINITY, f64::min)
    }

    fn places(&self, offered: bool) -> Vec<Place> {
        let mut from = 0;
        let layers = self.layers();
        let place = |(at, count): (usize, usize)| {
            from += count as u32;
            let here = at == 0 || at + 1 == layers.len();
            let us = |seconds: f64| (seconds * 1e6) as u64;
            let speed = StageSpeed {
                decode_us: us(self.step_s(count, 1)),
                prefill_position_us: us(self.step_s(count, 512) / 512.0),
            };
            Place {
                peer: (!here).then(|| PeerId::from_bytes([at as u8; 32])),
                layers: LayerRange::new(from - count as u32, from).unwrap(),
                here,
                rtt_s: if here { 0.0 } else { self.rtt_s },
                speed: (offered && !here).then_some(speed),
            }
        };
        layers.clone().into_iter().enumerate().map(place).collect()
    }
}

/// A session over a route: its stages' accounts, and what the client makes of them.
struct Session {
    route: Route,
    times: RouteTimes,
    accounts: Vec<Account>,
}

impl Session {
    fn new(route: Route, offered: bool) -> Self {
        let mut times = RouteTimes::default();
        times.over(&route.places(offered));
        Self { route, times, accounts: vec![Account::default(); route.peers + 2] }
    }

    fn ran(&mut self, rows: usize) {
        for (layers, account) in self.route.layers().into_iter().zip(&mut self.accounts) {
            account.steps += 1;
            account.positions += rows as u64;
            account.compute_us += (self.route.step_s(layers, rows) * 1e6) as u64;
            account.next_rtt_us = Some((self.route.rtt_s * 1e6) as u32);
        }
    }

    /// A prompt, and an answer of some tokens. Part of the bound that the prompt reached, and how it was cut.
    fn ask(&mut self, positions: usize) -> (f64, Cuts) {
        self.ask_for(positions, 40)
    }

    fn ask_for(&mut self, positions: usize, tokens: usize) -> (f64, Cuts) {
        let cuts = self.times.choose(positions, Cuts::default());
        let sizes = super::super::tests::sizes(positions, cuts.chunk);
        let seconds = self.route.play(&sizes, cuts.in_flight);
        sizes.iter().for_each(|rows| self.ran(*rows));
        self.times.took(positions, cuts, seconds);
        self.times.told(&self.accounts);
        (1..tokens).for_each(|_| self.ran(1));
        self.times.told(&self.accounts);
        (self.route.bound(positions) / seconds, cuts)
    }
}

fn routes() -> impl Iterator<Item = Route> {
    let all = [2, 3, 5, 8].into_iter().flat_map(|peers| [20.0, 50.0, 100.0].map(|rtt| (peers, rtt)));
    all.flat_map(|(peers, rtt)| [5.0, 20.0, 100.0].map(|mbit| Route::new(peers, rtt, mbit)))
}

#[test]
fn a_prompt_reaches_most_of_what_is_possible_once_the_route_is_known() {
    for route in routes() {
        for offered in [false, true] {
            let mut session = Session::new(route, offered);
            let reached: Vec<_> = (0..6).map(|_| session.ask(2_048)).collect();
            let of =
                |prompts: &[(f64, Cuts)]| prompts.iter().map(|(reached, _)| *reached).fold(f64::INFINITY, f64::min);
            assert!(of(&reached[..1]) >= 0.75 && of(&reached[1..2]) >= 0.8, "{route:?} {offered}: {reached:?}");
            assert!(of(&reached[2..]) >= 0.85, "{route:?} {offered}: {reached:?}");
        }
    }
}

#[test]
fn it_learns_from_prompts_alone() {
    for route in routes() {
        let mut session = Session::new(route, false);
        let reached: Vec<_> = (0..4).map(|_| session.ask_for(2_048, 1)).collect();
        assert!(reached[1..].iter().all(|(reached, _)| *reached >= 0.8), "{route:?}: {reached:?}");
    }
}

#[test]
fn short_prompts_teach_nothing_wrong_of_long_ones() {
    for route in routes() {
        let mut session = Session::new(route, false);
        for positions in [40, 70, 55, 120] {
            session.ask_for(positions, 32);
        }
        let reached: Vec<_> = (0..3).map(|_| session.ask(2_048)).collect();
        assert!(reached[0].0 >= 0.75 && reached[1].0 >= 0.8, "{route:?}: {reached:?}");
    }
}

#[test]
fn it_keeps_to_what_it_has_found() {
    for route in routes() {
        let mut session = Session::new(route, false);
        let cuts: Vec<_> = (0..12).map(|_| session.ask(2_048).1).collect();
        assert!(cuts[8..].windows(2).all(|pair| pair[0] == pair[1]), "{route:?}: {cuts:?}");
    }
}

#[test]
fn where_steps_cost_the_same_whatever_their_size_they_stay_large() {
    // A GPU far away: half a second for a hundred rows, or for one.
    let route = Route { fixed: 2e-2, per_row: 2e-6, ..Route::new(3, 50.0, 100.0) };
    for offered in [false, true] {
        let mut session = Session::new(route, offered);
        let cuts: Vec<_> = (0..6).map(|_| session.ask(2_048)).collect();
        let (reached, Cuts { chunk, .. }) = cuts[5];
        // As good as the best constant chunk, whatever the bound: it counts a step's fixed cost but once.
        let best = [32, 64, 128, 256, 512].map(|chunk| {
            let sizes = super::super::tests::sizes(2_048, chunk);
            route.bound(2_048) / route.play(&sizes, Cuts::of(chunk, 32).in_flight)
        });
        assert!(chunk >= 256 && reached >= 0.95 * best.into_iter().fold(0.0, f64::max), "{cuts:?} {best:?}");
        assert!(!offered || cuts[0].1.chunk >= 256, "it was told: {cuts:?}");
    }
}

#[test]
fn stages_of_one_machine_take_the_largest_steps() {
    let route = Route::new(3, 0.0, 1e6);
    let mut times = RouteTimes::default();
    let here = |place: Place| Place { here: true, ..place };
    times.over(&route.places(true).into_iter().map(here).collect::<Vec<_>>());
    assert_eq!(times.choose(2_048, Cuts::default()), Cuts { chunk: 512, in_flight: 4 });
    times.over(&[]);
    assert_eq!(times.choose(2_048, Cuts::default()), Cuts { chunk: 512, in_flight: 4 });
}

#[test]
fn what_is_known_of_a_peer_outlives_the_route() {
    let route = Route::new(3, 50.0, 20.0);
    let mut session = Session::new(route, false);
    for _ in 0..4 {
        session.ask(2_048);
    }
    let fit = |times: &RouteTimes, at: usize| times.stages[at].steps.fit();
    let known = fit(&session.times, 2);
    let mut places = route.places(false);
    places[1].peer = Some(PeerId::from_bytes([99; 32]));
    session.times.over(&places);
    session.times.reopened();
    assert_eq!((fit(&session.times, 1), fit(&session.times, 2)), (None, known));
    // A new session counts from nothing.
    let account = Account { steps: 2, positions: 2, compute_us: 20_000, ..Account::default() };
    session.times.told(&[account; 5]);
    assert!((fit(&session.times, 1).unwrap().seconds(1) - 0.01).abs() < 1e-9);
}

fn account() -> impl Strategy<Value = Account> {
    (any::<[u64; 5]>(), any::<Option<u32>>(), [0..64_u32, 0..64, 0..64]).prop_map(|(of, next_rtt_us, shifts)| Account {
        steps: of[0] >> shifts[0],
        positions: of[1] >> shifts[1],
        compute_us: of[2] >> shifts[2],
        handover_us: of[3] >> shifts[2],
        codec_us: of[4] >> shifts[2],
        next_rtt_us,
        ..Account::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_peers_tell_cuts_stay_within_bounds(
        told in prop::collection::vec((prop::collection::vec(account(), 0..6), 1..5_000_usize, any::<f64>()), 1..6),
        speeds in prop::collection::vec(any::<[u64; 2]>(), 5),
        most in (1..513_usize, 1..65_usize),
    ) {
        let mut times = RouteTimes::default();
        let mut places = Route::new(3, 50.0, 20.0).places(false);
        for (place, [decode_us, prefill_position_us]) in places.iter_mut().zip(speeds) {
            place.speed = Some(StageSpeed { decode_us, prefill_position_us });
        }
        let most = Cuts { chunk: most.0, in_flight: most.1 };
        for (accounts, positions, seconds) in told {
            times.over(&places);
            let cuts = times.choose(positions, most);
            prop_assert!((1..=most.chunk).contains(&cuts.chunk) && (1..=most.in_flight).contains(&cuts.in_flight));
            prop_assert!(cuts.in_flight == 1 || cuts.chunk * cuts.in_flight <= PREFILL_POSITIONS_IN_FLIGHT);
            times.took(positions, cuts, seconds);
            times.told(&accounts);
        }
    }
}
