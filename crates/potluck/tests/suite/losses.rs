//! What the loss of a peer costs whoever waits for an answer: three stages, two peers for each, every machine a network namespace of its
//! own, and whatever can happen to a peer, at random moments. `make prove-recovery` does it two hundred times.
//!
//! Needs root, `ip` and `nft`. Without them it says so and checks nothing; with `POTLUCK_SKIP_NOTHING`, as in CI, it fails.

use std::{
    env,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use potluck_netem::{Namespace, Star, link::Profile};
use serde_json::{Value, json};

use crate::machine::{Machine, NEAR_TIE, Running, children, cpu_ticks, is_alive, kill, model, wait_until};

/// Peers of each stage, and where the model is cut.
const REPLICAS: usize = 2;
pub(crate) const STAGES: [&str; 3] = ["0..10", "10..20", "20..30"];

/// Positions of a session; of one with a long prompt.
const CONTEXT: &str = "1024";
const LONG_CONTEXT: &str = "5120";

/// An answer that takes longer hangs.
pub(crate) const ANSWERS_WITHIN: Duration = Duration::from_secs(120);

/// How long a frozen peer stands still that wakes.
const FREEZE: Duration = Duration::from_secs(5);

/// What happens to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Killed,
    /// Told to end, which it does when its sessions are elsewhere.
    Told,
    /// Stopped until the answer is there.
    Stopped,
    /// Stopped for five seconds: it wakes while the answer is under way.
    Frozen,
    Cut,
    /// Nothing that it sends arrives.
    Mute,
    /// Nothing that it is sent arrives.
    Deaf,
    EngineKilled,
}

pub(crate) const FAULTS: [Fault; 8] = [
    Fault::Killed,
    Fault::Stopped,
    Fault::Frozen,
    Fault::Cut,
    Fault::Mute,
    Fault::Deaf,
    Fault::EngineKilled,
    Fault::Told,
];

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prefill,
    Decode,
    Speculation,
    /// Late in an answer that need not be exact, and guesses nothing: what is sent again is merged.
    Late,
    /// In an answer for which peers stand by.
    StoodBy,
}

const PHASES: [Phase; 5] = [Phase::Prefill, Phase::Decode, Phase::Speculation, Phase::Late, Phase::StoodBy];

impl Phase {
    /// What is asked.
    fn asked(self) -> Vec<String> {
        let text = "The harbour was quiet that morning. Two boats lay at the pier, one red and one blue, and a cat slept on the warm \
                    stones between them. An old man mended a net; now and then he looked up at the gulls. ";
        let exact: &[&str] = &["--exact"];
        let (prompt, tokens, how) = match self {
            Self::Prefill => (text.repeat(9) + "What lay at the pier?", "24", exact),
            Self::Decode => ("Tell me of the sea.".to_owned(), "96", exact),
            Self::Late => (text.to_owned() + "What happens next?", "160", &["--drafts", "off", "--logprobs", "5"][..]),
            Self::StoodBy => ("Tell me of the mountains.".to_owned(), "240", &["--exact", "--standby", "3"][..]),
            // What is exact guesses nothing.
            Self::Speculation => {
                (format!("Repeat this text, word by word, twice:\n{}", text.repeat(2)), "96", &["--logprobs", "5"][..])
            }
        };
        let fixed = ["--max-tokens", tokens, "--ignore-eos"];
        let options = fixed.iter().chain(how).map(|option| (*option).to_owned());
        [prompt].into_iter().chain(options).collect()
    }

    /// How long after a stage has begun to compute it may be struck.
    fn lasts(self) -> Duration {
        match self {
            Self::Prefill => Duration::from_millis(600),
            Self::Decode | Self::Speculation => Duration::from_secs(3),
            Self::Late | Self::StoodBy => Duration::from_secs(2),
        }
    }

    /// How long it goes on before that.
    fn begins(self) -> Duration {
        match self {
            Self::Late => Duration::from_secs(4),
            Self::StoodBy => Duration::from_secs(6),
            _ => Duration::ZERO,
        }
    }
}

/// A peer: its machine, and what runs there.
pub(crate) struct Lender {
    pub(crate) machine: Machine,
    pub(crate) serving: Running,
    stage: usize,
    /// Its place in the star.
    place: usize,
}

