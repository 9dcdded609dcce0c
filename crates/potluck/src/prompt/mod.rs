//! The prompt of `chat` and `up`: lines in, answers out. On a pipe, each line is a turn and nothing is edited.

mod command;
mod input;

use serde_json::json;

use crate::{
    failure::Failure,
    screen::Screen,
    signals::Interrupt,
    talk::{Asked, Talk, show_trace},
};

use command::{Next, obey};
pub(crate) use command::{go_on, load};
use input::{Input, Turn};

/// Talks until the user leaves. A failed answer is told, and the conversation goes on; a lost session is opened again.
pub(crate) async fn converse(
    screen: Screen,
    talk: &mut Talk,
    asked: &mut Asked,
    interrupt: &mut Interrupt,
) -> Result<(), Failure> {
    let mut input = Input::open(screen)?;
    if screen.interactive() {
        screen.note(format!("{}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves", talk.entry.name));
    }
    loop {
        match interrupt.or(input.turn()).await?? {
            Turn::Over => return Ok(()),
            Turn::Nothing => {}
            // Interrupted, the command ends, and not the conversation.
            Turn::Command(line) => match interrupt.or(obey(&line, screen, talk, asked)).await.flatten() {
                Ok(Next::Leave) => return Ok(()),
                Ok(Next::Stay) => {}
                Err(failure) => failure.print(screen.json),
            },
            Turn::Said(text) => {
                if let Err(failure) = answer(screen, talk, asked, interrupt, &text).await {
                    talk.unask();
                    // A template that did not end still runs, and only the end of this process ends it.
                    if matches!(failure.code.as_ref(), "output" | "template_timeout") {
                        return Err(failure);
                    }
                    failure.print(screen.json);
                    if ends_session(&failure) {
                        interrupt.or(talk.reopen()).await??;
                    }
                }
            }
        }
    }
}

async fn answer(
    screen: Screen,
    talk: &mut Talk,
    asked: &Asked,
    interrupt: &mut Interrupt,
    text: &str,
) -> Result<(), Failure> {
    let tokens = talk.ask(text).await?;
    let mut shown = Ok(());
    let outcome = talk.answer(tokens, asked, interrupt, |event| {
        if !screen.json && shown.is_ok() {
            shown = screen.text(&event.text);
        }
    });
    let outcome = outcome.await?;
    shown?;
    talk.conversation.assistant(outcome.text.clone());
    if screen.json {
        let (route, codec) = (talk.route_json(), talk.codec_json());
        return screen.object(&json!({ "answer": outcome, "route": route, "codec": codec }));
    }
    screen.text("\n")?;
    show_trace(screen, &outcome, asked.trace);
    screen.text("\n")
}

/// True where this session gives no further answer.
pub(crate) fn ends_session(failure: &Failure) -> bool {
    !matches!(
        failure.code.as_ref(),
        "bad_request" | "bad_grammar" | "nothing_to_sample" | "context_full" | "bad_template" | "template_refused"
    )
}
