//! The parts of the bench: which settings, which arms, which goals.

use potluck_netem::link::Line;
use potluck_wire::Codec;

use super::{
    Wan,
    contest::{ALONE, Arm, Case, Length, RPC},
    figures::{Figure, round},
    net::Setting,
    predict,
    prompts::{self, Prompt},
    race::{Measure, Pairing, Race, Unknown},
    stand::{LOCAL, Stand, Wants},
    words::{Answered, Source, Speculation},
};
use crate::Outcome;

/// The chains of a stand, by what their stages do.
const REAL: &str = "real";
const PACED: &str = "paced";

/// The rate of llama.cpp's RPC is the same for every token, whatever the text: so many show it, beside answers that are longer.
pub(super) const RPC_TOKENS: u32 = 16;
const PLAIN: &str = "plain";

/// What plain decode, and a prefill, should reach of their bounds.
const PLAIN_GOAL: f64 = 0.9;
const PREFILL_GOAL: f64 = 0.8;

/// What eight sessions should reach together, of one.
const SESSIONS: u16 = 8;
const SESSIONS_GOAL: f64 = 5.0;

/// Against llama.cpp's RPC: with the better draft, and with the worse; on text that repeats, paced and real.
const NOVEL_GOALS: [(&str, f64); 2] = [("draft Q4_0", 5.0), ("draft cut", 2.5)];
const DRAFTABLE_GOALS: [f64; 2] = [20.0, 10.0];
/// Against our own token a traversal, on novel text.
const OVER_PLAIN_GOAL: f64 = 2.0;
/// Drafts are to cost no more than 2 % where they do not help.
const NO_SLOWER_GOAL: f64 = 0.98;

/// Positions of a long prompt, and what it is asked for.
const PREFILL: u32 = 2_048;
const FIRST_TOKEN: Length = Length { max_tokens: 1, ignore_eos: true };

impl Wan {
    /// All that was asked for.
    pub(super) async fn parts(mut self) -> Outcome<()> {
        for setting in self.settings() {
            if self.wants("plain") {
                self.plain(setting).await?;
            }
            if self.wants("novel") || self.wants("draftable") {
                self.drafted(setting).await?;
            }
        }
        if self.wants("rtt") {
            for rtt_ms in [0.0, 20.0, 50.0, 100.0, 200.0] {
                self.curve("rtt", Setting { rtt_ms, ..self.setting() }).await?;
            }
        }
        if self.wants("stages") {
            for peers in [2, 3, 5, 8] {
                self.curve("stages", Setting { peers, ..self.setting() }).await?;
            }
        }
        if self.wants("prefill") {
            self.prefill().await?;
        }
        if self.wants("sessions") {
            self.sessions().await?;
        }
        if self.wants("codecs") {
            for mbit in [5.0, 20.0, 100.0] {
                self.codecs(Setting { mbit, ..self.setting() }).await?;
            }
        }
        Ok(())
    }

    fn length(&self, whole: u32) -> Length {
        Length { max_tokens: self.args.tokens.unwrap_or(if self.args.quick { 24 } else { whole }), ignore_eos: false }
    }

    fn prompts(&self, draftable: bool, most: usize) -> Outcome<Vec<Prompt>> {
        prompts::some(draftable, self.args.prompts.unwrap_or(if self.args.quick { 3 } else { most }))
    }

    fn setting(&self) -> Setting {
        Setting { seed: self.args.seed, ..Setting::default() }
    }

    /// What plain, novel and draftable are measured under: each line that was asked for, or else each loss.
    fn settings(&self) -> Vec<Setting> {
        let losing = |per_cent: &f64| Setting { loss: per_cent / 100.0, ..self.setting() };
        let on = |line: &Line| Setting { seed: self.args.seed, ..Setting::on(*line) };
        match self.args.line.is_empty() {
            true => self.args.loss.iter().map(losing).collect(),
            false => self.args.line.iter().map(on).collect(),
        }
    }

    async fn race(&mut self, stand: &mut Stand, race: Race<'_>) -> Outcome<()> {
        let (mut figure, unknown) = race.run(stand, &self.commit).await?;
        if !unknown.is_empty() {
            stand.open_local(&self.bench).await?;
            for Unknown { equality, parting, text } in unknown {
                figure.equality[equality].parted[parting].margin = stand.margin(text).await?;
            }
            stand.close(LOCAL).await?;
        }
        self.put(figure)
    }