impl Lender {
    fn begin(machine: &Machine, stage: usize, context: &str) -> Running {
        let model = model();
        let args = ["serve", "--model", &model, "--layers", STAGES[stage], "--bind", "0.0.0.0:7575", "--threads", "1"];
        let mut serving = machine.start(&[&args[..], &["--exact", "--context", context, "--json"]].concat());
        let ready = serving.object();
        assert!(ready["error"].is_null(), "{ready}");
        serving
    }

    /// Hundredths of a second that its engine has computed for.
    fn ticks(&self) -> u64 {
        children(self.serving.child.id()).into_iter().map(cpu_ticks).max().unwrap_or(0)
    }
}

/// Six peers and a client.
pub(crate) struct Swarm {
    pub(crate) lenders: Vec<Lender>,
    pub(crate) client: Machine,
    /// Positions of a session.
    context: &'static str,
    /// The unbroken answers.
    whole: Vec<Value>,
    // The last to go: all others run in it.
    pub(crate) star: Star,
}

impl Swarm {
    /// All lend.
    fn lending(seed: u64) -> Option<Self> {
        Self::lend(seed, CONTEXT, false)
    }

    /// The same, and each says how many tasks it has.
    pub(crate) fn telling_tasks(seed: u64) -> Option<Self> {
        Self::lend(seed, CONTEXT, true)
    }

    fn lend(seed: u64, context: &'static str, logs_tasks: bool) -> Option<Self> {
        let line = Profile { delay: Duration::from_millis(5), ..Profile::default() };
        let star = Star::or_skip(&[[line, line]; 1 + REPLICAS * STAGES.len()], seed)?;
        let inside = |place: usize| {
            let machine = Machine::inside(star.machines()[place].name().to_owned());
            if logs_tasks { machine.logging("error,potluck::tasks=debug") } else { machine }
        };
        let client = inside(0);
        let mut lenders: Vec<Lender> = Vec::new();
        for place in 1..star.machines().len() {
            let (machine, stage) = (inside(place), (place - 1) % STAGES.len());
            match lenders.first() {
                None => assert_eq!(machine.json(&["swarm", "create"]).1, 0),
                Some(owner) => join(&owner.machine, &machine),
            }
            let serving = Lender::begin(&machine, stage, context);
            lenders.push(Lender { machine, serving, stage, place });
        }
        join(&lenders[0].machine, &client);
        let swarm = Self { lenders, client, context, whole: Vec::new(), star };
        swarm.wait_for_all();
        Some(swarm)
    }

