//! `potluck run`: one prompt, one answer.

use std::io::{IsTerminal, Read, stdin};

use clap::Args;

use crate::{
    args::{EngineArgs, RouteArgs, SamplingArgs, StopArgs},
    failure::{Failure, OrFail},
    home::Home,
    screen::Screen,
    signals::Interrupt,
    talk::{Asked, Talk, show_trace},
};

/// Bytes of a prompt that is read from a pipe. More are refused.
const PROMPT_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// What to answer; `-` or nothing reads it from stdin
    prompt: Option<String>,
    /// What the model is told before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Send the prompt as it is, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// Show the route and the rates after the answer
    #[arg(long = "route")]
    show_route: bool,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Run {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let prompt = read_prompt(self.prompt.as_deref())?;
        let asked = Asked::new(&self.sampling, &self.stop, &self.engine)?;
        let mut interrupt = Interrupt::listen()?;
        let mut talk = interrupt.or(Talk::start(home, screen, &self.route, &self.engine)).await??;
        if let Some(system) = &self.system {
            talk.conversation.system(system.as_str());
        }
        let result = self.answer(&mut talk, &mut interrupt, screen, &prompt, &asked).await;
        // Whatever came of it: nothing that was started stays.
        talk.close().await;
        result
    }

    async fn answer(
        &self,
        talk: &mut Talk,
        interrupt: &mut Interrupt,
        screen: Screen,
        prompt: &str,
        asked: &Asked,
    ) -> Result<(), Failure> {
        let tokens = if self.raw { talk.raw(prompt).await? } else { talk.ask(prompt).await? };
        let mut shown = Ok(());
        let outcome = talk.answer(tokens, asked, interrupt, |event| {
            if !screen.json && shown.is_ok() {
                shown = screen.text(&event.text);
            }
        });
        let outcome = outcome.await?;
        shown?;
        talk.remember_speed(&outcome);
        if screen.json {
            let mut object = serde_json::to_value(&outcome).or_fail("internal", "report this")?;
            object["seed"] = asked.params.seed.into();
            object["route"] = talk.route_json();
            object["codec"] = talk.codec_json();
            return screen.object(&object);
        }
        screen.text("\n")?;
        if self.show_route {
            screen.note(talk.report(&outcome));
        }
        show_trace(screen, &outcome, self.stop.trace);
        Ok(())
    }
}

fn read_prompt(argument: Option<&str>) -> Result<String, Failure> {
    match argument {
        Some(text) if text != "-" => Ok(text.to_owned()),
        None if stdin().is_terminal() => {
            Err(Failure::usage("there is no prompt", "potluck run \"...\", or talk with the model: potluck chat"))
        }
        _ => {
            let mut text = String::new();
            let read = stdin().lock().take(PROMPT_BYTES_MAX + 1).read_to_string(&mut text);
            read.map_err(|error| Failure::io("reading the prompt from stdin", &error))?;
            if text.len() as u64 > PROMPT_BYTES_MAX {
                let message = format!("the prompt has more than {PROMPT_BYTES_MAX} bytes");
                return Err(Failure::usage(message, "send a shorter one"));
            }
            Ok(text)
        }
    }
}
