//! `potluck doctor`: what works here, what does not, whose turn it is, and what to type.

use clap::Args;
use potluck_chain::plan::Preview;
use potluck_grant::Gate;
use potluck_net::{Found, NetCheck, Node, PathInfo};
use potluck_store::Entry;
use serde::Serialize;
use serde_json::json;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::{
    args::{EngineArgs, Prefer, Privacy},
    commands::{serve::PORT, swarm::utc_now},
    engines::start_vocabulary,
    failure::Failure,
    home::{Home, Identity, Membership, Role, SwarmRoot},
    models::{CodecChoice, Models, load_vocabulary},
    placement::{free_disk, members},
    screen::{Screen, printable, size},
    serving::{FoundLender, OFFER_SECONDS, lenders_among, offers_of},
    talk::{Surveyed, Wanted, client_node, preview, who_name},
};

/// Free memory and disk below which a model of any use will not fit.
const LITTLE_MEMORY: u64 = 1 << 30;
const LITTLE_DISK: u64 = 5 << 30;

/// Days before its end from which a grant is worth a word.
const GRANT_ENDS_SOON_SECONDS: u64 = 14 * 86_400;

/// Seconds by which clocks may differ before offers are misjudged.
const CLOCK_SECONDS: u64 = 5;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// A model to plan for [default: the only model there is, if there is one]
    #[arg(long, short, value_name = "M")]
    model: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum How {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// A short word that scripts can rely on.
    id: &'static str,
    how: How,
    text: String,
    /// What to do about it.
    hint: String,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, id: &'static str, how: How, text: impl Into<String>, hint: impl Into<String>) {
        self.0.push(Finding { id, how, text: text.into(), hint: hint.into() });
    }

    fn ok(&mut self, id: &'static str, text: impl Into<String>) {
        self.add(id, How::Ok, text, "");
    }

    /// What a step came to.
    fn failed(&mut self, id: &'static str, failure: Failure) {
        self.add(id, How::Fail, failure.message, failure.hint);
    }
}

impl Doctor {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let bar = screen.wait("looking");
        let mut findings = Findings::default();
        machine(&mut findings, home);
        let entry = self.models(&mut findings, home).await;
        if let Err(failure) = swarm(&mut findings, home).await {
            findings.failed("swarm", failure);
        }
        if let Some(entry) = entry {
            self.plan(&mut findings, home, &entry).await;
        }
        drop(bar);
        tell(screen, findings.0)
    }

    /// The catalogue, and whether the engine starts with a model of it; the model to plan for.
    async fn models(&self, findings: &mut Findings, home: &Home) -> Option<Entry> {
        let listed = Models::open(home).and_then(|models| Ok((models.catalogue.list()?, models.catalogue)));
        let (entries, catalogue) = match listed {
            Ok(listed) => listed,
            Err(failure) => {
                findings.failed("models", failure);
                return None;
            }
        };
        for entry in &entries {
            match entry.check() {
                Ok(()) if entry.is_whole() => {
                    findings.ok("model", format!("{}, {}", entry.name, size(entry.held_bytes())))
                }
                Ok(()) => {
                    let (held, all) = (size(entry.held_bytes()), size(entry.manifest.bytes()));
                    findings.ok("model", format!("{}, {held} of {all} are here", entry.name));
                }
                Err(error) => findings.failed("model", error.into()),
            }
        }
        if entries.is_empty() {
            let hint = "potluck model add PATH, potluck model pull hf:ORG/NAME, or join a swarm that has one";
            findings.add("model", How::Warn, "this machine knows no model yet", hint);
        }
        let wanted = match (&self.model, <[Entry; 1]>::try_from(entries)) {
            (Some(text), _) => catalogue.get(text),
            (None, Ok([only])) => Ok(only),
            (None, Err(_)) => return None,
        };
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(error) => {
                findings.failed("model", error.into());
                return None;
            }
        };
        let started = match load_vocabulary(&wanted, &self.engine.settings(1)) {
            Ok(load) => start_vocabulary(load).await,
            Err(failure) => Err(failure),
        };
        match started {
            Ok(_) => findings.ok("engine", format!("starts, in its sandbox; {}", backends())),
            Err(failure) => findings.failed("engine", failure),
        }
        Some(wanted)
    }

    /// Where the model would run, and why not elsewhere.
    async fn plan(&self, findings: &mut Findings, home: &Home, entry: &Entry) {
        let settings = self.engine.settings(1);
        let (codec, privacy) = (CodecChoice::quietly(home, entry, &self.engine), Privacy::default());
        let wanted = Wanted {
            home,
            entry,
            settings: &settings,
            codec,
            memory: None,
            privacy: &privacy,
            standby: 0,
            screen: None,
        };
        match preview(&wanted, Prefer::Private).await {
            Ok(Surveyed { preview: Ok(preview), .. }) => planned(findings, entry, &preview),
            Ok(Surveyed { preview: Err(failure), .. }) | Err(failure) => findings.failed("plan", failure),
        }
    }
}

