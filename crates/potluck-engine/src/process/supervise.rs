//! An engine's process as a task: commands in, replies out, and a new child when one dies.

use std::{collections::VecDeque, io::ErrorKind, time::Duration};

use potluck_core::{StageCommand, StageError, StageReply, StageShape};
use tokio::{
    net::UnixStream,
    sync::mpsc::{Receiver, Sender},
    time::Instant,
};
use zeroize::Zeroize as _;

use super::{
    connect::{Connection, Loaded, Patience, connect, into_engine, is_end},
    due::Due,
    frame::{Inbox, decode, encode},
    spawn::{Child, EngineProgram},
};
use crate::{EngineError, Load};

/// Children that may die without having answered a single step before no further one is started.
pub const RESTARTS_MAX: u32 = 5;

/// How long is waited before the first restart; doubled for each that follows.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);

/// Replies that are read and not yet taken. Beyond it the child waits.
const REPLIES_MAX: usize = 64;

/// Commands that are sent and not yet answered. Beyond it the caller waits.
const OUTSTANDING_MAX: usize = 64;

/// An engine that has loaded in a process of its own. Dropping it ends the process and gives its memory back.
pub struct EngineProcess {
    program: EngineProgram,
    load: Load,
    connection: Connection,
    shape: StageShape,
}

impl std::fmt::Debug for EngineProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineProcess").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// Why a child is no longer spoken to.
enum Stop {
    /// The caller closed its end.
    Closed,
    /// The child's fault or end.
    Child(std::io::Error),
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Child(error)
    }
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::Child(std::io::Error::other(error))
    }
}

impl EngineProcess {
    /// Starts a child and waits until it has loaded.
    ///
    /// # Errors
    /// See [`EngineError`]: also where the file made llama.cpp end the child.
    pub async fn start(program: EngineProgram, load: Load) -> Result<Self, EngineError> {
        let (connection, shape) = connect_stage(program.clone(), load.clone(), &Patience::default()).await?;
        Ok(Self { program, load, connection, shape })
    }

    /// What the stage is like.
    pub fn shape(&self) -> &StageShape {
        &self.shape
    }

    /// The child's process id.
    pub fn pid(&self) -> u32 {
        self.connection.child.pid()
    }

    /// Carries commands to the child and replies back, on the caller's own runtime, until `commands` closes or nobody
    /// takes `replies`; the child is reaped when this returns.
    ///
    /// The first reply is `Ready`. When the child dies, each reply that it still owes comes as an error, then `Lost`;
    /// commands are answered with errors until the next `Ready`. No reply is ever missing.
    ///
    /// # Errors
    /// The last failure, after [`RESTARTS_MAX`] children in a row that died before their first answer.
    pub async fn run(
        self,
        mut commands: Receiver<StageCommand>,
        replies: Sender<StageReply>,
    ) -> Result<(), EngineError> {
        let Self { program, load, connection, mut shape } = self;
        let mut connection = Some(connection);
        let mut failures = 0u32;
        loop {
            if let Some(Connection { child, socket, .. }) = connection.take() {
                if replies.send(StageReply::Ready(shape.clone())).await.is_err() {
                    return reap(child).await.map(|_| ());
                }
                let mut pump = Pump::new(socket, load.settings.step_timeout)?;
                let stop = pump.run(&mut commands, &replies).await;
                let reason = reap(child).await?;
                let Stop::Child(error) = stop else { return Ok(()) };
                failures = if pump.answered { 1 } else { failures + 1 };
                let reason = if is_end(&error) { reason } else { into_engine(error).to_string() };
                tracing::warn!(%reason, "the engine's process ended");
                if !pump.bury(&replies, reason).await {
                    return Ok(());
                }
            }
            let delay = BACK_OFF_MIN * 2u32.pow(failures.saturating_sub(1).min(RESTARTS_MAX));
            let patience = Patience::default();
            let restart = connect_stage(program.clone(), load.clone(), &patience);
            match answer_lost_while((delay, restart), &patience, &mut commands, &replies).await {
                None => return Ok(()),
                Some(Ok((next, next_shape))) if failures < RESTARTS_MAX => {
                    (connection, shape) = (Some(next), next_shape);
                }
                Some(Ok(_)) => return Err(EngineError::Ended(format!("{failures} children in a row"))),
                Some(Err(error)) if failures >= RESTARTS_MAX => return Err(error),
                Some(Err(_)) => failures += 1,
            }
        }
    }
}

