//! The client's side of the vocabulary.

use std::{
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    net::UnixStream,
    sync::{mpsc, oneshot},
};

use super::{
    GrammarId, GrammarSource, TEXT_BYTES_MAX, VocabularyError, VocabularyInfo,
    grammar::within,
    messages::{Command, Reply},
};
use crate::{
    EngineError, EngineProgram, Load,
    process::{Connection, Inbox, Loaded, Patience, connect, decode, encode},
};

/// How long one answer may take; then the process is ended. Reading a large grammar takes milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls that wait for the process.
const WAITING_MAX: usize = 64;

type Answer = Result<Reply, VocabularyError>;

/// The tokenizer and the grammars of a model, in a child process. Clones share it; it ends with the last of them.
///
/// A child that dies, or takes too long, is replaced at the next call; open grammars are then gone.
#[derive(Debug, Clone)]
pub struct VocabularyClient {
    info: Arc<VocabularyInfo>,
    calls: mpsc::Sender<(Command, oneshot::Sender<Answer>)>,
    grammars: Arc<AtomicU64>,
}

impl VocabularyClient {
    /// Starts the child and a task of the current runtime that speaks with it. `load.part` is `Vocabulary`.
    ///
    /// # Errors
    /// See [`EngineError`]: also where the file made llama.cpp end the child.
    pub async fn start(program: EngineProgram, load: Load) -> Result<Self, EngineError> {
        let (line, info) = Line::connect(&program, &load).await?;
        let (calls, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(serve(program, load, line, waiting));
        Ok(Self { info: Arc::new(info), calls, grammars: Arc::default() })
    }

    /// What does not change about the vocabulary.
    pub fn info(&self) -> &VocabularyInfo {
        &self.info
    }

    /// The tokens of `text`. `special`: begin and end it as the model wants; `parse`: read control tokens in it, which
    /// is right for a chat template's output and wrong for what a user typed.
    ///
    /// # Errors
    /// `TooMuch` beyond [`TEXT_BYTES_MAX`]; `TimedOut` and `Ended` as they say.
    pub async fn tokenize(&self, text: &str, special: bool, parse: bool) -> Result<Vec<u32>, VocabularyError> {
        within("bytes of the text", text.len(), TEXT_BYTES_MAX)?;
        match self.call(Command::Tokenize { text: text.to_owned(), special, parse }).await? {
            Reply::Tokens(tokens) if tokens.iter().all(|&token| token < self.info.tokens) => Ok(tokens),
            _ => Err(confused()),
        }
    }

    /// The bytes that each of `tokens` stands for; control tokens are empty unless `special`. A character may be
    /// spread over several tokens: join the bytes before reading them as text.
    ///
    /// # Errors
    /// As for [`tokenize`](Self::tokenize).
    pub async fn pieces(&self, tokens: &[u32], special: bool) -> Result<Vec<Vec<u8>>, VocabularyError> {
        match self.call(Command::Pieces { tokens: tokens.to_vec(), special }).await? {
            Reply::Pieces(pieces) if pieces.len() == tokens.len() => {
                Ok(pieces.into_iter().map(serde_bytes::ByteBuf::into_vec).collect())
            }
            _ => Err(confused()),
        }
    }

    /// Opens a grammar at its beginning. Close it when the answer is done.
    ///
    /// # Errors
    /// `TooMuch` beyond a bound, `Malformed` where llama.cpp cannot read it.
    pub async fn open_grammar(&self, source: GrammarSource) -> Result<GrammarId, VocabularyError> {
        source.check()?;
        let grammar = GrammarId(self.grammars.fetch_add(1, Ordering::Relaxed));
        self.done(Command::Open { grammar, source }).await.map(|()| grammar)
    }

    /// Closes a grammar; closing one that is not open does nothing.
    ///
    /// # Errors
    /// `TimedOut` and `Ended` as they say.
    pub async fn close_grammar(&self, grammar: GrammarId) -> Result<(), VocabularyError> {
        self.done(Command::Close { grammar }).await
    }

    /// Which of `candidates` may come next; of the whole vocabulary where there are none.
    ///
    /// # Errors
    /// `UnknownGrammar` where it is not open; `TimedOut` and `Ended` as they say.
    pub async fn allowed(&self, grammar: GrammarId, candidates: Option<&[u32]>) -> Result<Vec<bool>, VocabularyError> {
        let expected = candidates.map_or(self.info.tokens as usize, <[u32]>::len);
        let candidates = candidates.map(<[u32]>::to_vec);
        match self.call(Command::Allowed { grammar, candidates }).await? {
            Reply::Allowed(mask) if mask.len() == expected => Ok(mask),
            _ => Err(confused()),
        }
    }

    /// Takes `token` as the next of the answer.
    ///
    /// # Errors
    /// `NotAllowed` where the grammar forbids it; `UnknownGrammar`, `TimedOut` and `Ended` as they say.
    pub async fn accept(&self, grammar: GrammarId, token: u32) -> Result<(), VocabularyError> {
        self.done(Command::Accept { grammar, token }).await
    }

    async fn done(&self, command: Command) -> Result<(), VocabularyError> {
        match self.call(command).await? {
            Reply::Done => Ok(()),
            _ => Err(confused()),
        }
    }

    async fn call(&self, command: Command) -> Answer {
        let ended = || VocabularyError::Ended("its runtime is gone".into());
        let (answer, wait) = oneshot::channel();
        self.calls.send((command, answer)).await.map_err(|_| ended())?;
        match wait.await.map_err(|_| ended())?? {
            Reply::Refused(error) => Err(error),
            reply => Ok(reply),
        }
    }
}

fn confused() -> VocabularyError {
    VocabularyError::Ended("it answered another question".into())
}

/// Carries calls to the child, one after the other; a child that failed is replaced at the next call.
async fn serve(
    program: EngineProgram,
    load: Load,
    line: Line,
    mut waiting: mpsc::Receiver<(Command, oneshot::Sender<Answer>)>,
) {
    let mut line = Some(line);
    while let Some((command, answer)) = waiting.recv().await {
        if line.is_none() {
            match Line::connect(&program, &load).await {
                Ok((next, _)) => line = Some(next),
                Err(error) => {
                    let _ = answer.send(Err(VocabularyError::Ended(error.to_string())));
                    continue;
                }
            }
        }
        let Some(open) = line.as_mut() else { continue };
        let result = match tokio::time::timeout(ANSWER_TIMEOUT, open.exchange(&command)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(VocabularyError::Ended(error)),
            Err(_) => Err(VocabularyError::TimedOut(ANSWER_TIMEOUT.as_secs())),
        };
        if result.is_err()
            && let Some(mut dead) = line.take()
        {
            let _ = tokio::task::spawn_blocking(move || dead.connection.child.end()).await;
        }
        // A caller that gave up meanwhile wants no answer.
        let _ = answer.send(result);
    }
}

/// A child and the stream to it.
struct Line {
    connection: Connection,
    stream: UnixStream,
    inbox: Inbox,
    out: Vec<u8>,
}

impl Line {
    async fn connect(program: &EngineProgram, load: &Load) -> Result<(Self, VocabularyInfo), EngineError> {
        let (program, load) = (program.clone(), load.clone());
        let patience = Patience::default();
        let loading = patience.loading();
        let connecting = tokio::task::spawn_blocking(move || connect(&program, &load, &loading));
        let connection = connecting.await.map_err(|why| EngineError::system("loading", why))??;
        patience.over();
        let Loaded::Vocabulary(info) = &connection.loaded else {
            return Err(EngineError::Protocol("it is no vocabulary".into()));
        };
        let info = info.clone();
        let failed = |why| EngineError::system("watching the vocabulary's socket", why);
        let socket = connection.socket.try_clone().map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let stream = UnixStream::from_std(socket).map_err(failed)?;
        Ok((Self { connection, stream, inbox: Inbox::default(), out: Vec::new() }, info))
    }

    async fn exchange(&mut self, command: &Command) -> Result<Reply, String> {
        self.out.clear();
        encode(command, &mut self.out).map_err(|e| e.to_string())?;
        self.stream.write_all(&self.out).await.map_err(|e| e.to_string())?;
        loop {
            if let Some(content) = self.inbox.next().map_err(|e| e.to_string())? {
                return decode(content).map_err(|e| e.to_string());
            }
            self.stream.readable().await.map_err(|e| e.to_string())?;
            match self.inbox.fill(|space| self.stream.try_read(space)) {
                Ok(0) => return Err(self.connection.child.end()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
