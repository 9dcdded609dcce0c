//! A relay whose certificate an authority signs: Pebble, Let's Encrypt's own server for tests, with a DNS of its own.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::json;

use crate::machine::{Machine, wait_until};

const NAME: &str = "relay.test";

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether these programs are here; where nothing may be skipped, they have to be.
fn are_here(programs: &[&str]) -> bool {
    let missing = |program: &&&str| Command::new(program).arg("-h").output().is_err();
    let missing: Vec<_> = programs.iter().filter(missing).collect();
    if !missing.is_empty() {
        assert!(std::env::var_os("POTLUCK_SKIP_NOTHING").is_none(), "{missing:?} are not here");
        eprintln!("SKIPPED: {missing:?} are not here: scripts/setup installs them");
    }
    missing.is_empty()
}

fn start(program: &str, args: &[&str], folder: &Path) -> Running {
    let log = fs::File::create(folder.join(program)).unwrap();
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    // It waits and refuses at random, to try clients out.
    Running(command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0").spawn().unwrap())
}

/// An address that is free for both protocols.
fn free() -> String {
    loop {
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        if UdpSocket::bind(at).is_ok() {
            return at.to_string();
        }
    }
}

/// What is at that URL, for whoever trusts these authorities; none where that fails.
fn fetch(url: &str, authorities: &Path, port: &str) -> Option<Vec<u8>> {
    let connect = format!("{NAME}:{port}:127.0.0.1:{port}");
    let mut curl = Command::new("curl");
    curl.args(["-sf", "--max-time", "10", "--connect-to", &connect, "--cacert"]).arg(authorities).arg(url);
    let output = curl.output().unwrap();
    output.status.success().then_some(output.stdout)
}

#[test]
fn a_relay_has_its_certificate_from_an_authority_and_keeps_it() {
    if !are_here(&["pebble", "pebble-challtestsrv", "curl"]) {
        return;
    }
    let (machine, owner) = (Machine::new(), Machine::new());
    let folder = machine.path("authority");
    fs::create_dir(&folder).unwrap();
    // The authority's own door, which this system is told to trust: a company's would be known to its machines.
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (door, root) = (folder.join("cert.pem"), folder.join("root.pem"));
    fs::write(&door, made.cert.pem()).unwrap();
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let [dns, api, management, relay, udp, http] = [(); 6].map(|()| free());
    let port = relay.rsplit(':').next().unwrap().to_owned();
    let config = json!({ "pebble": {
        "listenAddress": api, "managementListenAddress": management, "certificate": "cert.pem", "privateKey": "key.pem",
        "httpPort": 1, "tlsPort": port.parse::<u16>().unwrap(), "ocspResponderURL": "", "externalAccountBindingRequired": false,
    } });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let names = ["-dns01", &dns, "-http01", "", "-https01", "", "-tlsalpn01", "", "-management", &free()];
    let _names = start(
        "pebble-challtestsrv",
        &[&names[..], &["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]].concat(),
        &folder,
    );
    let authority = start("pebble", &["-config", "config.json", "-dnsserver", &dns], &folder);
    wait_until("the authority is there", || {
        let found = fetch(&format!("https://{management}/roots/0"), &door, &port);
        found.map(|pem| fs::write(&root, pem).unwrap()).is_some()
    });

    let swarm = owner.json(&["swarm", "create"]).0["swarm"].as_str().unwrap().to_owned();
    let directory = format!("https://{api}/dir");
    let places = ["--bind", &relay, "--udp", &udp, "--http", &http];
    let args = ["relay", "--also", &swarm, "--name", NAME, "--acme", "--contact", "a@relay.test", "--json"];
    let args = [&args[..], &places, &["--acme-directory", &directory]].concat();
    let start_relay = || {
        let mut running = machine.start_where(("SSL_CERT_FILE", &door), &args);
        let ready = running.object();
        // Known by its name, and by no hash.
        let at = ready["relays"][0].as_str().unwrap();
        assert!(at.starts_with(&format!("https://{NAME}:{port}/")) && !at.contains("pin="), "{ready}");
        running
    };
    let url = format!("https://{NAME}:{port}/ping");
    let running = start_relay();
    wait_until("whoever trusts the authority trusts the relay", || fetch(&url, &root, &port).is_some());
    assert!(fetch(&url, &door, &port).is_none(), "and nobody else");
    let mode = fs::metadata(machine.path("home/acme")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "its key is there");
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));

    // It is kept: the authority is not asked again.
    drop(authority);
    let running = start_relay();
    wait_until("it has the same certificate still", || fetch(&url, &root, &port).is_some());
    running.signal("TERM");
    assert_eq!(running.end().0, Some(0));
}