fn planned(findings: &mut Findings, entry: &Entry, preview: &Preview) {
    let text = format!("{}: {}", entry.name, preview.verdict.reason);
    findings.ok("plan", text);
    for out in &preview.left_out {
        findings.ok("left-out", format!("{}: {}", who_name(out.who), out.reason));
    }
}

fn machine(findings: &mut Findings, home: &Home) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    findings.ok("cpu", format!("{cores} threads{}", cpu_features()));
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
    let (free, all) = (system.available_memory(), system.total_memory());
    let text = format!("{} free of {}", size(free), size(all));
    match free < LITTLE_MEMORY {
        true => findings.add("memory", How::Warn, text, "close other programs, or lend fewer layers"),
        false => findings.ok("memory", text),
    }
    if let Some(free) = free_disk(&home.models()) {
        let text = format!("{} free where models are kept", size(free));
        match free < LITTLE_DISK {
            true => findings.add("disk", How::Warn, text, "potluck model remove what you do not use"),
            false => findings.ok("disk", text),
        }
    }
    match std::net::UdpSocket::bind(("0.0.0.0", PORT)) {
        Ok(_) => findings.ok("port", format!("UDP {PORT} is free for `potluck serve`")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            findings.ok("port", format!("UDP {PORT} is in use: perhaps by `potluck serve`"));
        }
        Err(error) => findings.add(
            "port",
            How::Fail,
            format!("UDP {PORT}: {error}"),
            "choose another: potluck serve --bind IP:PORT",
        ),
    }
}

async fn swarm(findings: &mut Findings, home: &Home) -> Result<(), Failure> {
    let Some(membership) = Membership::find(home)? else {
        let hint = "potluck swarm create, or potluck join LINE; a machine alone needs neither";
        findings.add("swarm", How::Ok, "this machine belongs to no swarm", hint);
        return Ok(());
    };
    let gate = membership.gate(home)?;
    let root = if SwarmRoot::is_here(home).unwrap_or(false) { ", made here" } else { "" };
    findings.ok("swarm", format!("{}{root}", membership.swarm));
    roots(findings, &gate);
    for role in [Role::Peer, Role::Client] {
        let key = Identity::open(home, role)?.key.peer_id();
        let grant = membership.grant(key)?;
        let (now, soon) = (utc_now(), utc_now() + GRANT_ENDS_SOON_SECONDS);
        let hint = format!("ask the swarm's owner for: potluck swarm grant {key}");
        match (gate.check(&grant, key, now), gate.check(&grant, key, soon)) {
            (Ok(_), Ok(_)) => {}
            (Ok(_), Err(_)) => findings.add("grant", How::Warn, "a grant of this machine ends within 14 days", hint),
            (Err(error), _) => findings.add("grant", How::Fail, error.to_string(), hint),
        }
    }
    let node = client_node(home, &membership).await?;
    relay(findings, &node, &membership.relays(home)).await;
    let check = node.check_network().await;
    if let Some(check) = &check {
        network(findings, check);
    }
    reach(findings, &node, &membership, check.as_ref()).await;
    node.close().await;
    Ok(())
}

/// Whether the swarm's root was rotated, and whether all that was heard of that agrees.
fn roots(findings: &mut Findings, gate: &Gate) {
    for (root, rival) in gate.rivals() {
        let message = format!(
            "the earlier root {} has named two that follow it; this machine heard of {} after the other one, and does not follow it",
            root.short(),
            rival.next.short()
        );
        let hint =
            "somebody else has that root key: ask the swarm's owner which root is right, see docs/guides/roles.md";
        findings.add("root", How::Warn, message, hint);
    }
    if !gate.is_whole() {
        let message =
            format!("the root {} follows another, and not all is known yet of what it lets stand", gate.root().short());
        findings.add("root", How::Warn, message, "it is asked for at each contact: potluck peers");
    }
}

/// Whether the relay answers that this machine would use.
async fn relay(findings: &mut Findings, node: &Node, relays: &[String]) {
    if relays.is_empty() {
        return;
    }
    let url = relays.join(" or ");
    match node.relay_answers().await {
        None => {
            findings.ok("relay", format!("{url} is in use by another command of this machine: this one goes without"))
        }
        Some(Err(why)) => {
            let hint = "its owner's turn: is it running? Another one, or none: potluck serve --relay URL|none";
            findings.add("relay", How::Fail, format!("{url} does not answer: {why}"), hint);
        }
        Some(Ok(())) => findings.ok("relay", format!("{url} answers")),
    }
}

