//! The client in a program of one's own: real endpoints on loopback, and peers in processes of their own.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use potluck::{Client, ClientError, MESSAGE_BYTES_MAX, PeerId, Settings};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::machine::{Machine, PATIENCE, Running, echo, model};

fn settings() -> Settings {
    let here = SocketAddr::from(([127, 0, 0, 1], 0));
    Settings::default().bind(here).deadline(PATIENCE).program(env!("CARGO_BIN_EXE_potluck"))
}

/// A swarm with one peer that everybody knows, which exposes a port.
struct Swarm {
    owner: Machine,
    peer: PeerId,
    address: String,
    port: u16,
    _running: Running,
}

impl Swarm {
    fn new() -> Self {
        let owner = Machine::new();
        owner.json(&["swarm", "create"]);
        let port = echo();
        let mut running = owner.start(&["tunnel", "--expose", &port.to_string(), "--bind", "127.0.0.1:0", "--json"]);
        let ready = running.object();
        let address = ready["addresses"][0].as_str().unwrap().to_owned();
        let peer = ready["id"].as_str().unwrap().parse().unwrap();
        Self { owner, peer, address, port, _running: running }
    }

    fn invite(&self, more: &[&str]) -> String {
        let (invited, code) = self.owner.json(&[&["swarm", "invite", "--address", &self.address][..], more].concat());
        assert_eq!(code, 0, "{invited}");
        invited["invitation"].as_str().unwrap().to_owned()
    }

    /// A client that keeps nothing.
    async fn join(&self) -> Client {
        Client::join(&self.invite(&[]), &settings()).await.unwrap()
    }
}

/// A program of /examples: beside the command, where cargo builds them.
fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_potluck")).with_file_name("examples").join(name)
}

/// What comes of it in time.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("it hangs")
}

#[tokio::test]
async fn two_clients_find_each_other_by_key_and_talk_both_ways() {
    let swarm = Swarm::new();
    let (one, other) = (swarm.join().await, swarm.join().await);
    let mut at_one = one.listen("greetings").await.unwrap();
    let mut at_other = other.listen("greetings").await.unwrap();
    let (to, from) = (other.id(), one.id());
    let answering = tokio::spawn(async move {
        let message = at_other.next().await.unwrap();
        assert_eq!((message.from(), message.role(), message.topic()), (from, "member", "greetings"));
        assert_eq!(message.body(), b"hello");
        assert!(message.reply("hello yourself").unwrap());
        let quiet = at_other.next().await.unwrap();
        assert_eq!(quiet.body(), b"no need to answer");
    });
    let reply = soon(one.request(to, "greetings", "hello")).await.unwrap();
    assert_eq!(reply.as_deref(), Some(&b"hello yourself"[..]));
    let receipt = soon(one.send(to, "greetings", "no need to answer")).await.unwrap();
    assert_eq!(receipt.peer(), to);
    assert_eq!(soon(receipt.reply()).await, Ok(None));
    soon(answering).await.unwrap();

    // The other way, and what nobody listens for.
    let asking = {
        let other = other.clone();
        tokio::spawn(async move { other.send(from, "greetings", "and you?").await.map(drop) })
    };
    assert_eq!(soon(at_one.next()).await.unwrap().body(), b"and you?");
    soon(asking).await.unwrap().unwrap();
    let nobody = soon(one.send(to, "news", "x")).await.unwrap_err();
    assert_eq!(nobody, ClientError::NotListening { peer: to });
    let elsewhere = soon(one.send(swarm.peer, "news", "x")).await.unwrap_err();
    assert_eq!(elsewhere, ClientError::NotListening { peer: swarm.peer });
    let gone = soon(one.send(to, "greetings", "x")).await.unwrap_err();
    assert_eq!(gone, ClientError::NotListening { peer: to }, "its listener was dropped");

    // Who is there, and who this is.
    let peers = soon(one.peers()).await.unwrap();
    let found = peers.iter().find(|peer| peer.id == to).unwrap_or_else(|| panic!("{peers:?}"));
    assert!(found.path.is_some() && found.rtt.is_some() && peers.iter().any(|peer| peer.id == swarm.peer), "{peers:?}");
    let standing = one.whoami().unwrap();
    assert_eq!((standing.id, standing.role), (from, "member"));
    assert!(standing.rights.contains(&"reach") && !standing.rights.contains(&"revoke"), "{standing:?}");
    assert_eq!(one.chat("any").user("hello").answer().await.unwrap_err().code(), "no_home");

    // One that has ended is away; it may come back by what it kept, and is the same.
    let kept = other.grant();
    soon(other.close()).await;
    assert_eq!(soon(other.send(from, "greetings", "x")).await.unwrap_err(), ClientError::Closed);
    let again = Client::connect(kept, &settings()).await.unwrap();
    assert_eq!(again.id(), to);
    let mut heard = again.listen("greetings").await.unwrap();
    let asking = tokio::spawn(async move { one.request(to, "greetings", "again").await });
    assert!(soon(heard.next()).await.unwrap().reply("here").unwrap());
    assert_eq!(soon(asking).await.unwrap().unwrap().as_deref(), Some(&b"here"[..]));
}

