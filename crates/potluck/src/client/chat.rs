//! Answers of models: over this machine and the swarm, as `potluck run` gets them.

use std::{
    env,
    path::{Path, PathBuf},
};

use clap::Parser;
use potluck_client::{Cancel, Outcome};
use tokio::sync::{mpsc, oneshot};

use super::{ClientError, worker::Worker};
use crate::{
    args::{EngineArgs, RouteArgs, SamplingArgs, StopArgs},
    failure::Failure,
    home::Home,
    prompt::ends_session,
    screen::Screen,
    talk::{Asked, Talk},
};

/// The options of an answer: those of `potluck run`, checked in the same way.
#[derive(Debug, Parser)]
#[command(name = "chat", no_binary_name = true, args_override_self = true)]
struct Options {
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// A conversation that is being prepared: [`Client::chat`](super::Client::chat).
#[derive(Debug, Clone)]
#[must_use = "nothing is asked until `answer`, `stream` or `open`"]
pub struct Chat {
    worker: Worker,
    home: Option<Home>,
    options: Vec<String>,
    said: Vec<(Role, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    System,
    User,
    Assistant,
}

/// A conversation whose model is loaded. Dropped, what was started for it ends.
#[derive(Debug)]
pub struct Conversation {
    asks: mpsc::Sender<Ask>,
}

/// An answer, as it comes. Dropped, the answer ends where it is: nothing more is computed.
#[derive(Debug)]
pub struct Answer {
    pieces: mpsc::UnboundedReceiver<String>,
    done: oneshot::Receiver<Result<Finished, Failure>>,
    /// The conversation that was made for this answer alone.
    _of: Option<Conversation>,
}

/// An answer that has ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Finished {
    /// All of it.
    pub text: String,
    /// Why it ended: `stop`, `length`, `cancelled` and so on, as `potluck run --json` says.
    pub finish_reason: String,
    /// Tokens of the prompt, those before it in the conversation included.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
    /// Tokens after the first, over their time; 0 where there are none.
    pub tokens_per_second: f64,
}

#[derive(Debug)]
struct Ask {
    text: String,
    pieces: mpsc::UnboundedSender<String>,
    done: oneshot::Sender<Result<Finished, Failure>>,
}

impl Chat {
    pub(super) fn new(worker: Worker, home: Option<Home>, model: &str) -> Self {
        Self { worker, home, options: vec![format!("--model={model}")], said: Vec::new() }
    }

    /// What the model is told before all else.
    pub fn system(self, text: impl Into<String>) -> Self {
        self.said(Role::System, text)
    }

    /// What the user says next. The last one is what is answered.
    pub fn user(self, text: impl Into<String>) -> Self {
        self.said(Role::User, text)
    }

    /// What the model has answered before.
    pub fn assistant(self, text: impl Into<String>) -> Self {
        self.said(Role::Assistant, text)
    }

    /// 0 takes the likeliest token; more is bolder.
    pub fn temperature(self, temperature: f32) -> Self {
        self.option("temperature", temperature)
    }

    /// The same seed gives the same answer, other things equal.
    pub fn seed(self, seed: u64) -> Self {
        self.option("seed", seed)
    }

    /// Tokens of the answer at most.
    pub fn max_tokens(self, tokens: u32) -> Self {
        self.option("max-tokens", tokens)
    }

    /// The answer ends before this text.
    pub fn stop(self, text: &str) -> Self {
        self.option("stop", text)
    }

    /// A JSON schema that the answer follows.
    pub fn json_schema(self, schema: &str) -> Self {
        self.option("json-schema", schema)
    }

    /// Any other option of `potluck run`, by its long name: `option("prefer", "latency")`, `option("context", 8192)`.
    pub fn option(mut self, name: &str, value: impl ToString) -> Self {
        self.options.push(format!("--{name}={}", value.to_string()));
        self
    }

    fn said(mut self, role: Role, text: impl Into<String>) -> Self {
        self.said.push((role, text.into()));
        self
    }

    /// Loads the model, for several answers. What the user said last is not answered: ask it.
    ///
    /// # Errors
    /// As `potluck run` tells them: `no_home`, `no_model`, `no_route`, `no_program`, `usage` and so on; `Closed`.
    pub async fn open(self) -> Result<Conversation, ClientError> {
        let options = Options::try_parse_from(&self.options).map_err(|error| {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            ClientError::other("usage", line, "potluck run --help explains the options")
        })?;
        let home = self.home.ok_or_else(|| {
            let message = "this client keeps nothing on the disk, and a model needs a folder";
            ClientError::other("no_home", message, "join with a folder: Settings::home")
        })?;
        let ((asks, asked), (ready, is_ready)) = (mpsc::channel(1), oneshot::channel());
        let said = self.said;
        self.worker.spawn_local(move || converse(home, options, said, ready, asked));
        is_ready.await.map_err(|_| ClientError::Closed)??;
        Ok(Conversation { asks })
    }