    /// Answers of one session, a token a traversal, against llama.cpp's RPC and against the bound. Nothing else computes meanwhile: each
    /// engine has all cores.
    async fn plain(&mut self, setting: Setting) -> Outcome<()> {
        let wants = Wants { real: true, paced: true, rpc: true, sessions: 1, chains: 1, threads: None };
        let mut stand = self.bench.stand(setting, wants).await?;
        let length = self.length(48);
        let cases = self.bench.record(&mut stand, &self.prompts(false, 12)?, length.max_tokens).await?;
        for (chain, paced) in self.chains() {
            stand.open(chain, paced, Codec::F16, 1).await?;
            self.answers(&mut stand, "plain", (chain, paced), &cases, length).await?;
            stand.close(chain).await?;
        }
        Ok(())
    }

    /// The same with drafts, and without beside them: each engine has the threads that it is given.
    async fn drafted(&mut self, setting: Setting) -> Outcome<()> {
        // A draft model and a stage compute at once: more threads than there are cores wait for each other at every barrier.
        let threads = Some(self.args.threads);
        let wants = Wants { real: true, paced: true, rpc: true, sessions: 1, chains: 1, threads };
        let mut stand = self.bench.stand(setting, wants).await?;
        // What repeats a text goes on until it is repeated.
        let (length, longer) = (self.length(48), self.length(96));
        let wanted = |draftable, wanted, most| if wanted { self.prompts(draftable, most) } else { Ok(Vec::new()) };
        let (novel, draftable) = (wanted(false, self.wants("novel"), 42)?, wanted(true, self.wants("draftable"), 24)?);
        let novel = self.bench.record(&mut stand, &novel, length.max_tokens).await?;
        let draftable = self.bench.record(&mut stand, &draftable, longer.max_tokens).await?;
        for case in &draftable {
            let share = prompts::repeated(&case.prompt, &case.recorded.tokens);
            let told = if share < prompts::REPEATED_MIN { ": this is new text" } else { "" };
            eprintln!("    {:10} {share:.2} of its answer repeats it{told}", case.id);
        }
        for (chain, paced) in self.chains() {
            stand.open(chain, paced, Codec::F16, 1).await?;
            self.open_drafts(&mut stand, paced).await?;
            for (part, cases, length) in [("novel", &novel, length), ("draftable", &draftable, longer)] {
                if self.wants(part) {
                    self.answers(&mut stand, part, (chain, paced), cases, length).await?;
                }
            }
            stand.close(chain).await?;
        }
        Ok(())
    }

    /// The chains that were asked for, and whether they are paced.
    fn chains(&self) -> Vec<(&'static str, bool)> {
        let asked = |kind: &str| self.args.kind.as_deref().is_none_or(|asked| asked == kind);
        [(REAL, false), (PACED, true)].into_iter().filter(|(chain, _)| asked(chain)).collect()
    }

    /// What answers of one session take over the chain that is open.
    async fn answers(
        &mut self,
        stand: &mut Stand,
        part: &str,
        (chain, paced): (&str, bool),
        cases: &[Case],
        length: Length,
    ) -> Outcome<()> {
        let rpc = stand.has_rpc.then(|| Arm::rpc().tokens(RPC_TOKENS));
        let arms: Vec<_> =
            rpc.into_iter().chain([Arm::plain(PLAIN, chain)]).chain(self.drafting(part, chain)).collect();
        let pairings = pairings(part, paced, &arms);
        let (groups, codec, measure) = (cases.chunks(1).collect(), Codec::F16, Measure::Decode);
        let race = Race { part, name: "decode", paced, codec, arms, groups, length, measure, pairings };
        self.race(stand, race).await
    }

    /// Opens the draft models, with the cores that they have beside such a chain.
    async fn open_drafts(&self, stand: &mut Stand, paced: bool) -> Outcome<()> {
        for (name, entry) in &self.bench.drafts {
            stand.open_draft(name, entry, paced).await?;
        }
        Ok(())
    }

    /// The arms of a part that draft. New text has nothing to look up.
    fn drafting(&self, part: &str, chain: &str) -> Vec<Arm> {
        let names = self.bench.drafts.iter().map(|(name, _)| name);
        let with = |name: &String, source| Speculation { source, draft: Some(name.clone()) };
        let drafts = names.clone().map(|name| (format!("draft {name}"), with(name, Source::Draft)));
        let autos = names.map(|name| (format!("auto {name}"), with(name, Source::Auto)));
        let lookup = [("lookup".to_owned(), Speculation { source: Source::Lookup, draft: None })];
        let ways: Vec<_> = match part {
            "novel" => drafts.chain(autos.take(1)).collect(),
            "draftable" => lookup.into_iter().chain(autos.take(1)).collect(),
            _ => Vec::new(),
        };
        ways.iter().map(|(name, speculation)| Arm::drafting(name, chain, speculation.clone())).collect()
    }