    /// The same, and the unbroken answers are known.
    fn new(seed: u64) -> Option<Self> {
        let mut swarm = Self::lending(seed)?;
        for phase in PHASES {
            let (whole, code) = swarm.client.json(&swarm.command(phase).iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(code, 0, "{whole}");
            assert_eq!(whole["route"].as_array().map(Vec::len), Some(STAGES.len()), "{whole}");
            swarm.whole.push(whole);
        }
        assert!(swarm.whole[2]["drafts"]["accepted"].as_u64().unwrap() > 10, "nothing is guessed: {}", swarm.whole[2]);
        Some(swarm)
    }

    fn wait_for_all(&self) {
        wait_until("all offers are known", || {
            let (peers, _) = self.client.json(&["peers"]);
            peers["peers"].as_array().is_some_and(|peers| peers.len() == self.lenders.len())
        });
    }

    fn command(&self, phase: Phase) -> Vec<String> {
        let model = model();
        let fixed =
            ["run", "--model", &model, "--temperature=0", "--context", CONTEXT, "--threads", "1", "--prefer", "swarm"];
        fixed.map(str::to_owned).into_iter().chain(phase.asked()).collect()
    }

    /// Asks, has that happen to a peer that computes that stage, and says what came of it.
    fn broken(&mut self, phase: Phase, fault: Fault, stage: usize, delay: Duration) -> Row {
        let before: Vec<u64> = self.lenders.iter().map(Lender::ticks).collect();
        let gained = |lenders: &[Lender], at: usize| lenders[at].ticks().saturating_sub(before[at]);
        let replicas: Vec<usize> = (0..self.lenders.len()).filter(|at| self.lenders[*at].stage == stage).collect();
        let command = self.command(phase);
        let command: Vec<&str> = command.iter().map(String::as_str).chain(["--json"]).collect();
        let mut child = self.client.command(&command).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (told, tells) = mpsc::channel();
        thread::spawn(move || {
            let mut text = String::new();
            let read = stdout.read_to_string(&mut text);
            told.send(read.map(|_| text))
        });
        wait_until("the stage computes", || replicas.iter().any(|at| gained(&self.lenders, *at) > 0));
        // Who stands by computes later.
        let victim = *replicas.iter().max_by_key(|at| gained(&self.lenders, **at)).unwrap();
        pass(delay);
        let wakes = self.strike(victim, fault);
        let answer = tells.recv_timeout(ANSWERS_WITHIN);
        // A run that hangs is counted, and ended.
        let _ = child.kill();
        let _ = child.wait();
        wakes.into_iter().for_each(|wakes| wakes.join().unwrap());
        self.mend(victim, fault);
        let text = answer.ok().and_then(Result::ok);
        let answer = text.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let outcome = self.judge(phase, answer.as_ref());
        let whole_first_s = self.whole[phase as usize]["ttft_s"].as_f64().unwrap_or(f64::NAN);
        Row { phase, fault, stage, delay, outcome, whole_first_s, answer: answer.unwrap_or_default() }
    }

    /// The client is cut off from everybody in mid-answer, for so long.
    fn cut_off(&self, time: Duration) -> Value {
        let model = model();
        let fixed =
            ["run", "--model", &model, "Tell me of the sea.", "--temperature=0", "--context", CONTEXT, "--exact"];
        let more = ["--threads", "1", "--prefer", "swarm", "--ignore-eos", "--max-tokens", "160", "--trace", "--json"];
        let ticks = || self.lenders.iter().map(Lender::ticks).sum::<u64>();
        let ask = |cuts: bool| {
            let before = ticks();
            let mut answering = self.client.start(&[&fixed[..], &more].concat());
            if cuts {
                wait_until("it is under way", || ticks() > before + 30);
                self.star.cut(0, [true; 2]).unwrap();
                pass(time);
                self.star.cut(0, [false; 2]).unwrap();
            }
            answering.object()
        };
        let (whole, answer) = (ask(false), ask(true));
        let positions = |answer: &Value| {
            let stages = answer["trace"]["decode"]["stages"].as_array().cloned().unwrap_or_default();
            stages.iter().map(|stage| stage["positions"].clone()).collect::<Vec<_>>()
        };
        json!({
            "seconds": time.as_secs_f64(), "same": answer["tokens"] == whole["tokens"] && answer["tokens"].is_array(),
            "repairs": answer["repairs"], "resumed": answer["resumed"], "longest_pause_s": answer["longest_pause_s"],
            "positions": positions(&answer), "positions_unbroken": positions(&whole), "error": answer["error"],
        })
    }

    /// What the middle stage's peer costs that is lost behind a prompt of some four thousand tokens, `late`: and three hundred tokens of
    /// an answer. Beside it, what that stage had computed for.
    fn replayed(&mut self, (exact, late): (bool, bool)) -> Value {
        let text = "The harbour was quiet that morning. Two boats lay at the pier, one red and one blue, and a cat slept on the warm \
                    stones between them. An old man mended a net; now and then he looked up at the gulls. ";
        let (model, prompt) = (model(), text.repeat(92));
        let how: &[&str] = if exact { &["--exact"] } else { &["--drafts", "off"] };
        let fixed = ["run", "--model", &model, "--temperature=0", "--context", LONG_CONTEXT, "--threads", "1"];
        let ask = |tokens: &'static str| {
            let more = ["--prefer", "swarm", "--ignore-eos", "--trace", "--json", "--max-tokens", tokens, &prompt];
            [&fixed[..], how, &more].concat()
        };
        let middle: Vec<usize> = (0..self.lenders.len()).filter(|at| self.lenders[*at].stage == 1).collect();
        let ticks = |lenders: &[Lender]| middle.iter().map(|at| lenders[*at].ticks()).collect::<Vec<_>>();
        let most = |before: &[u64], now: &[u64]| {
            let gained = now.iter().zip(before).map(|(now, before)| now.saturating_sub(*before));
            gained.zip(&middle).max().map(|(ticks, at)| (ticks, *at)).unwrap()
        };
        // As long as it takes until then, on the same machine.
        let before = ticks(&self.lenders);
        let mut whole = self.client.start(&ask(if late { "300" } else { "1" }));
        let whole = whole.object();
        let (until, _) = most(&before, &ticks(&self.lenders));
        let compute = |phase: &str| whole["trace"][phase]["stages"][1]["compute_us"].as_f64().unwrap_or(0.0) / 1e6;
        let before = ticks(&self.lenders);
        let mut answering = self.client.start(&ask(if late { "400" } else { "100" }));
        let mut victim = 0;
        wait_until("the stage has computed that much", || {
            let (gained, at) = most(&before, &ticks(&self.lenders));
            victim = at;
            gained > until + 5
        });
        self.strike(victim, Fault::Killed);
        let answer = answering.object();
        self.mend(victim, Fault::Killed);
        let repair = &answer["repairs"][0];
        let seconds = |name: &str| repair[name].as_f64().unwrap_or(f64::NAN);
        let again = seconds("answered_s") - seconds("ready_s");
        let (prefill, decode) = (compute("prefill"), compute("decode"));
        json!({
            "exact": exact, "prompt_tokens": answer["prompt_tokens"], "tokens_before": if late { 300 } else { 1 },
            "stage_prefill_s": prefill, "stage_decode_s": decode, "again_s": again, "again_over_prefill": again / prefill,
            "again_over_all_of_it": again / (prefill + decode), "repair": repair,
            "steps_of_each_stage": answer["trace"]["decode"]["stages"].as_array().map(|stages| {
                stages.iter().map(|stage| stage["steps"].clone()).collect::<Vec<_>>()
            }),
            "same_as_unbroken": answer["tokens"].as_array().zip(whole["tokens"].as_array()).map(|(a, b)| a.starts_with(b)),
        })
    }

