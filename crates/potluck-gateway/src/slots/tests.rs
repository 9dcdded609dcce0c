use potluck_chain::{Answer, SessionError, Submission};
use potluck_client::{ChainShape, StageAccount};
use potluck_core::Hidden;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;

/// A chain that is never asked: the slots of these tests hold no session.
struct NoChain;

impl Chain for NoChain {
    fn shape(&self) -> ChainShape {
        ChainShape { vocabulary: 0, positions: 0 }
    }

    fn takes_drafts(&self) -> bool {
        false
    }

    async fn submit(&mut self, _: Submission) -> Result<u32, SessionError> {
        Err(SessionError::Closed)
    }

    async fn answer(&mut self) -> Result<Answer, SessionError> {
        Err(SessionError::Closed)
    }

    async fn row(&mut self, _: u32, _: u16) -> Result<Hidden, SessionError> {
        Err(SessionError::Closed)
    }

    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError> {
        Err(SessionError::Closed)
    }

    fn bytes_written(&self) -> u64 {
        0
    }

    async fn let_go(&mut self) {}

    async fn close(self) {}
}

fn pool(slots: usize) -> Pool<NoChain> {
    let idle = (0..slots).map(|_| Slot::unused()).collect();
    Pool { idle, queue: FairQueue::default(), age: 0 }
}

fn job(caller: u8, token: u32) -> (Job, UnboundedReceiver<(usize, Event)>) {
    let (events, receiver) = mpsc::unbounded_channel();
    (Job::new(Caller::Key([caller; 32]), Task::Generate(Request::new(vec![token])), 0, events), receiver)
}

/// Of a slot that holds these tokens for whoever asks.
fn worth_of(held: &[u32], prompt: &[u32], used: u64) -> Worth {
    Worth::of(held.len(), common(held, prompt), used)
}

#[test]
fn a_conversation_goes_on_where_it_is_held() {
    let long: Vec<u32> = (0..400).collect();
    let prompt: Vec<u32> = (0..420).collect();
    let here = worth_of(&long, &prompt, 9);
    assert!(here < worth_of(&[], &prompt, 0), "rather than in an empty slot");
    assert!(here < worth_of(&prompt[..10], &prompt, 0) || !worth_of(&prompt[..10], &prompt, 0).other);
    // A question that shares its first words with it goes elsewhere.
    let question: Vec<u32> = (0..24).chain([900, 901]).collect();
    assert!(worth_of(&[], &question, 0) < worth_of(&long, &question, 0));
    let other: Vec<u32> = (0..24).chain(500..530).collect();
    assert!(worth_of(&other, &question, 0) < worth_of(&long, &question, 0), "little is lost there");
}

#[test]
fn what_begins_alike_is_copied_where_that_pays() {
    let rules: Vec<u32> = (0..200).collect();
    let with = |from: u32, count: u32| rules.iter().copied().chain(from..from + count).collect::<Vec<u32>>();
    let (long, question, next) = (with(1_000, 90), with(2_000, 12), with(1_000, 110));
    let held = [&long[..], &[], &[7, 8, 9]];
    // It would lose what it holds beyond the rules, and the other slots have nothing of them.
    assert_eq!([0, 1, 2].map(|best| beginning(&held, best, &question)), [Some((0, 200)); 3]);
    assert_eq!(beginning(&held, 0, &next), None, "the conversation goes on");
    assert_eq!(beginning(&held, 0, &with(1_000, 70)), None, "little of it is lost");
    assert_eq!(beginning(&held, 1, &rules[..SHARED_MIN]), None, "too few to be worth it, without the last");
    assert_eq!(beginning(&held, 1, &rules[..=SHARED_MIN]), Some((0, SHARED_MIN)));
    assert_eq!(beginning(&held, 1, &[]), None);
}

#[test]
fn two_slots_are_taken_wherever_they_are() {
    for (first, second) in (0..4).flat_map(|first| (0..4).map(move |second| (first, second))) {
        let mut items = vec![0, 1, 2, 3];
        if first == second {
            assert_eq!(take(&mut items, first, None), (first, None));
        } else {
            assert_eq!(take(&mut items, first, Some(second)), (first, Some(second)));
        }
        assert!(!items.contains(&first) && (first == second || !items.contains(&second)));
    }
}

