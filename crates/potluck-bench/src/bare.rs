//! The baseline: llama.cpp's own loop in this process.

use potluck_engine::{EngineSettings, bare::Bare};

use crate::{
    Outcome,
    model::Model,
    row::quantile,
    work::{Contestant, DECODE, PREFILL, Work, prompt},
};

/// What a standing pool's threads may do between tokens; none: threads are made for each graph.
const POLLS: [Option<u8>; 3] = [Some(0), Some(50), None];

/// Rounds that choose between them.
const TRIALS: usize = 3;

/// The bare loop, with the pool that suits it best.
#[derive(Debug)]
pub(crate) struct Baseline {
    loops: Vec<(Option<u8>, Bare)>,
    best: [usize; 2],
}

impl Baseline {
    /// Loads the model and finds out which pool is fastest here, for each kind of work: the baseline gets the best.
    pub(crate) fn find(model: &Model, settings: &EngineSettings) -> Outcome<Self> {
        let load = |poll| Ok((poll, Bare::load(&model.whole(&EngineSettings { poll, ..settings.clone() })?)?));
        let mut baseline = Self { loops: POLLS.into_iter().map(load).collect::<Outcome<_>>()?, best: [0; 2] };
        for work in Work::ALL {
            let mut rates = vec![Vec::new(); POLLS.len()];
            for _ in 0..TRIALS {
                for (at, rates) in rates.iter_mut().enumerate() {
                    rates.push(baseline.measure(at, work)?);
                }
            }
            let medians: Vec<f64> = rates.iter().map(|rates| quantile(rates, 0.5)).collect();
            for (poll, rate) in POLLS.iter().zip(&medians) {
                eprintln!("  bare loop, {:7}, {}: {rate:.1} tokens/s", work.name(), describe(*poll));
            }
            baseline.best[work as usize] =
                (0..medians.len()).max_by(|&a, &b| medians[a].total_cmp(&medians[b])).unwrap_or(0);
        }
        Ok(baseline)
    }

    fn measure(&mut self, at: usize, work: Work) -> Outcome<f64> {
        let bare = &mut self.loops[at].1;
        bare.clear();
        bare.prefill(&prompt()[..8])?;
        bare.clear();
        Ok(match work {
            Work::Prefill => f64::from(PREFILL) / bare.prefill(&prompt())?.as_secs_f64(),
            Work::Decode => f64::from(DECODE) / bare.decode(prompt()[0], DECODE as usize)?.1.as_secs_f64(),
        })
    }
}

fn describe(poll: Option<u8>) -> String {
    poll.map_or("threads made for each graph".into(), |poll| format!("standing threads, poll {poll}"))
}

impl Contestant for Baseline {
    fn name(&self, work: Work) -> String {
        format!("the bare loop ({})", describe(self.loops[self.best[work as usize]].0))
    }

    async fn run(&mut self, work: Work) -> Outcome<f64> {
        self.measure(self.best[work as usize], work)
    }
}