    /// It happens now; what ends it, where that is meanwhile.
    pub(crate) fn strike(&self, victim: usize, fault: Fault) -> Option<thread::JoinHandle<()>> {
        let lender = &self.lenders[victim];
        match fault {
            Fault::Killed => lender.serving.signal("KILL"),
            Fault::Told => lender.serving.signal("TERM"),
            Fault::Stopped => lender.serving.signal("STOP"),
            Fault::Frozen => {
                lender.serving.signal("STOP");
                let pid = lender.serving.child.id();
                return Some(thread::spawn(move || {
                    pass(FREEZE);
                    kill(pid, "CONT");
                }));
            }
            Fault::Cut => self.star.cut(lender.place, [true; 2]).unwrap(),
            Fault::Mute => self.star.cut(lender.place, [true, false]).unwrap(),
            Fault::Deaf => self.star.cut(lender.place, [false, true]).unwrap(),
            Fault::EngineKilled => children(lender.serving.child.id()).into_iter().for_each(|pid| kill(pid, "KILL")),
        }
        None
    }

    /// Has the peer be there again.
    pub(crate) fn mend(&mut self, victim: usize, fault: Fault) {
        let lender = &mut self.lenders[victim];
        match fault {
            Fault::Killed => lender.serving = Lender::begin(&lender.machine, lender.stage, self.context),
            Fault::Told => {
                let pid = lender.serving.child.id();
                wait_until("it has ended", || !is_alive(pid));
                lender.serving = Lender::begin(&lender.machine, lender.stage, self.context);
            }
            Fault::Stopped => lender.serving.signal("CONT"),
            Fault::Frozen => {}
            Fault::Cut | Fault::Mute | Fault::Deaf => self.star.cut(lender.place, [false; 2]).unwrap(),
            Fault::EngineKilled => {
                let pid = lender.serving.child.id();
                wait_until("another engine is there", || !children(pid).is_empty());
            }
        }
        self.wait_for_all();
    }

    fn judge(&self, phase: Phase, answer: Option<&Value>) -> Outcome {
        let whole = &self.whole[phase as usize];
        let Some(answer) = answer else { return Outcome::Hung };
        let tokens = |answer: &Value| answer["tokens"].as_array().cloned();
        let (Some(own), Some(others)) = (tokens(whole), tokens(answer)) else { return Outcome::Failed };
        if own == others {
            return if whole["text"] == answer["text"] { Outcome::Same } else { Outcome::Changed { at: own.len() } };
        }
        let at = (0..own.len()).find(|at| own.get(*at) != others.get(*at)).unwrap_or(0);
        let likeliest = whole["logprobs"][at]["top"].as_array().cloned().unwrap_or_default();
        let logprob = |token: Option<&Value>| {
            likeliest.iter().find(|pair| Some(&pair[0]) == token).and_then(|pair| pair[1].as_f64())
        };
        let margin = logprob(own.get(at)).zip(logprob(others.get(at))).map(|(own, other)| own - other);
        match margin {
            Some(margin) if matches!(phase, Phase::Speculation | Phase::Late) && own.len() == others.len() => {
                Outcome::Parted { at, margin }
            }
            _ => Outcome::Changed { at },
        }
    }
}

