//! The baseline: llama.cpp's own loop in this process.

use std::{sync::mpsc, thread};

use potluck_engine::{EngineSettings, Load, bare::Bare};
use tokio::sync::oneshot;

use crate::{
    Outcome,
    model::Model,
    row::quantile,
    work::{Contestant, DECODE, PREFILL, Timed, Work, prompt},
};

/// What a standing pool's threads may do between tokens; none: threads are made for each graph.
const POLLS: [Option<u8>; 3] = [Some(0), Some(50), None];

/// Rounds that choose between them.
const TRIALS: usize = 3;

type Question = (usize, Work, oneshot::Sender<Result<Timed, String>>);

/// The bare loop, with the pool that suits it best. It has a thread of its own: this process's connections want to be
/// kept alive meanwhile.
#[derive(Debug)]
pub(crate) struct Baseline {
    questions: mpsc::Sender<Question>,
    best: [usize; 2],
}

impl Baseline {
    /// Loads the model and finds out which pool is fastest here, for each kind of work: the baseline gets the best.
    pub(crate) async fn find(model: &Model, settings: &EngineSettings) -> Outcome<Self> {
        let load = |poll| model.whole(&EngineSettings { poll, ..settings.clone() });
        let loads: Vec<Load> = POLLS.into_iter().map(load).collect::<Outcome<_>>()?;
        let (questions, asked) = mpsc::channel();
        thread::spawn(move || answer(&loads, &asked));
        let mut baseline = Self { questions, best: [0; 2] };
        for work in Work::ALL {
            let mut rates = vec![Vec::new(); POLLS.len()];
            for _ in 0..TRIALS {
                for (at, rates) in rates.iter_mut().enumerate() {
                    rates.push(baseline.measure(at, work).await?.rate);
                }
            }
            let medians: Vec<f64> = rates.iter().map(|rates| quantile(rates, 0.5)).collect();
            for (poll, rate) in POLLS.iter().zip(&medians) {
                eprintln!("  bare loop, {:7}, {}: {rate:.1} tokens/s", work.name(), describe(*poll));
            }
            baseline.best[kind(work)] =
                (0..medians.len()).max_by(|&a, &b| medians[a].total_cmp(&medians[b])).unwrap_or(0);
        }
        Ok(baseline)
    }

    async fn measure(&self, at: usize, work: Work) -> Outcome<Timed> {
        let (answer, rate) = oneshot::channel();
        self.questions.send((at, work, answer))?;
        Ok(rate.await??)
    }
}

/// The thread of the bare loops: loads each, then runs what it is asked for.
fn answer(loads: &[Load], asked: &mpsc::Receiver<Question>) {
    let mut loops: Vec<_> = loads.iter().map(Bare::load).collect();
    for (at, work, answer) in asked {
        let rate = match &mut loops[at] {
            Ok(bare) => run(bare, work).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        // Whoever asked may have given up.
        let _ = answer.send(rate);
    }
}

fn run(bare: &mut Bare, work: Work) -> Result<Timed, potluck_engine::EngineError> {
    bare.clear();
    bare.prefill(&prompt()[..8])?;
    bare.clear();
    if work == Work::Prefill {
        return Ok(Timed::of(vec![bare.prefill(&prompt())?.as_secs_f64()], PREFILL));
    }
    let mut token = prompt()[0];
    let mut steps = Vec::with_capacity(DECODE as usize);
    for _ in 0..DECODE {
        let (tokens, time) = bare.decode(token, 1)?;
        token = tokens[0];
        steps.push(time.as_secs_f64());
    }
    Ok(Timed::of(steps, 1))
}

/// Which of the two kinds of work that a pool is chosen for.
fn kind(work: Work) -> usize {
    usize::from(work != Work::Prefill)
}

fn describe(poll: Option<u8>) -> String {
    poll.map_or("threads made for each graph".into(), |poll| format!("standing threads, poll {poll}"))
}

impl Contestant for Baseline {
    fn name(&self, work: Work) -> String {
        format!("the bare loop ({})", describe(POLLS[self.best[kind(work)]]))
    }

    async fn run(&mut self, work: Work) -> Outcome<Timed> {
        self.measure(self.best[kind(work)], work).await
    }
}
