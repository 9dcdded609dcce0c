//! Machines that choose for themselves what they serve, some of which go: a route comes to lead through the model again, and then all stay.
//!
//! Each knows what it has heard, which is up to a second old, or to eight, so that two may move at once; notices after seconds that another is gone, and looks whether it is its turn
//! every two seconds. A seed repeats everything.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test is its own driver")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use potluck_chain::plan::{LayerFacts, Lender, ModelFacts, Turn, lend, menders, missing};
use potluck_core::{LayerRange, ModelId, PeerId};

const LAYERS: u32 = 12;
const POSITIONS: u64 = 10;
const WHOLE: u64 = 12 * 110 + 120;

const LOOK_EVERY: u64 = 2_000;
const TOLD_WITHIN: [u64; 2] = [1_000, 8_000];

/// Milliseconds without a fault after which everything is as it should be, and those after that in which nothing moves any more.
const SETTLES_WITHIN: u64 = 150_000;
const RESTS: u64 = 60_000;

fn model() -> ModelFacts {
    ModelFacts {
        model: ModelId::from_bytes([7; 32]),
        layers: vec![LayerFacts { weight_bytes: 100, cache_bytes_per_position: 1 }; LAYERS as usize],
        head_bytes: 50,
        tail_bytes: 70,
        tied: false,
        width: 8,
        cuts: (1..LAYERS).collect(),
    }
}

#[derive(Debug, Clone)]
struct Machine {
    alive: bool,
    memory: u64,
    /// What it serves, or is loading until then.
    layers: LayerRange,
    loads_until: Option<u64>,
    turn: Turn,
    looks_at: u64,
    /// What it has heard of the others, itself included, and when each was gone for it.
    heard: BTreeMap<usize, (u64, LayerRange)>,
    gone_at: BTreeMap<usize, u64>,
}

struct Swarm {
    rng: fastrand::Rng,
    begun: Instant,
    now: u64,
    machines: Vec<Machine>,
    /// When whom what reaches.
    told: Vec<(u64, usize, (usize, u64, LayerRange))>,
    told_within: u64,
    moves: Vec<u64>,
    sequence: u64,
}

fn id(n: usize) -> PeerId {
    PeerId::from_bytes([n as u8; 32])
}