/// What the network lets through, as the relays see it.
fn network(findings: &mut Findings, check: &NetCheck) {
    let seen: Vec<_> = check.seen_from.iter().map(ToString::to_string).collect();
    match check.has_udp() {
        true => findings.ok("udp", format!("gets out; relays see this machine at {}", seen.join(" and "))),
        false => {
            let hint = "let UDP out, at least to the relay's port 7842: until then everything goes through the relay";
            findings.add("udp", How::Warn, "does not get out of this network, or not to any relay's port 7842", hint);
        }
    }
    match check.port_varies {
        Some(false) => {
            findings.ok("nat", "each peer sees this machine at the same port: most find a direct path to it")
        }
        Some(true) => {
            let hint =
                "turn on UPnP at the router, or IPv6; peers behind such routers of their own are reached by the relay";
            findings.add("nat", How::Warn, "each peer sees this machine at another port (symmetric NAT)", hint);
        }
        None if check.relays.len() < 2 => findings.ok("nat", "not known: it takes two relays to tell"),
        None => findings.ok("nat", "not known: fewer than two relays answered by UDP"),
    }
    if check.captive == Some(true) {
        let hint = "open any page in a browser: the network wants something first";
        findings.add("captive", How::Warn, "somebody answers in the Internet's place", hint);
    }
    for (url, far) in &check.relays {
        findings.ok("relay", format!("{url} is {:.1} ms away", far.as_secs_f64() * 1e3));
    }
}

/// Asks every contact, and every peer that offers something, how far away it is.
async fn reach(findings: &mut Findings, node: &Node, membership: &Membership, check: Option<&NetCheck>) {
    let (offers, _) = offers_of(node, &membership.contacts).await;
    let everybody = members(&offers, &membership.contacts);
    for peer in &everybody {
        let name = peer.peer.short();
        match node.connect(peer).await {
            Ok(link) => {
                let path = link.path();
                let words = path.map_or(String::new(), |path| {
                    format!(", {}, {:.1} ms, loss {:.1} %", path.kind, path.rtt.as_secs_f64() * 1e3, path.loss * 1e2)
                });
                let found = match link.found {
                    Found::Told => "",
                    Found::Lan => ", found by mDNS",
                    Found::Public => ", looked up in public",
                };
                let text = format!("{name} answers{words}{found}");
                match path.filter(PathInfo::is_relayed).zip(check) {
                    Some((_, check)) => {
                        findings.add("peer", How::Ok, text, format!("not directly: {}", check.why_relayed()))
                    }
                    None => findings.ok("peer", text),
                }
            }
            Err(error) => {
                let hint = format!(
                    "its owner's turn: is `potluck serve` running there, and does its firewall let UDP in at {}?",
                    peer.addresses.join(" or ")
                );
                findings.add("peer", How::Fail, error.to_string(), hint);
            }
        }
    }
    for FoundLender { address, upstream } in lenders_among(node, everybody).await {
        let name = address.peer.short();
        match upstream.trouble {
            None => findings.ok("upstream", format!("{name} lends {} models whole", upstream.models.len())),
            Some(trouble) => {
                let hint =
                    "its owner's turn: start what it lends, or look at the address that `potluck serve --upstream` has";
                findings.add("upstream", How::Warn, format!("{name} lends nothing now: {trouble}"), hint);
            }
        }
    }
    let now = utc_now();
    for offer in offers.iter().filter(|offer| offer.expires > now + OFFER_SECONDS + CLOCK_SECONDS) {
        let ahead = offer.expires - now - OFFER_SECONDS;
        let text = format!("the clocks of {} and of this machine differ by {ahead} s or more", offer.peer.short());
        findings.add("clock", How::Warn, text, "set both by the network: timedatectl set-ntp true");
    }
}

fn tell(screen: Screen, findings: Vec<Finding>) -> Result<(), Failure> {
    let count = |how| findings.iter().filter(|finding| finding.how == how).count();
    let (warnings, failures) = (count(How::Warn), count(How::Fail));
    if screen.json {
        screen.object(&json!({ "findings": findings, "warnings": warnings, "failures": failures }))?;
    } else {
        for finding in &findings {
            let word = match finding.how {
                How::Ok => "ok",
                How::Warn => "warn",
                How::Fail => "fail",
            };
            screen.text(&format!("{word:<5} {:<9} {}\n", finding.id, printable(&finding.text)))?;
            if !finding.hint.is_empty() {
                screen.text(&format!("{:16}{}\n", "", printable(&finding.hint)))?;
            }
        }
        let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let counts =
            [(findings.len(), "check"), (warnings, "warning"), (failures, "failure")].map(|(n, what)| many(n, what));
        screen.text(&(counts.join(", ") + "\n"))?;
    }
    match failures {
        0 => Ok(()),
        _ => Err(Failure::told()),
    }
}

/// What llama.cpp was built for.
fn backends() -> &'static str {
    match () {
        () if cfg!(feature = "cuda") => "built for CUDA",
        () if cfg!(feature = "metal") => "built for Metal",
        () if cfg!(feature = "vulkan") => "built for Vulkan",
        () => "built for the CPU: with a GPU, build with --features cuda, metal or vulkan",
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> String {
    let known = [
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("FMA", std::is_x86_feature_detected!("fma")),
        ("F16C", std::is_x86_feature_detected!("f16c")),
        ("AVX-512", std::is_x86_feature_detected!("avx512f")),
    ];
    let has: Vec<_> = known.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    if has.is_empty() { "; no AVX2: answers will be slow".into() } else { format!(", {}", has.join(", ")) }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> String {
    format!(", {}", std::env::consts::ARCH)
}
