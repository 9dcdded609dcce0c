//! Drafts over a chain that is far away: the real model in this machine's engines, and a wait as long as a wide-area route would take.
//!
//! `cargo run --package potluck-client --example drafts -- MODEL [DRAFT] < prompts`, a prompt a line; `POTLUCK_RTT_MS` is the wait (100).
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a program to try things with")]

use std::{collections::VecDeque, env, fs::File, io::BufReader, path::Path, sync::Arc, time::Duration};

use potluck_chain::{Answer, Deadlines, SessionError, Submission, sample::SamplingParams};
use potluck_client::{
    Cancel, Chain, ChainShape, DraftModel, Drafting, Drafts, LocalChain, Request, Session, StageAccount,
};
use potluck_core::{Hidden, LayerRange, StageSpec};
use potluck_engine::{EngineProcess, EngineProgram, EngineSettings, Load, Part, VocabularyClient};
use potluck_model::{Extent, Facts, VirtualFile, gguf, manifest_of, slice};
use tokio::time::{Instant, sleep_until};

const POSITIONS: u32 = 2_048;

/// A chain whose answers take so much longer.
struct Far {
    chain: LocalChain,
    wait: Duration,
    sent: VecDeque<Instant>,
}

impl Chain for Far {
    fn shape(&self) -> ChainShape {
        self.chain.shape()
    }

    fn takes_drafts(&self) -> bool {
        true
    }

    async fn submit(&mut self, submission: Submission) -> Result<u32, SessionError> {
        self.sent.push_back(Instant::now());
        self.chain.submit(submission).await
    }

    async fn answer(&mut self) -> Result<Answer, SessionError> {
        let due = self.sent.front().map(|sent| *sent + self.wait);
        if let Some(due) = due {
            // What the engines do takes its time besides: it is waited for afterwards.
            sleep_until(due).await;
        }
        let answer = self.chain.answer().await;
        self.sent.pop_front();
        answer
    }

    async fn row(&mut self, sequence: u32, row: u16) -> Result<Hidden, SessionError> {
        self.chain.row(sequence, row).await
    }

    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError> {
        Ok(None)
    }

    fn bytes_written(&self) -> u64 {
        0
    }

    async fn let_go(&mut self) {}

    async fn close(self) {
        self.chain.close().await;
    }
}

fn program() -> EngineProgram {
    let beside = env::current_exe().unwrap();
    let folder = beside.parent().unwrap().parent().unwrap();
    EngineProgram { program: folder.join("potluck-client-engine"), args: Vec::new() }
}

/// The whole model, and its vocabulary.
fn loads(path: &Path, env: &str) -> [Load; 2] {
    let file = File::open(path).unwrap();
    let bytes = file.metadata().unwrap().len();
    let header = gguf::read(BufReader::new(&file), bytes).unwrap();
    let manifest = manifest_of(&[&header], |_, _| Some([0; 32])).unwrap();
    let default = EngineSettings::default();
    let threads = env::var(env).map_or(default.threads, |threads| threads.parse().unwrap());
    let settings = EngineSettings { context: POSITIONS, caches: 1, threads, threads_batch: threads, ..default };
    let layers = LayerRange::new(0, manifest.layers()).unwrap();
    let spec = StageSpec { model: manifest.id(), layers, head: true, tail: true };
    let model = VirtualFile::new(vec![Extent::File { file: 0, offset: 0, len: bytes }]);
    let cache_bytes_per_position = Facts::of(&manifest).cache_bytes_per_position;
    let vocabulary = Part::Vocabulary { model: slice::vocabulary_file(&manifest).unwrap() };
    let file = Arc::new(file);
    [Part::Whole { spec, model, cache_bytes_per_position }, vocabulary].map(|part| Load {
        part,
        settings: settings.clone(),
        files: vec![file.clone()],
    })
}

async fn local(load: Load) -> LocalChain {
    let engine = EngineProcess::start(program(), load).await.unwrap();
    LocalChain::open(engine, POSITIONS, Deadlines::default()).await.unwrap()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = env::args().skip(1);
    let [whole, vocabulary] = loads(Path::new(&args.next().unwrap()), "POTLUCK_THREADS");
    let mut draft = match args.next() {
        Some(path) => Some(DraftModel::new(local(loads(Path::new(&path), "POTLUCK_DRAFT_THREADS")[0].clone()).await)),
        None => None,
    };
    let wait = env::var("POTLUCK_RTT_MS").map_or(100, |ms| ms.parse().unwrap());
    let tokens = env::var("POTLUCK_TOKENS").map_or(64, |tokens| tokens.parse().unwrap());
    let far = Far { chain: local(whole).await, wait: Duration::from_millis(wait), sent: VecDeque::new() };
    let vocabulary = VocabularyClient::start(program(), vocabulary).await.unwrap();
    let mut session = Session::new(far, vocabulary);
    let prompts: Vec<String> = std::io::stdin().lines().map_while(Result::ok).collect();
    for drafts in [Drafts::Off, Drafts::Lookup, Drafts::Model, Drafts::Auto] {
        if drafts == Drafts::Model && draft.is_none() {
            continue;
        }
        session.set_drafting(Drafting::new(drafts, draft.take()));
        let (mut rates, mut said) = (Vec::new(), Vec::new());
        for prompt in &prompts {
            let prompt = format!("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n");
            let request = Request {
                params: SamplingParams::greedy(),
                max_tokens: Some(tokens),
                reuse: false,
                ..Request::new(session.tokenize(&prompt).await.unwrap())
            };
            let outcome = session.generate(request, &Cancel::new(), |_| {}).await.unwrap();
            println!("  {drafts:?} {:.1} tokens/s {:?}", outcome.decode_tokens_per_s, outcome.drafts);
            rates.push(outcome.decode_tokens_per_s);
            said.push(outcome.tokens.len());
        }
        rates.sort_by(f64::total_cmp);
        println!("{drafts:?}: median {:.1} tokens/s of {said:?}", rates[rates.len() / 2]);
        draft = session.take_drafting().take_model();
    }
}
