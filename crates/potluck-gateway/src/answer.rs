//! An answer under way, as the handlers see it, whatever API they speak.

use potluck_client::{Outcome, Request, TokenEvent};
use tokio::sync::mpsc;

use crate::{
    Problem, Whose,
    access::Caller,
    slots::{Event, Job, Task},
    tools::{Call, Piece, Reader},
};

/// Texts of one request that wait for slots, or are in them, at a time.
const EMBEDDINGS_ASKED: usize = 8;

/// Choices of one request at most. More are refused.
pub(crate) const CHOICES_MAX: usize = 16;

/// The choices of one request. Dropped, they are cancelled.
#[derive(Debug)]
pub(crate) struct Answers {
    events: mpsc::UnboundedReceiver<(usize, Event)>,
    /// Choices that are not done yet.
    open: usize,
    /// Their tokens are of use to nobody: text alone came.
    text_only: bool,
}

/// One choice, whole.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) tokens: Vec<TokenEvent>,
    pub(crate) ended: Ended,
}

/// An answer that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    /// Where somebody else made it: what they said beside its text.
    pub(crate) told: Option<Told>,
}

/// What a lender says of its answer, which is not found in its text.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// What it calls.
    pub(crate) calls: Vec<Call>,
    /// The text that ended it.
    pub(crate) stop: Option<String>,
}

impl Ended {
    /// False where whoever made it has not said how many tokens there were: no prompt has none.
    pub(crate) fn is_counted(&self) -> bool {
        self.told.is_none() || self.outcome.prompt_tokens > 0
    }

    /// What was not read while it came: what was held back, and what its lender says that it calls.
    pub(crate) fn rest(&self, reader: &mut Reader) -> Vec<Piece> {
        match &self.told {
            Some(told) => reader.told(&told.calls),
            None => reader.end(),
        }
    }

    /// All of it.
    pub(crate) fn pieces(&self, reader: &mut Reader) -> Vec<Piece> {
        let mut pieces = reader.read(&self.outcome.text);
        pieces.extend(self.rest(reader));
        pieces
    }
}

impl Answers {
    /// Puts the requests in the queue.
    pub(crate) async fn ask(
        jobs: &mpsc::Sender<Job>,
        caller: &Caller,
        requests: Vec<Request>,
    ) -> Result<Self, Problem> {
        caller.may_ask_own()?;
        caller.charge(requests.iter().map(|request| request.prompt.len()).sum())?;
        let (events, receiver) = mpsc::unbounded_channel();
        let open = requests.len();
        for (index, request) in requests.into_iter().enumerate() {
            let job = Job::new(caller.clone(), Task::Generate(request), index, events.clone());
            jobs.send(job).await.map_err(|_| leaving())?;
        }
        Ok(Self { events: receiver, open, text_only: false })
    }

    /// An answer that somebody else makes: what happens to it comes by this channel.
    pub(crate) fn made_by_another(events: mpsc::UnboundedReceiver<(usize, Event)>) -> Self {
        Self { events, open: 1, text_only: true }
    }

    /// The embeddings of these texts, in their order.
    pub(crate) async fn embed(
        jobs: &mpsc::Sender<Job>,
        caller: &Caller,
        texts: Vec<Vec<u32>>,
        chunk: u16,
    ) -> Result<Vec<Vec<f32>>, Problem> {
        caller.may_ask_own()?;
        caller.charge(texts.iter().map(Vec::len).sum())?;
        let (events, mut receiver) = mpsc::unbounded_channel();
        let mut embeddings: Vec<Option<Vec<f32>>> = texts.iter().map(|_| None).collect();
        let mut waiting = texts.into_iter().enumerate();
        let mut asked = 0;
        loop {
            // A few at a time: a long list takes no more of the queue than a short one.
            while asked < EMBEDDINGS_ASKED
                && let Some((index, tokens)) = waiting.next()
            {
                let task = Task::Embed { tokens, chunk };
                let job = Job::new(caller.clone(), task, index, events.clone());
                jobs.send(job).await.map_err(|_| leaving())?;
                asked += 1;
            }
            if asked == 0 {
                break;
            }
            match receiver.recv().await {
                Some((index, Event::Embedded(embedding))) => {
                    embeddings[index] = Some(embedding);
                    asked -= 1;
                }
                Some((_, Event::Failed(problem))) => return Err(problem),
                Some(_) => {}
                None => return Err(leaving()),
            }
        }
        embeddings.into_iter().map(|embedding| embedding.ok_or_else(leaving)).collect()
    }

    /// What happens next: to which choice, and what; none once all are done.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        if self.open == 0 {
            return None;
        }
        let next = self.events.recv().await.unwrap_or_else(|| (0, Event::Failed(leaving())));
        self.open = match next.1 {
            Event::Done(_) | Event::Embedded(_) => self.open - 1,
            // One choice without an answer is a request without one.
            Event::Failed(_) => 0,
            _ => self.open,
        };
        Some(next)
    }

    /// The only choice, whole.
    pub(crate) async fn only(self) -> Result<Whole, Problem> {
        self.whole().await?.pop().ok_or_else(leaving)
    }

    /// All choices, whole.
    pub(crate) async fn whole(mut self) -> Result<Vec<Whole>, Problem> {
        let mut tokens: Vec<Vec<TokenEvent>> = (0..self.open).map(|_| Vec::new()).collect();
        let mut all: Vec<Option<Ended>> = (0..self.open).map(|_| None).collect();
        while let Some((index, event)) = self.next().await {
            match event {
                Event::Started | Event::Embedded(_) => {}
                Event::Token(_) if self.text_only => {}
                Event::Token(token) => tokens[index].push(token),
                Event::Done(ended) => all[index] = Some(*ended),
                Event::Failed(problem) => return Err(problem),
            }
        }
        let whole = tokens.into_iter().zip(all);
        whole.map(|(tokens, ended)| Ok(Whole { tokens, ended: ended.ok_or_else(leaving)? })).collect()
    }
}

fn leaving() -> Problem {
    Problem::new(Whose::Lenders(1), "shutting_down", "the gateway is shutting down")
}