impl Swarm {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (machines, told, moves) = (Vec::new(), Vec::new(), Vec::new());
        let count = rng.usize(2..=6);
        let told_within = TOLD_WITHIN[rng.usize(..2)];
        let mut swarm = Self { rng, begun: Instant::now(), now: 0, machines, told, told_within, moves, sequence: 0 };
        (0..count).for_each(|n| swarm.comes(n));
        swarm
    }

    /// A machine comes, or comes back, and takes what is needed most.
    fn comes(&mut self, n: usize) {
        let served: Vec<_> = self.there().map(|machine| machine.layers).collect();
        // One alone can always hold the model; few can hold much less.
        let memory = WHOLE + self.rng.u64(..WHOLE);
        let takes = if self.rng.bool() { memory } else { WHOLE / 3 };
        let chosen = |memory| lend(&model(), &served, POSITIONS, memory);
        let layers = chosen(takes).or_else(|| chosen(memory)).unwrap();
        let (turn, heard, gone_at) = Default::default();
        let (alive, loads_until, looks_at) = (true, None, self.now + self.rng.u64(3_000..5_000));
        let machine = Machine { alive, memory, layers, loads_until, turn, looks_at, heard, gone_at };
        match self.machines.get_mut(n) {
            Some(old) => *old = machine,
            None => self.machines.push(machine),
        }
        for other in 0..self.machines.len() {
            if other != n && self.machines[other].alive {
                let layers = self.machines[other].layers;
                self.sequence += 1;
                self.machines[n].heard.insert(other, (self.sequence, layers));
                self.machines[other].gone_at.remove(&n);
            }
        }
        self.tells(n);
    }

    fn goes(&mut self, n: usize) {
        self.machines[n].alive = false;
        for other in 0..self.machines.len() {
            let noticed = self.now + self.rng.u64(3_000..8_000);
            self.machines[other].gone_at.insert(n, noticed);
        }
    }

    fn there(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|machine| machine.alive)
    }

    fn tells(&mut self, n: usize) {
        self.sequence += 1;
        let (layers, sequence) = (self.machines[n].layers, self.sequence);
        for other in (0..self.machines.len()).filter(|other| *other != n) {
            let at = self.now + self.rng.u64(..self.told_within);
            self.told.push((at, other, (n, sequence, layers)));
        }
    }

    fn looks(&mut self, n: usize) {
        let machine = &self.machines[n];
        let known =
            machine.heard.iter().filter(|(other, _)| machine.gone_at.get(other).is_none_or(|at| *at > self.now));
        let lender = |(other, (_, layers)): (&usize, &(u64, LayerRange))| {
            let memory = Some(self.machines[*other].memory);
            Lender { peer: id(*other), layers: *layers, positions: POSITIONS, memory, is_used: false }
        };
        let own = self.lender(n);
        let menders = menders(&model(), &known.map(lender).chain([own]).collect::<Vec<_>>());
        let now = self.begun + Duration::from_millis(self.now);
        let Some(layers) = self.machines[n].turn.look(now, &menders, id(n)) else { return };
        let loads_until = self.now + self.rng.u64(500..20_000);
        let machine = &mut self.machines[n];
        (machine.layers, machine.loads_until, machine.turn) = (layers, Some(loads_until), Turn::default());
        self.moves.push(self.now);
        self.tells(n);
    }

    fn until(&mut self, end: u64) {
        while self.now < end {
            self.now += 50;
            let (due, later) = std::mem::take(&mut self.told).into_iter().partition(|(at, ..)| *at <= self.now);
            self.told = later;
            for (_, to, (from, sequence, layers)) in due {
                let heard = &mut self.machines[to].heard;
                if heard.get(&from).is_none_or(|(known, _)| *known < sequence) {
                    heard.insert(from, (sequence, layers));
                }
            }
            for n in 0..self.machines.len() {
                let machine = &mut self.machines[n];
                machine.loads_until = machine.loads_until.filter(|until| *until > self.now);
                if machine.alive && machine.loads_until.is_none() && machine.looks_at <= self.now {
                    machine.looks_at = self.now + LOOK_EVERY;
                    self.looks(n);
                }
            }
        }
    }

    fn lender(&self, n: usize) -> Lender {
        let Machine { layers, memory, .. } = self.machines[n];
        Lender { peer: id(n), layers, positions: POSITIONS, memory: Some(memory), is_used: false }
    }

    /// Whether a route leads through the model.
    fn is_whole(&self) -> bool {
        let serves = |n: &usize| self.machines[*n].alive && self.machines[*n].loads_until.is_none();
        missing(&model(), &(0..self.machines.len()).filter(serves).map(|n| self.lender(n)).collect::<Vec<_>>()) == 0
    }
}

#[test]
fn a_route_leads_through_the_model_again_and_then_nothing_moves() {
    let mut moved = 0;
    for seed in 0..2_000 {
        let mut swarm = Swarm::new(seed);
        let mut faults = swarm.machines.len();
        for _ in 0..swarm.rng.usize(1..=4) {
            let pause = swarm.rng.u64(100..60_000);
            swarm.until(swarm.now + pause);
            let n = swarm.rng.usize(..swarm.machines.len());
            let alive = swarm.there().count();
            match swarm.machines[n].alive {
                true if alive > 1 => swarm.goes(n),
                true => continue,
                false => swarm.comes(n),
            }
            faults += 1;
        }
        swarm.until(swarm.now + SETTLES_WITHIN);
        let served: Vec<_> = swarm.there().map(|machine| machine.layers.to_string()).collect();
        assert!(swarm.is_whole(), "seed {seed}: {served:?}");
        let late = swarm.moves.iter().filter(|at| **at + RESTS > swarm.now).count();
        assert_eq!(late, 0, "seed {seed}: {:?} of {}", swarm.moves, swarm.now);
        let most = 2 * faults * swarm.machines.len();
        assert!(swarm.moves.len() <= most, "seed {seed}: {} moves after {faults} changes", swarm.moves.len());
        moved += swarm.moves.len();
    }
    assert!(moved > 500, "{moved} moves: nothing was lost that had to be taken");
}
