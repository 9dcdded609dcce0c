//! A session in virtual time: the loop that a client runs, with everything but the decisions made up from a seed.

pub(crate) mod machine;
pub(crate) mod text;

use std::collections::VecDeque;

use potluck_chain::draft::{Controller, Expand, Growth, Plan, Rule, Source, Tree};

use machine::{Chain, Setting};
use text::{Kind, Text};

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Policy {
    Controlled,
    /// Always the same. A lookup's guesses go first where there are any.
    Fixed {
        lookup: bool,
        model: bool,
        depth: usize,
        width: usize,
        windows: usize,
    },
}

impl Policy {
    pub(crate) const PLAIN: Self = Self::Fixed { lookup: false, model: false, depth: 0, width: 1, windows: 1 };

    /// All fixed ones that are searched.
    pub(crate) fn fixed() -> Vec<Self> {
        let mut all = vec![Self::PLAIN];
        for (lookup, model) in [(true, false), (false, true), (true, true)] {
            for depth in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48] {
                for width in if model { vec![1, 2, 4] } else { vec![1] } {
                    for windows in [1, 2, 4, 8] {
                        all.push(Self::Fixed { lookup, model, depth, width, windows });
                    }
                }
            }
        }
        all
    }

    fn plan(self, controller: &mut Controller, guesses: &[(u32, f32)]) -> Plan {
        match self {
            Self::Controlled => controller.plan(guesses, true),
            Self::Fixed { lookup: true, depth, .. } if !guesses.is_empty() => {
                Plan::Lookup { rows: depth.min(guesses.len()) }
            }
            Self::Fixed { model: true, depth, width, .. } => {
                let rows_max = (depth * width).min(63);
                let (width_max, forwards_max) = (width, depth);
                Plan::Model(Rule {
                    row: 0.0,
                    forward: 0.0,
                    hit: 1.0,
                    rows_max,
                    depth_max: depth,
                    width_max,
                    forwards_max,
                })
            }
            Self::Fixed { .. } => Plan::Plain,
        }
    }

    fn another(self, controller: &Controller, tree: &Tree, reached: f64, in_flight: usize) -> bool {
        match self {
            Self::Controlled => controller.another_window(tree, reached, in_flight),
            Self::Fixed { windows, .. } => in_flight < windows && !tree.is_empty(),
        }
    }

    fn further(self, controller: &Controller, guesses: &[(u32, f32)]) -> usize {
        match self {
            Self::Controlled => controller.further_rows(guesses),
            Self::Fixed { depth, .. } => depth.min(guesses.len()),
        }
    }

    fn window(self, controller: &Controller) -> usize {
        match self {
            Self::Controlled => controller.window_rows(),
            Self::Fixed { depth, .. } => depth,
        }
    }
}

/// A window in flight.
struct Window {
    tree: Tree,
    source: Source,
    /// The place of the tree's first tokens.
    base: usize,
    /// Rows that were sent, the certain one with them.
    rows: usize,
    sent_at: f64,
    answer_at: f64,
    alone: bool,
}

impl Window {
    fn end(&self) -> usize {
        self.base + self.tree.first_path().len()
    }
}

/// What a session came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) tokens: usize,
    pub(crate) seconds: f64,
    /// Rounds begun plain, with a lookup, with a model; windows sent behind others; drafts sent; rounds with a real tree.
    pub(crate) plain: usize,
    pub(crate) looked_up: usize,
    pub(crate) modelled: usize,
    pub(crate) behind: usize,
    pub(crate) drafts: usize,
    pub(crate) trees: usize,
}

impl Outcome {
    pub(crate) fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

struct Session<'a> {
    text: &'a Text,
    policy: Policy,
    chain: Chain,
    controller: Controller,
    now: f64,
    /// Tokens that are certain.
    certain: usize,
    flight: VecDeque<Window>,
    growth: Growth,
    /// Where the growth hangs.
    root: usize,
    fenced: bool,
    last_answer: f64,
    last_sent: f64,
    outcome: Outcome,
}

/// Runs a session of so many tokens.
pub(crate) fn run(kind: Kind, setting: Setting, policy: Policy, seed: u64, tokens: usize) -> Outcome {
    answer(&mut Controller::default(), kind, setting, policy, seed, tokens)
}

