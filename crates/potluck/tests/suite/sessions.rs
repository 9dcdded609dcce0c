//! Eight sessions at once on one chain of real peers: exact where that was asked for, near-ties otherwise, no memory that grows.

use std::path::PathBuf;

use potluck_chain::Submission;
use potluck_client::{Chain, LocalChain};
use potluck_core::{Logits, Rows};
use potluck_engine::{EngineProcess, EngineSettings, VocabularyClient};
use potluck_net::Session;
use potluck_wire::Codec;

use crate::machine::{
    Machine, model,
    peers::{Model, Peers, answer, engine},
};

/// Positions of a prefill step: several for each prompt, so that they mix with the single steps of others.
const CHUNK: usize = 16;

/// Tokens that follow each prompt.
const ANSWER: usize = 64;

/// Logits that are compared in each row.
const TOP: u16 = 64;

/// Largest margin, in logits, at which another token is a near-tie: company in a batch moves a logit by up to 0.6
/// (`docs/benchmarks.md`), and two logits differ by twice that at most.
const NEAR_TIE: f32 = 1.2;

const PROMPTS: [&str; 8] = [
    "Once upon a time",
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n    if n < 2:\n        return n\n",
    "Water boils at one hundred degrees. At the top of a high mountain it boils earlier, because",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 2, 4, 8, 16,",
    "In the beginning the Universe was created. This has made a lot of people very angry and been widely regarded as a \
     bad move. Many races believe that it was created by some sort of god, though the people of",
    "The three laws are:\n1.",
];

/// What one session does, and what the whole model says to it, step by step.
struct Script {
    prompt: Vec<u32>,
    /// What the whole model goes on with.
    tokens: Vec<u32>,
    /// The largest logits after the prompt and after each of the tokens but the last.
    rows: Vec<Vec<(u32, f32)>>,
}

/// A position at which another token came out on top.
#[derive(Debug)]
struct Flip {
    session: usize,
    position: usize,
    /// By how much the whole model preferred its own.
    margin: f32,
}

fn settings(exact: bool, caches: u16) -> EngineSettings {
    // One thread: three engines share the cores with whatever else runs, and threads that wait for each other spin.
    EngineSettings { threads: 1, threads_batch: 1, context: 256, caches, exact, ..EngineSettings::default() }
}

fn largest(rows: Vec<Logits>) -> Vec<(u32, f32)> {
    match rows.into_iter().next_back() {
        Some(Logits::Top { largest, .. }) => largest,
        other => panic!("the largest logits were asked for: {other:?}"),
    }
}

/// Each prompt alone on one engine with the original file, in exact mode: what `--local --exact` does.
async fn alone(model: &Model) -> Vec<Script> {
    let vocabulary = VocabularyClient::start(engine(), model.vocabulary(&settings(true, 1))).await.unwrap();
    let mut scripts = Vec::new();
    for text in PROMPTS {
        let prompt = vocabulary.tokenize(text, true, false).await.unwrap();
        let whole = EngineProcess::start(engine(), model.whole(&settings(true, 1))).await.unwrap();
        let mut chain = LocalChain::open(whole, 256, Default::default()).await.unwrap();
        let mut script = Script { prompt, tokens: Vec::new(), rows: Vec::new() };
        for (start, tokens) in chunks(&script.prompt) {
            chain.submit(Submission::chain(start, tokens.clone(), Rows::Last, TOP)).await.unwrap();
            let row = largest(chain.answer().await.unwrap().rows);
            if start as usize + tokens.len() == script.prompt.len() {
                script.rows.push(row);
            }
        }
        while script.tokens.len() < ANSWER {
            let (token, at) = (script.rows.last().unwrap()[0].0, script.prompt.len() + script.tokens.len());
            script.tokens.push(token);
            chain.submit(Submission::chain(at as u32, vec![token], Rows::Last, TOP)).await.unwrap();
            script.rows.push(largest(chain.answer().await.unwrap().rows));
        }
        chain.close().await;
        scripts.push(script);
    }
    scripts
}

fn chunks(prompt: &[u32]) -> impl Iterator<Item = (u32, Vec<u32>)> {
    prompt.chunks(CHUNK).enumerate().map(|(at, chunk)| ((at * CHUNK) as u32, chunk.to_vec()))
}