/// Loading blocks for seconds: not on the caller's runtime. Whoever does not wait for it, or drops `patience`, has its memory back.
async fn connect_stage(
    program: EngineProgram,
    load: Load,
    patience: &Patience,
) -> Result<(Connection, StageShape), EngineError> {
    let loading = patience.loading();
    let connecting = tokio::task::spawn_blocking(move || connect(&program, &load, &loading));
    let connecting = connecting.await.map_err(|why| EngineError::system("loading", why))?;
    patience.over();
    let connection = connecting?;
    match &connection.loaded {
        Loaded::Stage(shape) => {
            let shape = shape.clone();
            Ok((connection, shape))
        }
        _ => Err(EngineError::NotAStage("a vocabulary was asked for".into())),
    }
}

/// Ends a child and waits for it, which can take long where it had much memory; why it ended.
async fn reap(mut child: Child) -> Result<String, EngineError> {
    let reaping = tokio::task::spawn_blocking(move || child.end());
    reaping.await.map_err(|why| EngineError::system("ending the engine", why))
}

/// Answers every command with `Lost` until `restart`, which begins after a while, is done; none where the caller closed its end meanwhile.
async fn answer_lost_while<T>(
    (delay, restart): (Duration, impl Future<Output = T>),
    patience: &Patience,
    commands: &mut Receiver<StageCommand>,
    replies: &Sender<StageReply>,
) -> Option<T> {
    let mut restart = std::pin::pin!(restart);
    let begins = Instant::now() + delay;
    let mut has_begun = false;
    loop {
        let command = tokio::select! {
            () = tokio::time::sleep_until(begins), if !has_begun => {
                has_begun = true;
                continue;
            }
            done = &mut restart, if has_begun => return Some(done),
            command = commands.recv() => command,
        };
        if let Some(command) = command {
            let Some(due) = Due::of(&command) else { continue };
            let lost = due.failed(StageError::Lost("the engine is being restarted".into()));
            if replies.send(lost).await.is_ok() {
                continue;
            }
        }
        if has_begun {
            // The child that is being made must not be left behind, nor waited for.
            patience.end();
            restart.await;
        }
        return None;
    }
}

/// One child's conversation.
struct Pump {
    stream: UnixStream,
    inbox: Inbox,
    out: Vec<u8>,
    written: usize,
    /// Replies that are owed, in order; with an error where the command was not sent.
    outstanding: VecDeque<(Due, Option<StageError>)>,
    ready: VecDeque<StageReply>,
    timeout: Duration,
    deadline: Instant,
    /// True once the child has computed something.
    answered: bool,
}