fn join(owner: &Machine, guest: &Machine) {
    let (invited, _) = owner.json(&["swarm", "invite"]);
    let line = invited["invitation"].as_str().unwrap_or_else(|| panic!("{invited}"));
    let (joined, code) = guest.json(&["swarm", "join", line]);
    assert_eq!(code, 0, "{joined}");
}

/// The moment is random, or as long as it is said: nothing else is waited for.
pub(crate) fn pass(time: Duration) {
    let since = Instant::now();
    while since.elapsed() < time {
        thread::park_timeout(time.saturating_sub(since.elapsed()));
    }
}

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Same,
    /// Where nothing is exact: at this token it went another way, whose first step was that much less likely.
    Parted {
        at: usize,
        margin: f64,
    },
    Changed {
        at: usize,
    },
    Failed,
    Hung,
}

struct Row {
    phase: Phase,
    fault: Fault,
    stage: usize,
    delay: Duration,
    outcome: Outcome,
    /// How long the first token of the unbroken answer took.
    whole_first_s: f64,
    answer: Value,
}

impl Row {
    /// It was not finished when it was struck, and was struck where it came by.
    fn hit(&self) -> bool {
        self.answer["resumed"].as_u64().is_some() || self.repairs().next().is_some()
    }

    fn repairs(&self) -> impl Iterator<Item = &Value> {
        self.answer["repairs"].as_array().into_iter().flatten()
    }

    /// Where a prompt was under way: how much longer than unbroken the rest of it took, from the moment that the loss was noticed, at most.
    /// It had begun no earlier than the stage.
    fn prompt_later_s(&self) -> Option<f64> {
        let first = self.answer["ttft_s"].as_f64()?;
        let rest = (self.whole_first_s - self.delay.as_secs_f64()).max(0.0);
        let answered = self.repairs().next()?["answered_s"].as_f64()?;
        // What is answered before the first token is a part of the prompt.
        (self.phase == Phase::Prefill && first > answered).then_some(answered - rest)
    }

    fn holds(&self) -> bool {
        match self.outcome {
            Outcome::Same => true,
            Outcome::Parted { margin, .. } => margin <= NEAR_TIE,
            _ => false,
        }
    }

    fn json(&self) -> Value {
        let times: Vec<_> = self.repairs().cloned().collect();
        json!({
            "phase": format!("{:?}", self.phase), "fault": format!("{:?}", self.fault), "stage": self.stage,
            "delay_ms": self.delay.as_millis() as u64, "outcome": format!("{:?}", self.outcome), "repairs": times,
            "resumed": self.answer["resumed"], "longest_pause_s": self.answer["longest_pause_s"],
            "error": self.answer["error"], "first_token_s": self.answer["ttft_s"], "unbroken_first_token_s": self.whole_first_s,
        })
    }
}

/// The runs of a seed: each fault at each phase in turn, the stage and the moment by chance.
fn runs(swarm: &mut Swarm, seed: u64, count: usize) -> Vec<Row> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut rows = Vec::new();
    // One alone, where an idea is tried.
    let only = env::var("POTLUCK_PROVE_FAULT").ok().filter(|only| !only.is_empty());
    let faults: Vec<_> =
        FAULTS.iter().copied().filter(|fault| only.as_ref().is_none_or(|only| *only == format!("{fault:?}"))).collect();
    assert!(!faults.is_empty(), "POTLUCK_PROVE_FAULT is one of {FAULTS:?}");
    for run in 0..count {
        let fault = faults[run % faults.len()];
        // Five and eight have no common divisor: each goes with each.
        let phase = PHASES[run % PHASES.len()];
        let delay = phase.begins() + Duration::from_millis(rng.u64(..phase.lasts().as_millis() as u64));
        let row = swarm.broken(phase, fault, rng.usize(..STAGES.len()), delay);
        println!("{run}: {}", row.json());
        rows.push(row);
    }
    rows
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().unwrap())
}