    /// Loads the model, and answers what the user said last, as it comes.
    ///
    /// # Errors
    /// As for [`open`](Self::open); `usage` where the user has said nothing last.
    pub async fn stream(mut self) -> Result<Answer, ClientError> {
        let Some((Role::User, text)) = self.said.pop() else {
            let message = "the user has said nothing that could be answered";
            return Err(ClientError::other("usage", message, "call `user` last"));
        };
        let mut conversation = self.open().await?;
        let answer = conversation.ask(text).await?;
        Ok(Answer { _of: Some(conversation), ..answer })
    }

    /// The same, when it is all there.
    ///
    /// # Errors
    /// As for [`stream`](Self::stream) and [`Answer::finish`].
    pub async fn answer(self) -> Result<Finished, ClientError> {
        self.stream().await?.finish().await
    }
}

impl Conversation {
    /// What the user says next, answered as it comes. What was said before counts; an answer that was dropped counts as
    /// far as it went.
    ///
    /// # Errors
    /// `Closed` where the client, or what this conversation was over, has ended.
    pub async fn ask(&mut self, text: impl Into<String>) -> Result<Answer, ClientError> {
        let ((pieces, came), (done, is_done)) = (mpsc::unbounded_channel(), oneshot::channel());
        let ask = Ask { text: text.into(), pieces, done };
        self.asks.send(ask).await.map_err(|_| ClientError::Closed)?;
        Ok(Answer { pieces: came, done: is_done, _of: None })
    }
}

impl Answer {
    /// The next piece of text: one or several tokens' worth. None at the end: [`finish`](Self::finish) says which it
    /// was. The future may be dropped at any time.
    pub async fn next(&mut self) -> Option<String> {
        self.pieces.recv().await
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// As `potluck run` tells them: `peer_lost`, `context_full`, and so on; `Closed`.
    pub async fn finish(mut self) -> Result<Finished, ClientError> {
        Ok((&mut self.done).await.map_err(|_| ClientError::Closed)??)
    }
}

/// A conversation from its beginning to its end.
async fn converse(
    home: Home,
    options: Options,
    said: Vec<(Role, String)>,
    ready: oneshot::Sender<Result<(), Failure>>,
    mut asked: mpsc::Receiver<Ask>,
) {
    let started = async {
        let answering = Asked::new(&options.sampling, &options.stop, &options.engine)?;
        Ok((Talk::start(&home, Screen::new(true), &options.route, &options.engine).await?, answering))
    };
    let (mut ready, mut started) = (ready, std::pin::pin!(started));
    // Whoever does not wait for it any more wants no engine.
    let (mut talk, answering) = tokio::select! {
        started = &mut started => match started {
            Ok(started) => started,
            Err(failure) => return drop(ready.send(Err(failure))),
        },
        () = ready.closed() => return,
    };
    for (role, text) in said {
        match role {
            Role::System => talk.conversation.system(text),
            Role::User => talk.conversation.user(text),
            Role::Assistant => talk.conversation.assistant(text),
        }
    }
    if ready.send(Ok(())).is_ok() {
        while let Some(Ask { text, pieces, done }) = asked.recv().await {
            let answered = answer(&mut talk, &answering, &text, &pieces).await;
            let over = match &answered {
                Ok(_) => false,
                Err(failure) => {
                    talk.unask();
                    ends_session(failure) && talk.reopen().await.is_err()
                }
            };
            drop(pieces);
            let _ = done.send(answered);
            if over {
                break;
            }
        }
    }
    talk.close().await;
}

async fn answer(
    talk: &mut Talk,
    asked: &Asked,
    text: &str,
    pieces: &mpsc::UnboundedSender<String>,
) -> Result<Finished, Failure> {
    let tokens = talk.ask(text).await?;
    let cancel = Cancel::new();
    let outcome = {
        // What waits is bounded by the answer, which the context bounds.
        let mut outcome = std::pin::pin!(talk.answer_until(tokens, asked, &cancel, |event| {
            if !event.text.is_empty() {
                let _ = pieces.send(event.text.clone());
            }
        }));
        tokio::select! {
            outcome = &mut outcome => outcome,
            () = pieces.closed() => {
                cancel.cancel();
                outcome.await
            }
        }?
    };
    talk.conversation.assistant(outcome.text.clone());
    Ok(finished(outcome))
}

fn finished(outcome: Outcome) -> Finished {
    let reason = serde_json::to_value(outcome.finish_reason).ok();
    let finish_reason = reason.and_then(|value| value.as_str().map(str::to_owned));
    Finished {
        text: outcome.text,
        finish_reason: finish_reason.unwrap_or_default(),
        prompt_tokens: outcome.prompt_tokens,
        completion_tokens: outcome.completion_tokens,
        tokens_per_second: outcome.decode_tokens_per_s,
    }
}

/// The program `potluck`: the one that was named, or beside this program and one folder up, or on the `PATH`.
pub(super) fn program(named: Option<&Path>) -> Option<PathBuf> {
    let name = format!("potluck{}", env::consts::EXE_SUFFIX);
    let beside = env::current_exe().ok();
    let beside = beside.iter().flat_map(|program| program.ancestors().skip(1).take(2)).map(|folder| folder.join(&name));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<_> = env::split_paths(&path).map(|folder| folder.join(&name)).collect();
    match named {
        Some(named) => Some(named.to_owned()),
        None => beside.chain(on_path).find(|program| program.is_file()),
    }
}