impl Pump {
    fn new(socket: std::os::unix::net::UnixStream, timeout: Duration) -> Result<Self, EngineError> {
        let failed = |why| EngineError::system("watching the engine's socket", why);
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            stream: UnixStream::from_std(socket).map_err(failed)?,
            inbox: Inbox::default(),
            out: Vec::new(),
            written: 0,
            outstanding: VecDeque::new(),
            ready: VecDeque::new(),
            timeout,
            deadline: Instant::now(),
            answered: false,
        })
    }

    async fn run(&mut self, commands: &mut Receiver<StageCommand>, replies: &Sender<StageReply>) -> Stop {
        loop {
            if let Err(stop) = self.turn(commands, replies).await {
                return stop;
            }
        }
    }

    /// Waits for one thing to happen and does what it asks for.
    async fn turn(&mut self, commands: &mut Receiver<StageCommand>, replies: &Sender<StageReply>) -> Result<(), Stop> {
        tokio::select! {
            biased;
            permit = replies.reserve(), if !self.ready.is_empty() => {
                let permit = permit.map_err(|_| Stop::Closed)?;
                if let Some(reply) = self.ready.pop_front() {
                    permit.send(reply);
                }
            }
            result = self.stream.readable(), if self.ready.len() < REPLIES_MAX => {
                result?;
                self.read()?;
                self.pass_on(replies)?;
            }
            result = self.stream.writable(), if self.written < self.out.len() => {
                result?;
                self.write()?;
            }
            command = commands.recv(), if self.outstanding.len() < OUTSTANDING_MAX && self.out.is_empty() => {
                self.send(command.ok_or(Stop::Closed)?, replies)?;
            }
            () = tokio::time::sleep_until(self.deadline), if !self.outstanding.is_empty() => {
                let seconds = self.timeout.as_secs();
                return Err(EngineError::TimedOut { seconds, doing: "a step".into() }.into());
            }
        }
        Ok(())
    }

    fn send(&mut self, command: StageCommand, replies: &Sender<StageReply>) -> Result<(), Stop> {
        // Too long for a frame: the caller's fault, and the child is none the worse.
        let refused = encode(&command, &mut self.out).err().map(|error| StageError::BadInput(error.to_string()));
        if self.outstanding.is_empty() {
            self.deadline = Instant::now() + self.timeout;
        }
        self.outstanding.extend(Due::of(&command).map(|due| (due, refused)));
        self.settle_refused();
        self.pass_on(replies)?;
        self.write()
    }

    /// Answers the commands that were never sent, once it is their turn.
    fn settle_refused(&mut self) {
        while let Some((due, Some(error))) = self.outstanding.front() {
            self.ready.push_back(due.failed(error.clone()));
            self.outstanding.pop_front();
        }
    }

    fn write(&mut self) -> Result<(), Stop> {
        while self.written < self.out.len() {
            match self.stream.try_write(&self.out[self.written..]) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        // It stays for the next command: what it held does not.
        self.out.as_mut_slice().zeroize();
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    fn read(&mut self) -> Result<(), Stop> {
        let stream = &self.stream;
        match self.inbox.fill(|space| stream.try_read(space)) {
            Ok(0) => return Err(std::io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some(content) = self.inbox.next()? {
            let reply = decode(content)?;
            let due = self.outstanding.pop_front();
            if !due.is_some_and(|(due, _)| due.is_paid_by(&reply)) {
                return Err(EngineError::Protocol("it answered another question".into()).into());
            }
            self.deadline = Instant::now() + self.timeout;
            self.answered |= matches!(reply, StageReply::Forwarded { .. });
            self.ready.push_back(reply);
            self.settle_refused();
        }
        self.inbox.forget();
        Ok(())
    }

    /// Gives the caller what it has room for, at once.
    fn pass_on(&mut self, replies: &Sender<StageReply>) -> Result<(), Stop> {
        while let Some(reply) = self.ready.pop_front() {
            match replies.try_send(reply) {
                Ok(()) => {}
                Err(tokio::sync::mpsc::error::TrySendError::Full(reply)) => {
                    self.ready.push_front(reply);
                    break;
                }
                Err(tokio::sync::mpsc::error::TrySendError::Closed(_)) => return Err(Stop::Closed),
            }
        }
        Ok(())
    }

    /// After the child's end: what it had answered, what it owed, and that it is gone. False where nobody listens.
    async fn bury(self, replies: &Sender<StageReply>, reason: String) -> bool {
        let owed = self.outstanding.into_iter().map(|(due, _)| due.failed(StageError::Lost(reason.clone())));
        let last = StageReply::Lost { reason: reason.clone() };
        for reply in self.ready.into_iter().chain(owed).chain([last]) {
            if replies.send(reply).await.is_err() {
                return false;
            }
        }
        true
    }
}