#[test]
fn whatever_happens_to_a_peer_no_token_is_lost_or_changed() {
    let (seed, count) = (number("POTLUCK_SEED").unwrap_or(7), number("POTLUCK_PROVE_RUNS").unwrap_or(8) as usize);
    let Some(mut swarm) = Swarm::new(seed) else { return };
    println!("seed {seed}");
    let rows = runs(&mut swarm, seed, count);
    // As often as there is room for one beside twenty of the others.
    let cut_off: Vec<_> =
        (0..count.div_ceil(20)).map(|at| swarm.cut_off(Duration::from_secs(6 + at as u64 % 4))).collect();
    cut_off.iter().for_each(|it| println!("{it}"));
    let path = env::var_os("POTLUCK_PROVE_RECOVERY");
    if let Some(path) = &path {
        let beside = llama_rpc(&swarm);
        drop(swarm);
        let replays = [(true, false), (true, true), (false, false), (false, true)];
        let replays = Swarm::lend(seed, LONG_CONTEXT, false).map(|mut swarm| replays.map(|how| swarm.replayed(how)));
        write(Path::new(path), seed, (&rows, &cut_off), beside, json!(replays));
    }
    let bad: Vec<_> = rows.iter().filter(|row| !row.holds()).map(Row::json).collect();
    assert!(bad.is_empty(), "seed {seed}: {bad:#?}");
    let stayed =
        |it: &&Value| it["same"] == true && it["resumed"].is_null() && it["positions"] == it["positions_unbroken"];
    let others: Vec<_> = cut_off.iter().filter(|it| !stayed(it) || it["repairs"][0]["came_back"] != true).collect();
    assert!(others.is_empty(), "seed {seed}: {others:#?}");
    let hit = rows.iter().filter(|row| row.hit()).count();
    assert!(2 * hit > rows.len(), "seed {seed}: {hit} of {} answers lost a peer: that proves little", rows.len());
    let pairs = PHASES.iter().flat_map(|phase| FAULTS.map(|fault| (*phase, fault)));
    let missed = pairs.filter(|pair| !rows.iter().any(|row| (row.phase, row.fault) == *pair && row.hit()));
    let stood_by = |row: &&Row| row.phase == Phase::StoodBy && row.repairs().any(|repair| repair["stood_by"] == true);
    assert!(rows.iter().any(|row| stood_by(&row)), "seed {seed}: nobody stood by");
    let missed: Vec<_> = if rows.len() < 100 { Vec::new() } else { missed.collect() };
    assert!(missed.is_empty(), "seed {seed}: these never struck an answer under way: {missed:?}");
}

/// The middle of these, and what 99 in 100 are below.
fn spread(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied();
    json!({ "count": values.len(), "median": at(0.5), "p99": at(0.99), "most": values.last() })
}