#[tokio::test]
async fn a_thousand_messages_arrive_once_each_and_in_order() {
    let swarm = Swarm::new();
    let (one, other) = (swarm.join().await, swarm.join().await);
    let mut messages = other.listen("numbers").await.unwrap();
    let to = other.id();
    let sender = one.clone();
    let sending = tokio::spawn(async move {
        for n in 0..1_000_u32 {
            sender.send(to, "numbers", n.to_le_bytes().to_vec()).await?;
        }
        Ok::<_, ClientError>(())
    });
    for n in 0..1_000_u32 {
        assert_eq!(soon(messages.next()).await.unwrap().body(), n.to_le_bytes());
    }
    soon(sending).await.unwrap().unwrap();

    // All at once: what is refused is told, what was confirmed has arrived, and once.
    let mut sending = tokio::task::JoinSet::new();
    for n in 0..1_000_u32 {
        let sender = one.clone();
        sending.spawn(async move { (n, sender.send(to, "numbers", n.to_le_bytes().to_vec()).await.map(drop)) });
    }
    let (mut confirmed, mut arrived) = (Vec::new(), Vec::new());
    while !sending.is_empty() {
        tokio::select! {
            message = messages.next() => arrived.push(u32::from_le_bytes(message.unwrap().body().try_into().unwrap())),
            Some(sent) = sending.join_next() => match sent.unwrap() {
                (n, Ok(())) => confirmed.push(n),
                (_, Err(error)) => assert_eq!(error, ClientError::Busy { peer: to }),
            },
        }
    }
    confirmed.sort_unstable();
    arrived.sort_unstable();
    assert_eq!(confirmed, arrived);
    assert!(!arrived.is_empty());
}

#[tokio::test]
async fn a_slow_listener_is_busy_and_what_nobody_took_has_not_arrived() {
    let swarm = Swarm::new();
    let (one, other) = (swarm.join().await, swarm.join().await);
    let mut messages = other.listen("slow").await.unwrap();
    let to = other.id();
    // It takes none: some wait, and then there is no room.
    let mut sending = tokio::task::JoinSet::new();
    for n in 0..65_u8 {
        let one = one.clone();
        sending.spawn(async move { (n, one.send(to, "slow", vec![n]).await.map(drop)) });
    }
    let (refused, answer) = soon(sending.join_next()).await.unwrap().unwrap();
    assert_eq!(answer, Err(ClientError::Busy { peer: to }));
    // Whoever gives up has sent nothing: the next that is taken is another's.
    sending.abort_all();
    while sending.join_next().await.is_some() {}
    let last = tokio::spawn(async move {
        loop {
            match one.send(to, "slow", "last").await {
                Err(ClientError::Busy { .. }) => {}
                sent => return sent.map(drop),
            }
        }
    });
    loop {
        let message = soon(messages.next()).await.unwrap();
        if message.body() == b"last" {
            break;
        }
        assert_ne!(message.body(), [refused], "it was refused");
    }
    soon(last).await.unwrap().unwrap();

    // The largest message there is, and one byte more.
    let one = swarm.join().await;
    let largest = vec![7; MESSAGE_BYTES_MAX];
    let asking = {
        let (one, largest) = (one.clone(), largest.clone());
        tokio::spawn(async move { one.request(to, "slow", largest).await })
    };
    let message = soon(messages.next()).await.unwrap();
    assert_eq!(message.body(), largest);
    assert_eq!(
        message.reply(vec![0; MESSAGE_BYTES_MAX + 1]),
        Err(ClientError::TooLong { bytes: MESSAGE_BYTES_MAX + 1 })
    );
    assert_eq!(soon(asking).await.unwrap(), Ok(None), "it got no reply");
    let too_long = soon(one.send(to, "slow", vec![0; MESSAGE_BYTES_MAX + 1])).await.unwrap_err();
    assert_eq!(too_long, ClientError::TooLong { bytes: MESSAGE_BYTES_MAX + 1 });

    // No answer in time.
    let hasty = Client::join(&swarm.invite(&[]), &settings().deadline(Duration::from_secs(1))).await.unwrap();
    let late = soon(hasty.request(to, "slow", "?")).await.unwrap_err();
    assert!(matches!(late, ClientError::Unconfirmed { peer, .. } if peer == to), "{late:?}");
}

