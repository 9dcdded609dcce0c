//! Texts as a target would write them, with what a lookup and a draft model guess of each token.

/// A number between 0 and 1 that depends on these alone.
pub(crate) fn draw(seed: u64, place: u64, salt: u64) -> f64 {
    let mut z = seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for _ in 0..2 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// How a text goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// How often the draft model's first guess is right, on average; and whether it is as sure as it should be.
    pub(crate) model: f64,
    pub(crate) boasts: bool,
    /// Tokens of a copied span and of a novel one, on average; 0: none.
    pub(crate) copied: f64,
    pub(crate) novel: f64,
    /// How often a lookup is right inside a copied span.
    pub(crate) copy_right: f64,
}

impl Kind {
    /// Nothing is copied.
    pub(crate) const fn novel(name: &'static str, model: f64) -> Self {
        Self { name, model, boasts: false, copied: 0.0, novel: 1e9, copy_right: 0.0 }
    }

    /// Spans are copied; the rest is novel.
    pub(crate) const fn copying(name: &'static str, copied: f64, novel: f64) -> Self {
        Self { name, model: 0.7, boasts: false, copied, novel, copy_right: 0.97 }
    }
}

/// A text of one kind.
pub(crate) struct Text {
    kind: Kind,
    seed: u64,
    /// For each token, how many tokens of its copied span come before it; none: it is novel.
    copied: Vec<Option<usize>>,
}

/// A token that is never right.
const WRONG: u32 = 1 << 30;

/// Further than any draft looks ahead.
const MARGIN: usize = 2_048;

impl Text {
    pub(crate) fn new(kind: Kind, seed: u64, tokens: usize) -> Self {
        let mut copied = Vec::new();
        for span in 0u64.. {
            let long = |mean: f64, salt: u64| (mean * (0.25 + 1.5 * draw(seed, span, salt))).ceil() as usize;
            // No span is much longer than what is asked for.
            let length = |mean: f64, salt: u64| long(mean, salt).min(tokens + 4 * MARGIN);
            copied.extend(vec![None; length(kind.novel, 1)]);
            copied.extend((0..length(kind.copied, 2)).map(Some));
            if copied.len() > tokens + MARGIN {
                break;
            }
        }
        Self { kind, seed, copied }
    }

    /// The token at a place.
    pub(crate) fn token(&self, place: usize) -> u32 {
        (draw(self.seed, place as u64, 3) * f64::from(WRONG - 1)) as u32
    }

    fn draw(&self, place: usize, salt: u64) -> f64 {
        draw(self.seed, place as u64, salt)
    }

    /// The draft model's guesses for a place. `on_path`: what it is fed is the text as it is.
    pub(crate) fn modelled(&self, place: usize, on_path: bool) -> Vec<(u32, f32)> {
        let alpha = self.kind.model;
        // Its mean is alpha.
        let first = self.draw(place, 4).powf((1.0 - alpha) / alpha.max(1e-6));
        let shares = [first, (1.0 - first) * 0.5, (1.0 - first) * 0.25, (1.0 - first) * 0.12];
        let drawn = self.draw(place, 5);
        let mut sum = 0.0;
        let right = shares.iter().position(|share| {
            sum += share;
            drawn < sum
        });
        let mut guesses: Vec<(u32, f32)> = Vec::new();
        for (rank, share) in shares.iter().enumerate() {
            let hit = on_path && right == Some(rank);
            let token = if hit { self.token(place) } else { WRONG + (place * 4 + rank) as u32 };
            let claimed = if self.kind.boasts { (0.9 - 0.3 * rank as f64).max(0.01) } else { *share };
            guesses.push((token, claimed as f32));
        }
        guesses.sort_by(|a, b| b.1.total_cmp(&a.1));
        guesses
    }

    /// What a lookup finds from a place on.
    pub(crate) fn looked_up(&self, place: usize, on_path: bool, max: usize) -> Vec<(u32, f32)> {
        let wrong = |place: usize| WRONG + (place * 4 + 3) as u32;
        match self.copied[place] {
            // Two tokens have to match before anything is found.
            Some(before) if before >= 2 && on_path => (0..max)
                .map(|step| {
                    let place = place + step;
                    let inside = self.copied[place].is_some() && self.draw(place, 6) < self.kind.copy_right;
                    let confidence = 1.0 - 0.6 * 0.75f64.powi((before + step).min(16) as i32 - 2);
                    (if inside { self.token(place) } else { wrong(place) }, confidence as f32)
                })
                .collect(),
            _ if self.kind.copied > 0.0 && self.draw(place, 7) < 0.3 => {
                let right = |place: usize| on_path && self.draw(place, 8) < 0.15;
                let token = |place: usize| if right(place) { self.token(place) } else { wrong(place) };
                (0..max).map(|step| (token(place + step), 0.4 + 0.05 * step.min(8) as f32)).collect()
            }
            _ => Vec::new(),
        }
    }
}