fn write(path: &Path, seed: u64, (rows, cut_off): (&[Row], &[Value]), beside: Option<Value>, replays: Value) {
    let seconds = |what: &str, stood_by: bool| {
        let those = rows.iter().flat_map(Row::repairs).filter(|repair| repair["stood_by"] == stood_by);
        spread(those.filter_map(|repair| repair[what].as_f64()).collect())
    };
    let times = |stood_by: bool| {
        json!({
            "until_others_were_found": seconds("found_s", stood_by), "until_all_were_ready": seconds("ready_s", stood_by),
            "until_the_next_answer": seconds("answered_s", stood_by),
        })
    };
    let repaired = rows.iter().filter(|row| row.repairs().next().is_some());
    let (prompts, answers): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.phase == Phase::Prefill);
    let after = |rows: &[&Row]| {
        let those = rows.iter().flat_map(|row| row.repairs()).filter(|repair| repair["stood_by"] == false);
        spread(those.filter_map(|repair| repair["answered_s"].as_f64()).collect())
    };
    let pauses = repaired.filter_map(|row| row.answer["longest_pause_s"].as_f64()).collect();
    let resumed = rows.iter().filter(|row| row.answer["resumed"].as_u64().is_some());
    let anew = resumed.clone().filter_map(|row| row.answer["longest_pause_s"].as_f64()).collect();
    let parted: Vec<_> =
        rows.iter().filter(|row| matches!(row.outcome, Outcome::Parted { .. })).map(Row::json).collect();
    let results = json!({
        "setting": "three stages, two peers for each and a client, each in a network namespace; 20 ms there and back between any two; one machine's two cores",
        "command": "make prove-recovery", "seed": seed, "commit": env::var("POTLUCK_COMMIT").unwrap_or_default(),
        "runs": rows.len(), "under_way_when_struck": rows.iter().filter(|row| row.hit()).count(),
        "lost_or_changed": rows.iter().filter(|row| !row.holds()).count(), "parted_at_near_ties": parted,
        "seconds_since_the_loss_was_noticed": times(false), "where_peers_stood_by": times(true),
        "until_the_next_answer_where_tokens_had_come": after(&answers), "until_the_next_answer_where_a_prompt_was_under_way": after(&prompts),
        "of_it_longer_than_the_rest_of_the_unbroken_prompt": spread(prompts.iter().filter_map(|row| row.prompt_later_s()).collect()),
        "longest_pause_where_a_place_was_taken": spread(pauses),
        "longest_pause_where_the_route_was_planned_anew": spread(anew),
        "where_the_client_was_cut_off": cut_off, "replays": replays, "beside": beside, "each": rows.iter().map(Row::json).collect::<Vec<_>>(),
    });
    std::fs::write(path, format!("{results:#}\n")).unwrap();
}

/// The same happens to one of three servers of llama.cpp's RPC: what its user sees. None without its programs.
fn llama_rpc(swarm: &Swarm) -> Option<Value> {
    let tools = env::var_os("POTLUCK_LLAMA").filter(|tools| !tools.is_empty())?;
    let (tools, star) = (Path::new(&tools), &swarm.star);
    let start = |at: &Namespace, program: &str, args: &[&str]| {
        let mut command = at.command(tools.join(program));
        Namespace::start(command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())).unwrap()
    };
    let servers: Vec<_> = (1..=STAGES.len())
        .map(|at| start(&star.machines()[at], "ggml-rpc-server", &["--host", "0.0.0.0", "--port", "50052"]))
        .collect();
    let addresses: Vec<_> = (1..=STAGES.len()).map(|at| format!("{}:50052", star.address(at))).collect();
    let (model, addresses) = (model(), addresses.join(","));
    let args = ["--model", &model, "--rpc", &addresses, "--n-gpu-layers", "99", "--port", "8080", "--ctx-size", "1024"];
    let mut server = start(&star.machines()[0], "llama-server", &args);
    let get = |request: String| {
        star.machines()[0].inside(|| {
            let mut socket = TcpStream::connect("127.0.0.1:8080")?;
            socket.set_read_timeout(Some(ANSWERS_WITHIN))?;
            socket.write_all(request.as_bytes())?;
            let mut text = Vec::new();
            let read = socket.read_to_end(&mut text);
            Ok::<_, std::io::Error>((String::from_utf8_lossy(&text).into_owned(), read.map(|_| ())))
        })
    };
    wait_until("llama-server has loaded", || {
        get("GET /health HTTP/1.0\r\n\r\n".into()).is_ok_and(|(text, _)| text.contains("200 OK"))
    });
    let body =
        json!({ "prompt": "Tell me of the sea.", "n_predict": 96, "temperature": 0, "stream": true }).to_string();
    let request = format!(
        "POST /completion HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let whole = get(request.clone()).unwrap().0.matches("data: ").count();
    let middle = servers[1].0.id();
    let begun = Instant::now();
    let (said, result) = thread::scope(|scope| {
        scope.spawn(move || {
            pass(Duration::from_millis(1_500));
            children(middle).into_iter().chain([middle]).for_each(|pid| kill(pid, "KILL"));
        });
        get(request).unwrap_or_else(|error| (String::new(), Err(error)))
    });
    let is_there = matches!(server.0.try_wait(), Ok(None));
    Some(json!({
        "what": "llama.cpp's RPC, three servers, kill -9 of the second in mid-answer",
        "pieces_of_the_unbroken_answer": whole, "pieces_that_came": said.matches("data: ").count(),
        "ended": result.map_or_else(|error| error.to_string(), |()| "closed".into()),
        "seconds_until_that": begun.elapsed().as_secs_f64(), "llama_server_is_still_there": is_there,
    }))
}