#[test]
fn what_is_dear_and_old_makes_room_in_the_end() {
    let (long, question) = ((0..400).collect::<Vec<u32>>(), vec![1_000]);
    let short: Vec<u32> = (2_000..2_050).collect();
    // Each question takes the cheaper slot, and its price is the age from then on.
    let (mut age, mut kept_for) = (0, 0);
    loop {
        let (dear, cheap) = (worth_of(&long, &question, 0), worth_of(&short, &question, age));
        if dear < cheap {
            break;
        }
        age = cheap.price;
        kept_for += 1;
    }
    assert_eq!(kept_for, 8, "as many short ones as are worth the long one");
}

#[test]
fn jobs_go_to_slots_in_turn_and_those_of_nobody_to_none() {
    let mut pool = pool(2);
    let mut receivers = Vec::new();
    for (caller, token) in [(1, 10), (1, 11), (2, 20)] {
        let (job, receiver) = job(caller, token);
        pool.enqueue(job);
        receivers.push(receiver);
    }
    // The first one has hung up.
    receivers.remove(0);
    let given: Vec<u32> = std::iter::from_fn(|| pool.assign()).map(|given| given.job.task.prompt()[0]).collect();
    assert_eq!(given, [20, 11], "callers take turns, and who is gone has none");
    assert!(pool.idle.is_empty() && pool.queue.len() == 0);
}

#[test]
fn steps_beside_others_are_short_but_those_of_exact_answers() {
    let chunk = |chunk: u16, reuse: bool| {
        let mut task = Task::Generate(Request { chunk, reuse, ..Request::new(vec![1]) });
        task.make_way();
        let Task::Generate(request) = task else { panic!("it was one") };
        request.chunk
    };
    assert_eq!([chunk(512, true), chunk(16, true), chunk(512, false)], [BESIDE_OTHERS, 16, 512]);
    let mut task = Task::Embed { tokens: vec![1], chunk: 512 };
    task.make_way();
    assert!(matches!(task, Task::Embed { chunk: BESIDE_OTHERS, .. }));
}

#[test]
fn a_full_queue_says_so_and_lets_go_of_those_who_left() {
    let mut pool = pool(1);
    let mut receivers = Vec::new();
    for n in 0..QUEUE_MAX {
        let (job, receiver) = job((n % 8) as u8, 1);
        pool.enqueue(job);
        receivers.push(receiver);
    }
    let (late, mut told) = job(100, 1);
    pool.enqueue(late);
    let Ok((0, Event::Failed(problem))) = told.try_recv() else { panic!("it was taken") };
    assert_eq!((problem.status(), problem.code.as_ref(), problem.retry_after()), (429, "queue_full", Some(2)));
    receivers.truncate(QUEUE_MAX / 2);
    let (late, mut told) = job(100, 1);
    pool.enqueue(late);
    assert!(told.try_recv().is_err(), "there is room again");
    assert_eq!(pool.queue.len(), QUEUE_MAX / 2 + 1);
}

/// Whoever opens a session falls; after that sessions are refused.
#[derive(Default)]
struct Falls {
    before: std::cell::Cell<bool>,
}

impl Opener for Falls {
    type Chain = NoChain;

    async fn open(&self) -> Result<Session<NoChain>, Problem> {
        assert!(self.before.replace(true), "it falls");
        Err(Problem::new(Whose::Busy(1), "no_room", "there is no room"))
    }
}

#[tokio::test]
async fn a_slot_outlives_a_job_that_falls() {
    let (jobs, asked) = mpsc::channel(1);
    let last = async {
        let mut last = None;
        for caller in [1, 2] {
            let (job, mut events) = job(caller, 5);
            jobs.send(job).await.unwrap();
            while let Some((_, event)) = events.recv().await {
                last = Some((caller, event));
            }
        }
        drop(jobs);
        last
    };
    let pool = run(Falls::default(), 1, asked, Arc::new(Metrics::new(None)));
    let local = tokio::task::LocalSet::new();
    let both = local.run_until(async { tokio::join!(pool, last) });
    let ((), last) = timeout(Duration::from_secs(30), both).await.unwrap();
    assert!(matches!(last, Some((2, Event::Failed(_)))), "the second is answered: {last:?}");
}
