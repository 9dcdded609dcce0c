//! A chain in virtual time: stages in a row, each doing one step after another, lines between them.

use super::text::draw;

/// What the stages compute on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Device {
    /// Rows cost nearly what they cost alone: measured on a laptop's CPU.
    Cpu,
    /// Rows are nearly free.
    Gpu,
}

impl Device {
    /// Milliseconds of all stages together for a step of 1, 2, 4 ... 64 rows.
    fn milliseconds(self) -> [f64; 7] {
        match self {
            Self::Cpu => [9.0, 16.0, 25.0, 46.0, 82.0, 159.0, 313.0],
            Self::Gpu => [12.0, 12.2, 12.5, 13.0, 14.0, 16.5, 21.0],
        }
    }

    /// Seconds of all stages together.
    fn seconds(self, rows: usize) -> f64 {
        let place = (rows.max(1) as f64).log2();
        let (low, high) = (place.floor() as usize, place.ceil() as usize);
        let of = |mark: usize| self.milliseconds()[mark.min(6)] / 1_000.0;
        if low == high {
            return of(low);
        }
        let share = (rows as f64 - f64::from(1 << low)) / f64::from((1 << high) - (1 << low));
        of(low) + (of(high) - of(low)) * share
    }
}

/// A chain's setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Setting {
    pub(crate) device: Device,
    /// Seconds that a step spends on lines, all hops together.
    pub(crate) lines: f64,
    /// A forward of the draft model, of a plain step.
    pub(crate) draft: f64,
    /// Each time is off by up to this share.
    pub(crate) noise: f64,
    /// What lines and stages cost at the end of the session, of what they cost at its beginning.
    pub(crate) drift: f64,
}

impl Setting {
    /// Seconds of a plain step at the beginning.
    pub(crate) fn plain_step(&self) -> f64 {
        self.lines + self.device.seconds(1)
    }
}

pub(crate) const STAGES: usize = 3;

/// What a stage does, and for which step.
#[derive(Debug, Clone, Copy)]
struct Work {
    start: f64,
    end: f64,
    step: u64,
}

pub(crate) struct Chain {
    setting: Setting,
    seed: u64,
    /// How far the session is, from 0 to 1.
    pub(crate) progress: f64,
    steps: u64,
    work: [Vec<Work>; STAGES],
    /// Steps from the first of these on, and below the second, are fenced off.
    fenced: Vec<(u64, u64)>,
}

impl Chain {
    pub(crate) fn new(setting: Setting, seed: u64) -> Self {
        Self { setting, seed, progress: 0.0, steps: 0, work: Default::default(), fenced: Vec::new() }
    }

    fn noisy(&self, seconds: f64, salt: u64) -> f64 {
        let drift = 1.0 + (self.setting.drift - 1.0) * self.progress;
        seconds * drift * (1.0 + self.setting.noise * (2.0 * draw(self.seed, self.steps, 100 + salt) - 1.0))
    }

    /// Seconds of one forward of the draft model.
    pub(crate) fn forward(&self) -> f64 {
        self.setting.draft * self.setting.plain_step()
    }

    /// The last so many steps are in vain. Stages learn it with the next step, and finish what they have begun.
    pub(crate) fn fence(&mut self, steps: usize) {
        self.fenced.push((self.steps - steps as u64, self.steps));
    }

    /// Sends a step at `now`; when its answer is there.
    pub(crate) fn send(&mut self, now: f64, rows: usize) -> f64 {
        self.steps += 1;
        let (step, hop) = (self.steps - 1, self.setting.lines / (STAGES + 1) as f64);
        let mut at = now + self.noisy(hop, 0);
        for stage in 0..STAGES {
            let seconds = self.noisy(self.setting.device.seconds(rows) / STAGES as f64, 1 + stage as u64);
            let fenced = &self.fenced;
            let in_vain = |work: &Work| fenced.iter().any(|(from, to)| (*from..*to).contains(&work.step));
            self.work[stage].retain(|work| work.end > now - 10.0 && !(in_vain(work) && work.start >= at));
            let start = self.work[stage].iter().map(|work| work.end).fold(at, f64::max);
            self.work[stage].push(Work { start, end: start + seconds, step });
            at = start + seconds + self.noisy(hop, 10 + stage as u64);
        }
        self.fenced.retain(|(_, to)| *to + 64 > step);
        at
    }
}