/// Follows a script, one step after the other; the largest logits where the script has them.
async fn follow(mut session: Session, prompt: Vec<u32>, tokens: Vec<u32>) -> Vec<Vec<(u32, f32)>> {
    let mut rows = Vec::new();
    let mut last = Vec::new();
    for (start, tokens) in chunks(&prompt) {
        session.submit(Submission::chain(start, tokens, Rows::Last, TOP)).unwrap();
        last = largest(answer(&mut session).await.rows);
    }
    rows.push(last);
    for (at, token) in tokens.into_iter().enumerate() {
        session.submit(Submission::chain((prompt.len() + at) as u32, vec![token], Rows::Last, TOP)).unwrap();
        rows.push(largest(answer(&mut session).await.rows));
    }
    rows
}

/// Runs the scripts of all sessions at once, each with `steps` single steps.
async fn together(peers: &Peers, scripts: &[Script], codec: Codec, steps: usize) -> Vec<Vec<Vec<(u32, f32)>>> {
    let node = peers.client().await;
    let local = tokio::task::LocalSet::new();
    let mut running = Vec::new();
    for script in scripts {
        let session = peers.open(&node, codec).await;
        running.push(local.spawn_local(follow(session, script.prompt.clone(), script.tokens[..steps].to_vec())));
    }
    let rows = local.run_until(async {
        let mut rows = Vec::new();
        for session in running {
            rows.push(session.await.unwrap());
        }
        rows
    });
    let rows = rows.await;
    node.close().await;
    rows
}

/// Where the answers differ from those of the whole model, and by what margin.
fn flips(scripts: &[Script], got: &[Vec<Vec<(u32, f32)>>]) -> Vec<Flip> {
    let mut flips = Vec::new();
    for (session, (script, got)) in scripts.iter().zip(got).enumerate() {
        assert_eq!(script.rows.len(), got.len());
        for (position, (expected, got)) in script.rows.iter().zip(got).enumerate() {
            let (best, other) = (expected[0], got[0].0);
            if best.0 != other {
                // Not even among the largest: no near-tie at all, and perhaps another session's row.
                let logit =
                    expected.iter().find(|(token, _)| *token == other).map_or(f32::NEG_INFINITY, |found| found.1);
                flips.push(Flip { session, position, margin: best.1 - logit });
            }
        }
    }
    flips
}

#[tokio::test(flavor = "current_thread")]
async fn eight_sessions_at_once_each_equal_their_own_run() {
    let machine = Machine::new();
    let model = Model::add(&machine, &PathBuf::from(model()));
    let scripts = alone(&model).await;

    let exact = model.serve(&machine, 3, &settings(true, 8));
    let got = together(&exact, &scripts, Codec::F32, ANSWER).await;
    for (session, (script, got)) in scripts.iter().zip(&got).enumerate() {
        assert!(script.rows == *got, "session {session}: not bit for bit what it is alone");
    }
    drop(exact);

    let batched = model.serve(&machine, 3, &settings(false, 8));
    let got = together(&batched, &scripts, Codec::F16, ANSWER).await;
    let flips = flips(&scripts, &got);
    let positions: usize = got.iter().map(Vec::len).sum();
    println!(
        "{} of {positions} positions agree; where they do not, the whole model's margin:",
        positions - flips.len()
    );
    flips.iter().for_each(|Flip { session, position, margin }| {
        println!("  {:?}, position {position}: {margin:.4}", PROMPTS[*session]);
    });
    assert!(flips.iter().all(|flip| flip.margin < NEAR_TIE), "a difference is no near-tie: {flips:?}");
    assert!(flips.len() * 20 <= positions, "more than one in twenty positions differ");

    // Of the whole chain: an engine's memory comes in huge pages, and one page more is 3 % of so small a stage.
    let mut second = 0.0;
    for round in 1..=10 {
        together(&batched, &scripts, Codec::F16, 8).await;
        if round == 2 {
            second = batched.resident();
        }
    }
    let tenth = batched.resident();
    assert!(tenth < 1.02 * second, "the chain's processes grew from {second} to {tenth} bytes");
    drop(batched);
    machine.wait_until_empty(&[]);
}