    /// One point of a curve: a token a traversal beside llama.cpp's RPC and one machine that holds it all.
    async fn curve(&mut self, part: &str, setting: Setting) -> Outcome<()> {
        let wants = Wants { real: true, paced: true, rpc: true, sessions: 1, chains: 1, threads: None };
        let mut stand = self.bench.stand(setting, wants).await?;
        let length = self.length(32);
        let cases = self.bench.record(&mut stand, &self.prompts(false, 6)?, length.max_tokens).await?;
        stand.open_local(&self.bench).await?;
        let predicted = predict::rate(&stand.setting, &stand.paces, Codec::F16)?;
        for (chain, paced) in [(REAL, false), (PACED, true)] {
            stand.open(chain, paced, Codec::F16, 1).await?;
            let mut arms = vec![Arm::plain(ALONE, LOCAL)];
            arms.extend((stand.has_rpc && !paced).then(Arm::rpc));
            arms.push(Arm::plain(PLAIN, chain));
            let pairings = vec![
                Pairing::new(PLAIN, RPC, None),
                Pairing::new(PLAIN, ALONE, None),
                Pairing::bound(PLAIN, Some(PLAIN_GOAL)),
            ];
            let (groups, codec, measure) = (cases.chunks(1).collect(), Codec::F16, Measure::Decode);
            let race = Race { part, name: "decode", paced, codec, arms, groups, length, measure, pairings };
            let (figure, _) = race.run(&mut stand, &self.commit).await?;
            self.put(Figure { predicted: Some(round(predicted)), ..figure })?;
            stand.close(chain).await?;
        }
        Ok(())
    }

    /// A long prompt: time to the first token.
    async fn prefill(&mut self) -> Outcome<()> {
        // Stages compute at once, on the same cores.
        let threads = Some(self.args.threads);
        let wants = Wants { real: true, paced: true, rpc: true, sessions: 1, chains: 1, threads };
        let mut stand = self.bench.stand(self.setting(), wants).await?;
        let cases = long_prompts(if self.args.quick { 1 } else { 5 });
        for (chain, paced) in [(REAL, false), (PACED, true)] {
            stand.open(chain, paced, Codec::F16, 1).await?;
            let rpc = (stand.has_rpc && !paced).then(Arm::rpc);
            let arms = rpc.into_iter().chain([Arm::plain(PLAIN, chain)]).collect();
            let pairings = vec![Pairing::new(PLAIN, RPC, None), Pairing::bound(PLAIN, Some(PREFILL_GOAL))];
            let (groups, codec) = (cases.chunks(1).collect(), Codec::F16);
            let (length, measure) = (FIRST_TOKEN, Measure::Prefill(PREFILL));
            let (part, name) = ("prefill", "2,048 positions");
            self.race(&mut stand, Race { part, name, paced, codec, arms, groups, length, measure, pairings }).await?;
            stand.close(chain).await?;
        }
        Ok(())
    }

    /// Several sessions at once, against one.
    async fn sessions(&mut self) -> Outcome<()> {
        // As for a prompt.
        let threads = Some(self.args.threads);
        let wants = Wants { real: true, paced: true, rpc: true, sessions: SESSIONS, chains: 1, threads };
        let mut stand = self.bench.stand(self.setting(), wants).await?;
        let at_once = usize::from(SESSIONS);
        let rounds = if self.args.quick { 1 } else { 4 };
        let length = Length { ignore_eos: true, ..self.length(48) };
        let cases = self.bench.record(&mut stand, &prompts::some(false, at_once * rounds)?, length.max_tokens).await?;
        let (one, all) = ("one session", "8 sessions");
        for (chain, paced) in [(REAL, false), (PACED, true)] {
            stand.open(chain, paced, Codec::F16, SESSIONS).await?;
            let mut arms = vec![Arm::plain(one, chain).at_once(1), Arm::plain(all, chain)];
            arms.extend((stand.has_rpc && !paced).then(Arm::rpc));
            let pairings = vec![Pairing::new(all, one, Some(SESSIONS_GOAL)), Pairing::new(all, RPC, None)];
            let (groups, codec, measure) = (cases.chunks(at_once).collect(), Codec::F16, Measure::Decode);
            let (part, name) = ("sessions", "8 at once");
            self.race(&mut stand, Race { part, name, paced, codec, arms, groups, length, measure, pairings }).await?;
            stand.close(chain).await?;
        }
        Ok(())
    }

