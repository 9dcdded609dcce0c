//! `potluck bench`: how fast this machine is, each link and the route, where the time of a token goes, and whether that was predicted.

use clap::Args;
use potluck_chain::{plan::Alone, sample::FinishReason};
use potluck_client::{Drafts, Outcome};

use crate::{
    args::{EngineArgs, RouteArgs},
    bench::{Answered, Drafted, Measured, Predicted, Report, Whole, links, measure_machine, show, transfer},
    commands::swarm::utc_now,
    failure::Failure,
    home::Home,
    models::find_model,
    placement::free_memory,
    screen::Screen,
    signals::Interrupt,
    speeds::{self, By},
    talk::{Asked, Talk, compared, split},
};

/// What is answered, as it is: the same tokens on every machine.
const QUESTION: &str =
    "A river begins in the hills, where rain and melting snow gather in small streams. On its way to the sea it";

/// What a prompt is made of, over and over.
const TEXT: &str = "People who live near one another own many machines that stand idle most of the day: a laptop on a kitchen table, \
    a computer for games, a server that was bought for a project long ago. Each of them is too small for a large model, and all of \
    them together are not. So each takes a part of the layers, and what one has computed goes on to the next. ";

/// Tokens of the prompt that is timed: one full step.
const PROMPT_TOKENS: usize = 512;

/// Tokens that are answered before anything is timed: engines read their weights, connections find their pace.
const WARM_UP_TOKENS: u32 = 4;

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Tokens of the answers that are timed
    #[arg(long, short = 'n', value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=4096))]
    tokens: u32,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What was timed over a route.
struct Timed {
    prompt: Whole,
    plain: Answered,
    drafted: Option<Drafted>,
}

impl Bench {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        self.route.check()?;
        let mut interrupt = Interrupt::listen()?;
        let machine = interrupt.or(self.machine(&self.route.disk.limit(home), screen)).await??;
        let mut talk = interrupt.or(Talk::start(home, screen, &self.route, &self.engine)).await??;
        let report = self.report(&mut talk, &mut interrupt, screen, machine).await;
        // Whatever came of it: nothing that was started stays.
        talk.close().await;
        let report = report?;
        if screen.json {
            return screen.object(&report);
        }
        screen.text(&show(&report))?;
        if let Some(advice) = &report.advice {
            screen.note(format!("hint: {advice}"));
        }
        Ok(())
    }

    /// This machine alone, or why it was not measured. What was measured is kept: plans are the better for it.
    async fn machine(&self, home: &Home, screen: Screen) -> Result<Result<Measured, String>, Failure> {
        let entry = find_model(home, screen, self.route.model.as_deref()).await?;
        let settings = self.engine.settings(1);
        settings.check()?;
        if let Some(peers) = self.route.peers {
            // Before anything is measured for nothing.
            split(&entry, peers.into(), self.route.ends())?;
        }
        let memory = self.route.memory.unwrap_or_else(free_memory);
        let bar = screen.wait("measuring this machine");
        let measured = measure_machine(&entry, &settings, memory).await?;
        drop(bar);
        if let Some(us) = measured.as_ref().ok().and_then(Measured::position_us) {
            speeds::remember(home, &entry, &settings, By::Bench, us)?;
        }
        Ok(measured)
    }

    async fn report(
        &self,
        talk: &mut Talk,
        interrupt: &mut Interrupt,
        screen: Screen,
        machine: Result<Measured, String>,
    ) -> Result<Report, Failure> {
        let plan = talk.expected()?;
        let bar = screen.wait("measuring the route");
        let Timed { prompt, plain, drafted } = self.time(talk, interrupt).await?;
        drop(bar);
        let route = talk.route();
        let links = plain.step.as_ref().map_or_else(Vec::new, |step| links(&route, step));
        let transfer = prompt.step.as_ref().and_then(|step| transfer(&links, step));
        let predicted = Predicted::of(&plan, self.engine.settings(1).chunk, &prompt, &plain);
        let (machine, machine_skipped) = match machine {
            Ok(machine) => (Some(machine), None),
            Err(why) => (None, Some(why)),
        };
        // As it was measured a moment ago, where it was.
        let now = |machine: &Measured| Alone {
            decode_tokens_per_s: machine.decode_tokens_per_s,
            prefill_tokens_per_s: machine.prefill_tokens_per_s,
            measured: true,
            hindrance: None,
        };
        let alone = machine.as_ref().map(now).or(plan.alone);
        let others = route.iter().any(|stage| stage.path != "self");
        let advice = alone
            .filter(|_| others)
            .and_then(|alone| compared(&alone, "this route", plain.tokens_per_s, "measured", &talk.entry.name));
        Ok(Report {
            model: talk.entry.id.to_string(),
            name: talk.entry.name.clone(),
            at: utc_now(),
            machine,
            machine_skipped,
            route,
            links,
            transfer,
            prompt,
            plain,
            drafted,
            predicted,
            alone,
            advice,
        })
    }

    /// A prompt as one step, an answer token by token, and one with drafts.
    async fn time(&self, talk: &mut Talk, interrupt: &mut Interrupt) -> Result<Timed, Failure> {
        let drafts = self.route.drafts();
        let positions = self.engine.context as usize;
        let mut question = talk.raw(QUESTION).await?;
        question.truncate((positions / 2).max(1));
        let text = talk.raw(&TEXT.repeat(PROMPT_TOKENS / 16)).await?;
        let tokens = PROMPT_TOKENS.min(positions).min(self.engine.settings(1).chunk.into());
        let text: Vec<u32> = text.into_iter().take(tokens).collect();
        talk.draft_from(Drafts::Off).await;
        self.answer(talk, interrupt, &question, WARM_UP_TOKENS).await?;
        let prompt = Whole::of(&self.answer(talk, interrupt, &text, 1).await?);
        let plain = Answered::of(&self.answer(talk, interrupt, &question, self.tokens).await?);
        let drafted = if talk.draft_from(drafts).await && !self.engine.exact() {
            let outcome = self.answer(talk, interrupt, &question, self.tokens).await?;
            let Outcome { completion_tokens: tokens, decode_tokens_per_s: tokens_per_s, drafts, .. } = outcome;
            Some(Drafted { tokens, tokens_per_s, drafts })
        } else {
            None
        };
        Ok(Timed { prompt, plain, drafted })
    }

    async fn answer(
        &self,
        talk: &mut Talk,
        interrupt: &mut Interrupt,
        prompt: &[u32],
        tokens: u32,
    ) -> Result<Outcome, Failure> {
        let asked = Asked::timed(&self.engine, tokens);
        let outcome = talk.answer(prompt.to_vec(), &asked, interrupt, |_| {}).await?;
        if outcome.finish_reason == FinishReason::Cancel {
            return Err(Failure::new("cancelled", "interrupted", ""));
        }
        if outcome.resumed + outcome.repairs.len() > 0 {
            return Err(Failure::new("route_lost", "the route was lost while it was measured", "run it again"));
        }
        Ok(outcome)
    }
}
