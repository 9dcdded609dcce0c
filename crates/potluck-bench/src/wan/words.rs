//! What the bench and its client's process say to each other: one line of JSON there, one back.

use std::path::PathBuf;

use potluck_client::DraftCounts;
use potluck_core::LayerRange;
use potluck_engine::EngineSettings;
use serde::{Deserialize, Serialize};

use super::pace::Pace;

/// The first line: who the client is, and what model it is about. It is answered by [`Told::Ready`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientOrder {
    /// Its key, in hexadecimal.
    pub(crate) key: String,
    /// The swarm.
    pub(crate) swarm: String,
    /// Its grant, in hexadecimal.
    pub(crate) grant: String,
    /// Where the catalogue lies.
    pub(crate) models: PathBuf,
    /// The model.
    pub(crate) model: String,
    /// How its own engines run.
    pub(crate) settings: EngineSettings,
}

/// Every line after that.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Open sessions over a route. Answered by `Done`.
    Open(OpenChain),
    /// End those sessions, and the own engines with them. Answered by `Done`.
    Close {
        /// The name that they were opened under.
        chain: String,
    },
    /// The tokens of each text, as the model's chat template makes a prompt of it. Answered by `Prompts`.
    Prompts {
        /// What the user says.
        texts: Vec<String>,
    },
    /// Answer prompts, each in a session of its own, all at once. Answered by `Answers`.
    Generate(Generate),
    /// Have a llama.cpp server answer. Answered by `Answers`.
    Server(AskServer),
}

/// Sessions over one route.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OpenChain {
    /// What they are called from now on.
    pub(crate) chain: String,
    /// The model, where it is another than the order's: a draft.
    pub(crate) model: Option<String>,
    /// The stages, in order.
    pub(crate) route: Vec<Place>,
    /// How hidden states travel: a codec's name.
    pub(crate) codec: String,
    /// Positions that each session has room for.
    pub(crate) positions: u32,
    /// How many sessions.
    pub(crate) sessions: u16,
    /// Threads of its engines here, where they are others than the order's.
    pub(crate) threads: Option<u16>,
}

/// A stage of a route.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) layers: LayerRange,
    pub(crate) head: bool,
    pub(crate) tail: bool,
    /// Where it is; none: with the client.
    pub(crate) at: Option<At>,
    /// With the client and paced, instead of an engine.
    pub(crate) pace: Option<Pace>,
}

/// Where a peer is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct At {
    pub(crate) peer: String,
    pub(crate) addresses: Vec<String>,
    /// Its grant, in hexadecimal.
    pub(crate) grant: String,
}

/// Prompts to answer over a chain, greedily.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Generate {
    pub(crate) chain: String,
    /// One a session.
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) max_tokens: u32,
    pub(crate) ignore_eos: bool,
    /// Positions of a prefill step; none: what the client chooses.
    pub(crate) chunk: Option<u16>,
    /// Prefill steps in flight; none: what the client chooses.
    pub(crate) in_flight: Option<usize>,
    /// Tell how far each token was ahead of the next likely one.
    pub(crate) margins: bool,
    /// What a paced tail answers from: the answer of each prompt, as the real model gave it.
    pub(crate) recordings: Vec<Vec<u32>>,
    pub(crate) speculation: Speculation,
}

/// Where drafts come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Speculation {
    pub(crate) source: Source,
    /// The chain that the draft model was opened under.
    pub(crate) draft: Option<String>,
}

/// Where drafts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// Nowhere: a token a traversal.
    #[default]
    Off,
    /// The text so far.
    Lookup,
    /// A draft model with the client.
    Draft,
    /// As the controller decides.
    Auto,
}

/// A prompt for llama.cpp's server, from the client's namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AskServer {
    /// `ip:port`.
    pub(crate) address: String,
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) max_tokens: u32,
    pub(crate) ignore_eos: bool,
}

/// What the client's process answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// It is there.
    Ready,
    Done {
        /// How long it took.
        seconds: f64,
    },
    Prompts(Vec<Vec<u32>>),
    Answers(Vec<Answered>),
    /// It could not.
    Failed(String),
}

/// An answer, and when each of its tokens came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answered {
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: String,
    /// Seconds from the request to each token.
    pub(crate) at_s: Vec<f64>,
    /// Steps sent down the chain for the prompt, and after it.
    pub(crate) prefill_steps: u64,
    pub(crate) decode_steps: u64,
    /// Positions of those after the prompt.
    pub(crate) decode_rows: u64,
    /// By how much the logit of each token exceeded the next, where that was asked for.
    pub(crate) margins: Vec<f32>,
    /// What drafting came to.
    #[serde(default)]
    pub(crate) drafts: DraftCounts,
}

impl Answered {
    /// Seconds to the first token.
    pub(crate) fn first_s(&self) -> f64 {
        self.at_s.first().copied().unwrap_or_default()
    }

    /// Tokens after the first, a second; none where there are fewer than two.
    pub(crate) fn rate(&self) -> Option<f64> {
        let (first, last) = (self.at_s.first()?, self.at_s.last()?);
        (last > first).then(|| (self.at_s.len() - 1) as f64 / (last - first))
    }

    /// Seconds to the last token.
    pub(crate) fn seconds(&self) -> f64 {
        self.at_s.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_counts_what_follows_the_first_token() {
        let answered = Answered { at_s: vec![2.0, 2.5, 3.0], ..Answered::default() };
        assert_eq!((answered.rate(), answered.first_s(), answered.seconds()), (Some(2.0), 2.0, 3.0));
        assert_eq!(Answered { at_s: vec![2.0], ..Answered::default() }.rate(), None);
    }
}