    /// The same prompts, their hidden states encoded in every way: a token a traversal, and a long prompt's first
    /// token, where a codec's bytes weigh most.
    async fn codecs(&mut self, setting: Setting) -> Outcome<()> {
        let codecs: Vec<Codec> = Codec::ALL.into_iter().filter(|codec| *codec != Codec::Tokens).collect();
        // Stages compute at once in a long prompt.
        let (chains, threads) = (codecs.len() as u16, Some(self.args.threads));
        let wants = Wants { real: true, paced: false, rpc: false, sessions: 1, chains, threads };
        let mut stand = self.bench.stand(setting, wants).await?;
        let length = self.length(32);
        let cases = self.bench.record(&mut stand, &self.prompts(true, 8)?, length.max_tokens).await?;
        let mut arms = Vec::new();
        for codec in &codecs {
            let name = codec.to_string();
            stand.open(&name, false, *codec, 1).await?;
            arms.push(Arm::plain(&name, &name));
        }
        let base = Codec::F16.to_string();
        let pairings: Vec<Pairing> =
            arms.iter().filter(|arm| arm.name != base).map(|arm| Pairing::new(&arm.name, &base, None)).collect();
        let long = long_prompts(if self.args.quick { 1 } else { 2 });
        for (name, measure, cases, length) in [
            ("decode", Measure::Decode, &cases, length),
            ("first token", Measure::Prefill(PREFILL), &long, FIRST_TOKEN),
        ] {
            let (groups, codec) = (cases.chunks(1).collect(), Codec::F16);
            let (part, arms, pairings) = ("codecs", arms.clone(), pairings.clone());
            self.race(&mut stand, Race { part, name, paced: false, codec, arms, groups, length, measure, pairings })
                .await?;
        }
        Ok(())
    }
}

/// So many long prompts. Nothing in particular, and no two alike: the time does not depend on the text.
fn long_prompts(count: u32) -> Vec<Case> {
    let prompt = |number: u32| (0..PREFILL).map(|at| 1_000 + (number * 7_919 + at * 37) % 20_000).collect();
    let case = |number| Case { id: format!("long-{number}"), prompt: prompt(number), recorded: Answered::default() };
    (0..count).map(case).collect()
}

/// What the issue wants to be shown of a part.
fn pairings(part: &str, paced: bool, arms: &[Arm]) -> Vec<Pairing> {
    let mut pairings = vec![Pairing::new(PLAIN, RPC, None), Pairing::bound(PLAIN, Some(PLAIN_GOAL))];
    for arm in arms.iter().filter(|arm| arm.name != PLAIN && arm.name != RPC) {
        let over_rpc = match part {
            "novel" => NOVEL_GOALS.iter().find(|(name, _)| *name == arm.name).map(|(_, goal)| *goal),
            _ => arm.name.starts_with("auto").then_some(DRAFTABLE_GOALS[usize::from(!paced)]),
        };
        let over_plain = if part == "novel" && arm.name.starts_with("auto") { OVER_PLAIN_GOAL } else { NO_SLOWER_GOAL };
        pairings.push(Pairing::new(&arm.name, RPC, over_rpc));
        pairings.push(Pairing::new(&arm.name, PLAIN, Some(over_plain)));
    }
    pairings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_never_to_be_slower_than_none() {
        let arms = [RPC, PLAIN, "draft cut", "auto Q4_0", "lookup"].map(|name| Arm::plain(name, REAL));
        let over_plain = |part: &str| {
            let all = pairings(part, false, &arms).into_iter().filter(|pairing| pairing.over == PLAIN);
            all.map(|pairing| (pairing.of, pairing.goal)).collect::<Vec<_>>()
        };
        let of = |auto: f64| [("draft cut", 0.98), ("auto Q4_0", auto), ("lookup", 0.98)];
        let goals = |auto| of(auto).map(|(name, goal)| (name.to_owned(), Some(goal)));
        assert_eq!(over_plain("novel"), goals(2.0));
        assert_eq!(over_plain("draftable"), goals(0.98));
    }

    #[test]
    fn long_prompts_are_as_long_as_they_say_and_no_two_alike() {
        let prompts = long_prompts(2);
        assert!(prompts.iter().all(|case| case.prompt.len() == PREFILL as usize));
        assert_ne!(prompts[0].prompt, prompts[1].prompt);
    }
}
