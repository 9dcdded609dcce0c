//! The prompt: what is new of it goes down the route in steps, several at a time.

use std::collections::VecDeque;

use potluck_chain::{
    Answer, STEPS_IN_FLIGHT_MAX,
    chunks::{Cuts, PREFILL_POSITIONS_IN_FLIGHT},
    draft::Source,
};
use potluck_core::{Rows, bounds::STEP_POSITIONS_MAX};

use crate::{
    Cancel, Chain, GenerateError, Request, Session,
    decode::{Ahead, Flight},
    run::Run,
    trace::Tracing,
};

impl<C: Chain> Session<C> {
    /// Evaluates what is new of the prompt, and of the answer where it goes on here. Returns the last step's answer, and the drafts that
    /// followed it; `None`: cancelled.
    pub(crate) async fn prefill(
        &mut self,
        request: &Request,
        run: &mut Run,
        cancel: &Cancel,
    ) -> Result<Option<(Answer, VecDeque<Flight>)>, GenerateError> {
        self.drain().await?;
        let tokens = [&request.prompt[..], run.tokens()].concat();
        let known = self.common(&tokens);
        // The last token is evaluated in any case: its logits are wanted.
        let known = if request.reuse { known.min(tokens.len() - 1) } else { 0 };
        if !request.reuse && run.resumed() == 0 {
            self.drafting.forget();
        }
        // Where the very steps matter, none is kept in part.
        let known = if request.exact { self.cut_at(known) } else { known };
        self.forget(known);
        if request.trace && run.resumed() == 0 {
            run.tracing = self.chain.accounts().await?.map(Tracing::new);
        }
        run.started(known);
        let positions = tokens.len() - known;
        let most = Cuts {
            chunk: usize::from(request.chunk).clamp(1, STEP_POSITIONS_MAX),
            in_flight: request.in_flight.clamp(1, STEPS_IN_FLIGHT_MAX),
        };
        let fixed = request.exact || request.fixed;
        let Cuts { chunk, in_flight } = match fixed {
            true => Cuts::of(most.chunk, most.in_flight),
            // Smaller steps may be more.
            false => self.cuts_for(positions, most).await?,
        };
        let again = run.resumed() > 0 && request.exact;
        let in_flight = if again { STEPS_IN_FLIGHT_MAX } else { in_flight };
        let cuts =
            if again { run.cuts_again(tokens.len(), chunk) } else { (known..tokens.len()).step_by(chunk).collect() };
        let ends = cuts.iter().skip(1).copied().chain([tokens.len()]);
        let mut chunks = cuts.iter().zip(ends).map(|(&start, end)| &tokens[start..end]).peekable();
        let now = self.drafting.clock.0;
        let began = now();
        let (mut under_way, mut flights) = (VecDeque::new(), VecDeque::new());
        loop {
            // Steps as they were before may have any size: so many positions, too, and no more.
            while self.unanswered < in_flight
                && let Some(tokens) = chunks.next_if(|tokens| {
                    let positions = under_way.iter().sum::<usize>() + tokens.len();
                    under_way.is_empty() || positions <= PREFILL_POSITIONS_IN_FLIGHT
                })
            {
                under_way.push_back(tokens.len());
                let rows = if chunks.peek().is_none() { Rows::Last } else { Rows::None };
                self.submit(tokens, rows, run.top).await?;
            }
            let Ahead { beyond, in_flight: following, mut room, .. } = self.ahead(run, &flights);
            if chunks.peek().is_some() || request.trace {
                room = 0;
            }
            let next = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(None),
                answer = self.chain.answer() => Ok(answer?),
                drafted = self.drafting.behind_prompt(&run.sampler, most.chunk, &beyond, following + 1, room) => Err(drafted),
            };
            let answer = match next {
                Ok(answer) => answer,
                Err(drafted) => {
                    self.fly(run, Vec::new(), drafted, Source::Model, false, &mut flights).await?;
                    // How long it takes says how long the prompt took.
                    flights.iter_mut().for_each(|flight| (flight.alone, flight.delayed) = (false, true));
                    continue;
                }
            };
            self.unanswered -= 1;
            under_way.pop_front();
            if under_way.is_empty() && chunks.peek().is_none() {
                run.prefilled(self.chain.bytes_written());
                if let Some(tracing) = &mut run.tracing
                    && let Some(accounts) = self.chain.accounts().await?
                {
                    tracing.prefilled(run.clock.prefill_seconds(), accounts);
                }
                if !fixed {
                    self.learn(positions, Cuts { chunk, in_flight }, (now() - began).as_secs_f64()).await?;
                }
                return Ok(Some((answer, flights)));
            }
        }
    }

    /// How a prompt of so many positions is cut, and asks what the stages have done before it.
    async fn cuts_for(&mut self, positions: usize, most: Cuts) -> Result<Cuts, GenerateError> {
        let places = self.chain.places();
        self.listen().await?;
        self.times.over(&places);
        let cuts = self.times.choose(positions, most);
        self.chain.ask_accounts()?;
        Ok(cuts)
    }

    /// A prompt was evaluated. What the stages did for it, they tell while the answer goes on.
    async fn learn(&mut self, positions: usize, cuts: Cuts, seconds: f64) -> Result<(), GenerateError> {
        self.listen().await?;
        self.times.took(positions, cuts, seconds);
        Ok(self.chain.ask_accounts()?)
    }

    /// Takes note of what the stages have told, if they have.
    async fn listen(&mut self) -> Result<(), GenerateError> {
        if let Some(accounts) = self.chain.told_accounts().await? {
            self.times.told(&accounts);
        }
        Ok(())
    }
}