/// An answer of so many tokens with a controller that may have learnt from others, and learns from this one.
pub(crate) fn answer(
    controller: &mut Controller,
    kind: Kind,
    setting: Setting,
    policy: Policy,
    seed: u64,
    tokens: usize,
) -> Outcome {
    let text = Text::new(kind, seed, tokens);
    let mut session = Session {
        text: &text,
        policy,
        chain: Chain::new(setting, seed),
        controller: std::mem::take(controller),
        now: 0.0,
        certain: 0,
        flight: VecDeque::new(),
        growth: Growth::default(),
        root: 0,
        fenced: false,
        last_answer: 0.0,
        last_sent: 0.0,
        outcome: Outcome::default(),
    };
    while session.certain < tokens {
        session.chain.progress = session.certain as f64 / tokens as f64;
        session.round();
    }
    *controller = session.controller;
    Outcome { tokens: session.certain, seconds: session.now, ..session.outcome }
}

impl Session<'_> {
    fn round(&mut self) {
        let guesses = self.text.looked_up(self.certain, true, 63);
        let began = self.certain;
        let plan = self.policy.plan(&mut self.controller, &guesses);
        // A lookup's first guess is judged, sent or not.
        let unsent = guesses.first().copied().filter(|_| !matches!(plan, Plan::Lookup { .. }));
        match plan {
            Plan::Plain => {
                self.outcome.plain += 1;
                self.send(Tree::default(), Source::Lookup);
                self.look_further();
                while !self.flight.is_empty() {
                    self.answer();
                }
            }
            Plan::Lookup { rows } => {
                self.outcome.looked_up += 1;
                let tree = self.controller.chain(Source::Lookup, &guesses[..rows]);
                self.send(tree, Source::Lookup);
                while !self.flight.is_empty() {
                    self.look_further();
                    self.answer();
                }
            }
            Plan::Model(rule) => {
                self.outcome.modelled += 1;
                self.grow(&rule);
                let first = match self.policy {
                    Policy::Controlled => self.controller.first_rows(),
                    Policy::Fixed { .. } => rule.rows_max,
                };
                let tree = self.growth.tree(&Rule { rows_max: rule.rows_max.min(first), ..rule });
                self.outcome.trees += usize::from(!tree.is_chain());
                self.hang(&tree);
                self.send(tree, Source::Model);
                while !self.flight.is_empty() {
                    self.look_further();
                    self.draft_ahead(&rule);
                    self.answer();
                }
            }
        }
        if let Some((token, confidence)) = unsent {
            self.controller.judged(Source::Lookup, confidence, self.text.token(began) == token);
        }
    }

    fn send(&mut self, tree: Tree, source: Source) {
        let alone = self.flight.is_empty();
        let base = self.flight.back().map_or(self.certain, Window::end);
        let rows = tree.len() + usize::from(alone);
        let answer_at = self.chain.send(self.now, rows);
        self.outcome.drafts += tree.len();
        self.outcome.behind += usize::from(!alone);
        let alone = alone && !std::mem::take(&mut self.fenced);
        self.flight.push_back(Window { tree, source, base, rows, sent_at: self.now, answer_at, alone });
    }

    /// Probability that all in flight is accepted.
    fn reached(&self) -> f64 {
        let certain = self.flight.front().map_or(1.0, |first| match first.base == self.certain {
            true => 1.0,
            // Its first token is certain already.
            false => first.tree.nodes().first().map_or(1.0, |node| node.cumulative),
        });
        let whole = |window: &Window| window.tree.first_path().last().map_or(1.0, |leaf| leaf.cumulative);
        self.flight.iter().map(whole).product::<f64>() / certain
    }

    /// Whether all that is in flight is the text as it is.
    fn on_path(&self) -> bool {
        let right = |window: &Window| {
            window
                .tree
                .first_path()
                .iter()
                .enumerate()
                .all(|(depth, node)| node.token == self.text.token(window.base + depth))
        };
        self.flight.iter().all(right)
    }

    fn look_further(&mut self) {
        while let Some(last) = self.flight.back() {
            let guesses = self.text.looked_up(last.end(), self.on_path(), 63);
            let rows = self.policy.further(&self.controller, &guesses);
            let tree = self.controller.chain(Source::Lookup, &guesses[..rows]);
            if !self.policy.another(&self.controller, &tree, self.reached(), self.flight.len()) {
                break;
            }
            self.send(tree, Source::Lookup);
        }
    }

    fn expand(&mut self, expand: Expand) {
        let path = self.growth.path(expand);
        let along = |(depth, token): (usize, &u32)| *token == self.text.token(self.root + depth);
        let on_path = self.on_path() && path.iter().enumerate().all(along);
        let guesses = self.text.modelled(self.root + path.len(), on_path);
        self.growth.expanded(expand, &guesses, self.controller.calibration());
    }

    /// Forwards that the chain waits for.
    fn grow(&mut self, rule: &Rule) {
        if self.root != self.certain {
            (self.growth, self.root) = (Growth::default(), self.certain);
        }
        let begun = self.now;
        let before = self.growth.forwards();
        while let Some(expand) = self.growth.next(rule) {
            self.expand(expand);
            self.now += self.chain.forward();
        }
        self.controller.drafted(self.growth.forwards() - before, self.now - begun, true);
    }

    /// The growth goes on from the end of the likeliest path of what is sent.
    fn hang(&mut self, tree: &Tree) {
        for node in tree.first_path() {
            self.growth.descend(node.token);
            self.root += 1;
        }
    }

    /// Forwards while a window is in flight, and further windows of what they bring.
    fn draft_ahead(&mut self, rule: &Rule) {
        let rule = rule.while_waiting();
        let until = self.flight.front().map_or(self.now, |window| window.answer_at);
        loop {
            let next = self.growth.next(&rule);
            let tree = self.growth.tree(&rule);
            // What the model guesses hangs from its own tree: not behind what was looked up.
            let hangs = self.flight.back().is_some_and(|last| last.end() == self.root);
            let whole = hangs && (tree.len() >= self.policy.window(&self.controller) || next.is_none());
            if whole && self.policy.another(&self.controller, &tree, self.reached(), self.flight.len()) {
                self.hang(&tree);
                self.send(tree, Source::Model);
                continue;
            }
            let Some(expand) = next else { break };
            if self.now + self.chain.forward() > until || self.growth.forwards() > 64 {
                break;
            }
            self.expand(expand);
            self.now += self.chain.forward();
            self.controller.drafted(1, self.chain.forward(), false);
        }
    }

    fn answer(&mut self) {
        let Some(window) = self.flight.pop_front() else { return };
        let answered_at = self.now.max(window.answer_at);
        let mut accepted: Vec<u16> = Vec::new();
        while let Some(row) = window.tree.child(accepted.last().copied(), self.text.token(window.base + accepted.len()))
        {
            accepted.push(row);
        }
        self.now = answered_at;
        // A first window behind a fenced one is neither alone nor behind an answer.
        if window.alone {
            self.controller.traversed(window.rows, window.answer_at - window.sent_at);
        } else if window.rows == window.tree.len() {
            let (left, answered) = (window.sent_at - self.last_sent, window.answer_at - self.last_answer);
            self.controller.followed(window.rows, left, answered);
        }
        self.last_sent = window.sent_at;
        if !window.tree.is_empty() || window.source == Source::Model {
            self.controller.answered(window.source, &window.tree, &accepted, true);
        }
        let next_certain = window.base + accepted.len() + 1;
        self.controller.progressed(next_certain - self.certain, self.now - self.outcome.seconds);
        self.outcome.seconds = self.now;
        self.last_answer = window.answer_at;
        self.certain = next_certain;
        let whole = accepted.len() == window.tree.first_path().len()
            && accepted.iter().enumerate().all(|(depth, row)| depth == usize::from(*row));
        let token = self.text.token(self.certain - 1);
        if let Some(next) = self.flight.front() {
            if whole && next.tree.child(None, token).is_some() {
                return;
            }
            if whole {
                let next = self.flight.pop_front().map(|next| (next.source, next.tree));
                next.iter().for_each(|(source, tree)| self.controller.answered(*source, tree, &[], true));
                self.chain.fence(1 + self.flight.len());
            } else {
                self.chain.fence(self.flight.len());
            }
            self.fenced = true;
            self.flight.clear();
            (self.growth, self.root) = (Growth::default(), self.certain);
        } else if whole && self.root + 1 == self.certain && self.growth.descend(token) {
            self.root = self.certain;
        } else {
            (self.growth, self.root) = (Growth::default(), self.certain);
        }
    }
}