/// Bytes that compress to nothing, and what they hash to.
fn noise(seed: u8, len: usize) -> (Vec<u8>, blake3::Hash) {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    let hash = blake3::hash(&bytes);
    (bytes, hash)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_carry_megabytes_both_ways_and_end_as_they_were_ended() {
    const BYTES: usize = 10 << 20;
    let swarm = Swarm::new();
    let (one, other) = (swarm.join().await, swarm.join().await);
    let mut streams = other.accept("files").await.unwrap();
    let ((up, up_hash), (down, down_hash)) = (noise(1, BYTES), noise(2, BYTES));
    let serving = tokio::spawn(async move {
        let mut stream = streams.next().await.unwrap();
        // All that comes first: the other half is still open when one has ended.
        let mut came = Vec::new();
        stream.read_to_end(&mut came).await.unwrap();
        stream.write_all(&down).await.unwrap();
        stream.finish().await.unwrap();
        // Another one is cut short.
        let mut cut = streams.next().await.unwrap();
        let mut first = [0; 3];
        cut.read_exact(&mut first).await.unwrap();
        cut.write_all(b"some").await.unwrap();
        drop(cut);
        blake3::hash(&came)
    });
    let mut stream = soon(one.dial(other.id(), "files")).await.unwrap();
    assert_eq!((stream.peer(), stream.topic()), (other.id(), "files"));
    soon(stream.write_all(&up)).await.unwrap();
    soon(stream.shutdown()).await.unwrap();
    let mut came = Vec::new();
    soon(stream.read_to_end(&mut came)).await.unwrap();
    assert_eq!(blake3::hash(&came), down_hash);
    let mut cut = soon(one.dial(other.id(), "files")).await.unwrap();
    soon(cut.write_all(b"abc")).await.unwrap();
    let mut rest = Vec::new();
    let error = soon(cut.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "what was cut short is no end");
    assert_eq!(soon(serving).await.unwrap(), up_hash);
    let nobody = soon(one.dial(other.id(), "files")).await.unwrap_err();
    assert_eq!(nobody, ClientError::NotListening { peer: other.id() });
}

#[tokio::test]
async fn a_port_of_a_peer_as_a_stream_and_as_a_port_here() {
    let swarm = Swarm::new();
    let client = swarm.join().await;
    let mut stream = soon(client.dial_tcp(swarm.peer, swarm.port)).await.unwrap();
    soon(stream.write_all(b"ping")).await.unwrap();
    soon(stream.shutdown()).await.unwrap();
    let mut back = String::new();
    soon(stream.read_to_string(&mut back)).await.unwrap();
    assert_eq!(back, "ping");
    let forward = client.forward_tcp(([127, 0, 0, 1], 0).into(), swarm.peer, swarm.port).await.unwrap();
    let at = forward.local_addr();
    let asked = tokio::task::spawn_blocking(move || {
        let mut socket = std::net::TcpStream::connect(at)?;
        socket.write_all(b"pong")?;
        socket.shutdown(std::net::Shutdown::Write)?;
        let mut back = String::new();
        socket.read_to_string(&mut back).map(|_| back)
    });
    assert_eq!(soon(asked).await.unwrap().unwrap(), "pong");
    let closed = soon(client.dial_tcp(swarm.peer, 1)).await.unwrap_err();
    assert_eq!(closed, ClientError::NotListening { peer: swarm.peer });
}

#[tokio::test]
async fn strangers_guests_and_those_whose_grant_was_taken_back_get_nothing() {
    let swarm = Swarm::new();
    let (one, other) = (swarm.join().await, swarm.join().await);
    let mut messages = other.listen("news").await.unwrap();
    let to = other.id();

    // A guest is let in, and reaches nothing that its grant does not name; nor can it be reached.
    let guest = Client::join(&swarm.invite(&["--role", "guest"]), &settings()).await.unwrap();
    assert_eq!(guest.whoami().unwrap().role, "guest");
    let denied = soon(guest.send(to, "news", "x")).await.unwrap_err();
    assert_eq!(denied.code(), "not_allowed", "{denied}");
    assert_eq!(soon(guest.dial(to, "news")).await.unwrap_err().code(), "not_allowed");
    assert_eq!(soon(guest.listen("news")).await.unwrap_err().code(), "not_allowed");

    // A stranger knows where it is, and has a grant of another swarm.
    let elsewhere = Machine::new();
    elsewhere.json(&["swarm", "create"]);
    let key = potluck::generate_key().unwrap();
    let (granted, _) = elsewhere.json(&["swarm", "grant", &key.peer_id().to_string()]);
    let line = granted["invitation"].as_str().unwrap();
    let stranger = Client::connect(potluck::Grant::from_line(line, key).unwrap(), &settings()).await.unwrap();
    stranger.note(other.address());
    let denied = soon(stranger.send(to, "news", "x")).await.unwrap_err();
    assert_eq!(denied.code(), "not_allowed", "{denied}");

    // One that was a member, until its key was taken back: at a peer that has heard so.
    let sent = {
        let one = one.clone();
        tokio::spawn(async move { one.send(to, "news", "before").await.map(drop) })
    };
    assert_eq!(soon(messages.next()).await.unwrap().body(), b"before");
    soon(sent).await.unwrap().unwrap();
    let (revoked, code) = swarm.owner.json(&["swarm", "revoke", &one.id().to_string()]);
    assert_eq!(code, 0, "{revoked}");
    let looking = async {
        loop {
            // A message from before the other has heard of it is taken, or given up.
            let sending = one.send(to, "news", "after");
            let sent = tokio::select! {
                sent = sending => sent,
                _ = messages.next() => continue,
            };
            if let Err(error) = sent {
                return error;
            }
        }
    };
    let denied = soon(looking).await;
    assert_eq!(denied.code(), "not_allowed", "{denied}");
}

#[tokio::test]
async fn a_model_answers_as_at_the_command_line_and_what_is_dropped_ends() {
    let (owner, member) = (Machine::new(), Machine::new());
    owner.json(&["swarm", "create"]);
    let model = model();
    let serve = ["serve", "--model", &model, "--bind", "127.0.0.1:0", "--threads", "1", "--context", "1024", "--json"];
    let mut serving = owner.start(&serve);
    let ready = serving.object();
    let address = ready["addresses"][0].as_str().unwrap_or_else(|| panic!("{ready}")).to_owned();
    let (invited, _) = owner.json(&["swarm", "invite", "--address", &address]);
    let line = invited["invitation"].as_str().unwrap();
    let client = Client::join(line, &settings().home(member.path("home"))).await.unwrap();

    // The command, which is the same member, meanwhile.
    let prompt = "Why is the sky blue?";
    let expected = member.answer(prompt, 16, &["--context", "1024", "--prefer", "swarm"]);
    let chat = client.chat(&model).temperature(0.0).max_tokens(16).option("threads", 1).option("context", 1024);
    let chat = chat.option("prefer", "swarm");
    let mut answer = soon(chat.clone().user(prompt).stream()).await.unwrap();
    let mut text = String::new();
    while let Some(piece) = soon(answer.next()).await {
        text += &piece;
    }
    let finished = soon(answer.finish()).await.unwrap();
    assert_eq!((Some(finished.text.as_str()), &text), (expected["text"].as_str(), &finished.text));
    assert_eq!(finished.completion_tokens, 16);
    assert_eq!(finished.finish_reason, expected["finish_reason"].as_str().unwrap());

    // A conversation: one answer is given up, the next one comes.
    let mut conversation = soon(chat.clone().max_tokens(512).system("Be brief.").open()).await.unwrap();
    let mut given_up = soon(conversation.ask("Count to a hundred.")).await.unwrap();
    assert!(soon(given_up.next()).await.is_some());
    drop(given_up);
    let next = soon(conversation.ask("What is 2+2?")).await.unwrap();
    assert!(soon(next.finish()).await.unwrap().completion_tokens > 0);
    let wrong = soon(chat.option("temperature", "warm").user("x").answer()).await.unwrap_err();
    assert_eq!(wrong.code(), "usage", "{wrong}");

    // One client at a time is that key; when it is closed, nothing of it is left.
    let second = Client::open(member.path("home"), &settings()).await.unwrap_err();
    assert_eq!(second.code(), "identity_in_use");
    soon(client.close()).await;
    assert_eq!(soon(conversation.ask("And?")).await.map(drop), Err(ClientError::Closed));
    let again = Client::open(member.path("home"), &settings()).await.unwrap();
    soon(again.close()).await;
    let output = std::process::Command::new(example("ask"))
        .args([&model, "What is 2+2?"])
        .env("POTLUCK_HOME", member.path("home"))
        .output()
        .unwrap();
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("4") && said.contains(" tokens"), "{said}{why}");
    drop(serving);
    owner.wait_until_empty(&[]);
}

#[test]
fn nothing_is_written_by_a_client_in_memory() {
    // A process of its own, so that what it opens and writes is its own alone.
    let swarm = Swarm::new();
    let folder = swarm.owner.path("empty");
    std::fs::create_dir(&folder).unwrap();
    let output = std::process::Command::new(example("messages"))
        .args([swarm.invite(&[]), swarm.invite(&[])])
        .env("HOME", &folder)
        .env("XDG_DATA_HOME", &folder)
        .env("TMPDIR", &folder)
        .current_dir(&folder)
        .output()
        .unwrap();
    let (said, why) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{why}");
    for text in ["hello from ", "a stream of 5 bytes"] {
        assert!(said.contains(text), "no `{text}` in:\n{said}{why}");
    }
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
