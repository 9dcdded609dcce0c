//! `potluck tunnel` and `potluck connect`, as people type them: processes, and machines in namespaces of their own.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::machine::{
    Machine, PATIENCE, Running, echo,
    netns::{ip, made},
    wait_until,
};

/// What comes back of a word.
fn ask(at: SocketAddr) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(at)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"hello")?;
    socket.shutdown(Shutdown::Write)?;
    let mut back = String::new();
    socket.read_to_string(&mut back)?;
    Ok(back)
}

fn invite(owner: &Machine, at: &str) -> String {
    let (invited, code) = owner.json(&["swarm", "invite", "--address", at]);
    assert_eq!(code, 0, "{invited}");
    invited["invitation"].as_str().unwrap().to_owned()
}

fn listens(running: &mut Running) -> (Value, SocketAddr) {
    let ready = running.object();
    let at = ready["tunnels"][0]["listen"].as_str().unwrap_or_else(|| panic!("{ready}")).parse().unwrap();
    (ready, at)
}

#[test]
fn a_port_of_a_peer_by_its_key_for_whoever_may() {
    let (owner, member, guest) = (Machine::new(), Machine::new(), Machine::new());
    let (port, closed) = (echo(), echo());
    owner.json(&["swarm", "create"]);
    let expose = ["tunnel", "--expose", &port.to_string(), "--expose", "udp:53", "--bind", "127.0.0.1:0", "--json"];
    let mut exposing = owner.start(&expose);
    let ready = exposing.object();
    assert_eq!(ready["exposes"].to_string(), format!("[\"tcp:{port}\",\"udp:53\"]"));
    let (key, address) = (ready["id"].as_str().unwrap(), ready["addresses"][0].as_str().unwrap());
    let (again, code) = owner.json(&["tunnel", "--expose", "22", "--bind", "127.0.0.1:0"]);
    assert_eq!((again["error"]["code"].as_str(), code), (Some("identity_in_use"), 1), "one endpoint for a key");

    // A member names it by the first digits of its key.
    member.json(&["swarm", "join", &invite(&owner, address)]);
    let to = |peer: &str, port: u16| {
        let port = port.to_string();
        ["tunnel", "--to", peer, "--port", &port, "--listen", "0", "--json"].map(str::to_owned)
    };
    let start = |machine: &Machine, args: [String; 8]| machine.start(&args.each_ref().map(String::as_str));
    let mut tunnel = start(&member, to(&key[..8], port));
    let (ready, at) = listens(&mut tunnel);
    assert_eq!((ready["peer"].as_str(), &ready["tunnels"][0]["protocol"]), (Some(key), &"tcp".into()), "{ready}");
    assert_eq!(ask(at).unwrap(), "hello");

    // What is not exposed is not there, and a peer that nobody knows is not guessed.
    let mut other = start(&member, to(key, closed));
    let (_, other_at) = listens(&mut other);
    assert_eq!(ask(other_at).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let (nobody, _) = member.json(&["tunnel", "--to", "0000000000", "--port", "1"]);
    assert_eq!(nobody["error"]["code"], "no_peer");

    // A guest reaches what its grant names.
    let (keys, _) = guest.json(&["swarm", "join"]);
    let keys: Vec<_> = keys["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect();
    let grant = |limits: &[&str]| {
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let (granted, code) = owner.json(&[&["swarm", "grant"][..], &keys, &["--role", "guest"], limits].concat());
        assert_eq!(code, 0, "{granted}");
        let line = granted["invitation"].as_str().unwrap();
        let (joined, code) = guest.json(&["swarm", "join", line, "--replace"]);
        assert_eq!(code, 0, "{joined}");
    };
    let by_guest = || {
        let mut tunnel = start(&guest, to(&format!("{key}@{address}"), port));
        let (_, at) = listens(&mut tunnel);
        ask(at)
    };
    grant(&[]);
    assert_eq!(by_guest().unwrap_err().kind(), ErrorKind::ConnectionReset);
    grant(&["--only-port", &port.to_string(), "--bytes-per-day", "1MB"]);
    assert_eq!(by_guest().unwrap(), "hello");
    let (whoami, _) = guest.json(&["swarm", "whoami"]);
    assert_eq!(whoami["keys"][1]["ports"].to_string(), format!("[[\"tcp:{port}\"]]"), "{whoami}");

    // Taken back in mid-stream.
    let mut open = TcpStream::connect(at).unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    open.write_all(b"?").unwrap();
    open.read_exact(&mut [0]).unwrap();
    let (members, _) = owner.json(&["swarm", "members"]);
    let of_member = member.json(&["swarm", "whoami"]).0["keys"][1]["key"].as_str().unwrap().to_owned();
    assert!(members.to_string().contains(&of_member), "{members}");
    let begun = Instant::now();
    let (revoked, code) = owner.json(&["swarm", "revoke", &of_member]);
    assert_eq!((code, &revoked["told"]), (0, &1.into()), "{revoked}");
    assert_eq!(open.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "it is told");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(ask(at).is_err());

    for running in [exposing, tunnel, other] {
        running.signal("TERM");
        assert_eq!(running.end().0, Some(0));
    }
}

#[test]
fn a_tunnel_outlives_the_peer_at_its_other_end() {
    let (owner, member) = (Machine::new(), Machine::new());
    let port = echo();
    owner.json(&["swarm", "create"]);
    let expose = |at: &str| {
        let mut exposing = owner.start(&["tunnel", "--expose", &port.to_string(), "--bind", at, "--json"]);
        let ready = exposing.object();
        (exposing, ready["id"].as_str().unwrap().to_owned(), ready["addresses"][0].as_str().unwrap().to_owned())
    };
    let (exposing, key, address) = expose("127.0.0.1:0");
    member.json(&["swarm", "join", &invite(&owner, &address)]);
    let args = ["tunnel", "--to", &key, "--port", &port.to_string(), "--listen", "0", "--json"];
    let mut tunnel = member.start(&args);
    let (_, at) = listens(&mut tunnel);
    assert_eq!(ask(at).unwrap(), "hello");
    exposing.signal("KILL");
    exposing.end();
    let waiting = thread::spawn(move || ask(at));
    let (_exposing, ..) = expose(&address);
    assert_eq!(waiting.join().unwrap().unwrap(), "hello", "it waited");
    assert_eq!(ask(at).unwrap(), "hello");
}

/// A client and a peer on one wire, and a host that only the peer reaches.
struct Behind {
    name: String,
}

impl Behind {
    /// The client at 10.78.0.2, the peer at 10.78.0.1 and 10.99.0.1, the host at 10.99.0.2 and fd99::2. None where namespaces cannot be made.
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let this = Self { name: format!("pt{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)) };
        let [client, peer, host] = ["c", "p", "h"].map(|end| this.namespace(end));
        if !made(&client) {
            return None;
        }
        assert!(ip(&format!("netns add {peer}")) && ip(&format!("netns add {host}")));
        for namespace in [&client, &peer, &host] {
            assert!(ip(&format!("-n {namespace} link set lo up")));
        }
        assert!(ip(&format!("-n {peer} link add wire type veth peer name wire netns {client}")));
        assert!(ip(&format!("-n {peer} link add lan type veth peer name lan netns {host}")));
        let addresses = [
            (&client, "wire", "10.78.0.2"),
            (&peer, "wire", "10.78.0.1"),
            (&peer, "lan", "10.99.0.1"),
            (&host, "lan", "10.99.0.2"),
        ];
        for (namespace, device, address) in addresses {
            assert!(ip(&format!("-n {namespace} addr add {address}/24 dev {device}")));
            assert!(ip(&format!("-n {namespace} link set {device} up")));
        }
        for (namespace, address) in [(&peer, "fd99::1"), (&host, "fd99::2")] {
            assert!(ip(&format!("-n {namespace} addr add {address}/64 dev lan nodad")));
        }
        Some(this)
    }

    fn namespace(&self, end: &str) -> String {
        format!("{}{end}", self.name)
    }

    fn command(&self, end: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(end)]).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command("c", args).output().unwrap()
    }

    fn start(&self, end: &str, args: &[&str]) -> Service {
        let mut command = self.command(end, args);
        Service(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        for end in ["c", "p", "h"] {
            ip(&format!("netns del {}", self.namespace(end)));
        }
    }
}

/// A program, ended when dropped.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends packets back.
const UDP_ECHO: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('10.99.0.2', 5300))
while True:
    data, where = s.recvfrom(65535)
    s.sendto(data, where)";

/// Asks for packets back, of several sizes.
const UDP_ASK: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
s.connect(('10.99.0.2', 5300))
for size in (1, 500, 1200):
    for attempt in range(20):
        s.send(bytes([size % 251]) * size)
        try:
            if s.recv(65535) == bytes([size % 251]) * size:
                break
        except OSError:
            pass
    else:
        raise SystemExit(f'no answer to {size} bytes')";

#[test]
fn a_network_behind_a_peer_by_routes_of_this_machine() {
    let Some(network) = Behind::new() else { return };
    let (peer, client) = (Machine::inside(network.namespace("p")), Machine::inside(network.namespace("c")));
    let pages = tempfile::tempdir().unwrap();
    std::fs::write(pages.path().join("page"), "through\n").unwrap();
    let large: Vec<u8> = (0..20_000_000_u32).map(|n| (n / 1_000 % 251) as u8).collect();
    std::fs::write(pages.path().join("large"), &large).unwrap();
    let folder = pages.path().to_str().unwrap();
    let _web = network.start("h", &["python3", "-m", "http.server", "--directory", folder, "--bind", "::", "8000"]);
    let _echo = network.start("h", &["python3", "-c", UDP_ECHO]);
    peer.json(&["swarm", "create"]);
    let nets = ["--expose", "10.99.0.0/24:*", "--expose", "udp:10.99.0.0/24:*", "--expose", "[fd99::/64]:*"];
    let mut exposing = peer.start(&[&["tunnel", "--bind", "10.78.0.1:7575", "--json"][..], &nets].concat());
    let ready = exposing.object();
    let key = ready["id"].as_str().unwrap();
    client.json(&["swarm", "join", &invite(&peer, "10.78.0.1:7575")]);

    let (refused, _) = client.json(&["connect", key, "--socks", "127.0.0.1:0", "--tun", "10.78.0.0/24"]);
    assert_eq!(refused["error"]["code"], "tun", "this machine is in it: {refused}");
    assert!(!network.run(&["ping", "-c", "1", "-W", "1", "10.99.0.2"]).status.success(), "nobody else routes it");
    let connect = ["connect", key, "--socks", "127.0.0.1:0", "--tun", "10.99.0.0/24", "--tun", "fd99::/64", "--json"];
    let mut connected = client.start(&connect);
    let ready = connected.object();
    assert_eq!(
        (ready["path"].as_str(), ready["tun"].to_string()),
        (Some("direct"), "[\"10.99.0.0/24\",\"fd99::/64\"]".into())
    );

    for there in ["10.99.0.1", "10.99.0.2", "fd99::1", "fd99::2"] {
        let ping = network.run(&["ping", "-c", "3", "-i", "0.2", "-W", "10", there]);
        assert!(ping.status.success(), "{there}: {}", String::from_utf8_lossy(&ping.stdout));
    }
    assert!(!network.run(&["ping", "-c", "1", "-W", "4", "10.99.0.77"]).status.success(), "nobody is there");
    let get =
        |url: &str| network.run(&["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "100", url]);
    wait_until("the page is there", || get("http://10.99.0.2:8000/page").stdout == b"through\n");
    assert_eq!(get("http://[fd99::2]:8000/page").stdout, b"through\n");
    assert!(get("http://10.99.0.2:8000/large").stdout == large, "what is large is whole");
    // A SYN is answered when the far side has connected: a port where nobody listens is closed, at once.
    let closed = get("http://10.99.0.2:8001/");
    assert_eq!(closed.status.code(), Some(7), "{}", String::from_utf8_lossy(&closed.stderr));
    let udp = network.run(&["python3", "-c", UDP_ASK]);
    assert!(udp.status.success(), "{}", String::from_utf8_lossy(&udp.stderr));
    // The proxy reaches the same, by names that the peer resolves.
    let proxy = format!("socks5h://{}", ready["socks"].as_str().unwrap());
    let by_proxy =
        network.run(&["curl", "--silent", "--max-time", "100", "--proxy", &proxy, "http://10.99.0.2:8000/page"]);
    assert_eq!(by_proxy.stdout, b"through\n");

    let routes = || String::from_utf8(network.run(&["ip", "route"]).stdout).unwrap();
    assert!(routes().contains("10.99.0.0/24 dev potluck0"), "{}", routes());
    // However it ends.
    connected.signal("KILL");
    connected.end();
    assert!(!routes().contains("10.99"), "{}", routes());
}
