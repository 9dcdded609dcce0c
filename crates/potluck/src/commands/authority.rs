//! `potluck swarm attenuate|revoke|members|whoami|explain`: who may what, and who may no longer.

use std::collections::BTreeSet;

use clap::Args;
use potluck_core::{ModelId, PeerId, Revocation, Revoked, SignedRevocation};
use potluck_grant::{Caveats, Chain, Gate, GrantId, Hours, Need, Net, Place, Ports, Request, Right, Scope};
use serde_json::{Value, json};

pub(crate) use potluck_grant::Role as Standing;

use super::{
    join::keys,
    swarm::{days_from, utc_now},
};
use crate::{
    args::{RootArgs, parse_bytes},
    failure::{Failure, OrFail},
    home::{Home, Identity, Invitations, Line, Membership, Role, SwarmRoot, issued, keep_revocations},
    models::Models,
    placement::members as members_of,
    screen::{Screen, size, table},
    serving::offers_of,
    talk::client_node,
};

/// What a grant may be narrowed to.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// What the keys may: owner, operator, member, guest or auditor [default: member, or what is handed on]
    #[arg(long, value_name = "ROLE")]
    role: Option<Standing>,
    /// Only this model: a name, or an id (repeatable)
    #[arg(long = "only-model", value_name = "MODEL")]
    models: Vec<String>,
    /// Only at this peer (repeatable)
    #[arg(long = "only-at", value_name = "KEY")]
    peers: Vec<PeerId>,
    /// Only at these hours of each day, in UTC
    #[arg(long, value_name = "HH:MM-HH:MM")]
    hours: Option<Hours>,
    /// Tokens that each peer, and each gateway, computes under it in a day (UTC), for all that it is handed on to together
    #[arg(long, value_name = "N")]
    tokens_per_day: Option<u64>,
    /// Only these ports of services, such as tcp:5432, udp:53 or tcp:8000-8100 (repeatable)
    #[arg(long = "only-port", value_name = "PORT")]
    ports: Vec<Ports>,
    /// Only services in these networks, such as 192.168.1.10 or 10.0.0.0/8 (repeatable)
    #[arg(long = "only-net", value_name = "NET")]
    nets: Vec<Net>,
    /// Bytes a day to and from services of each peer, such as 10GB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    bytes_per_day: Option<u64>,
    /// How often it may be handed on
    #[arg(long, value_name = "TIMES")]
    hand_on: Option<u8>,
    /// Its work waits for others': for jobs that nobody sits in front of
    #[arg(long)]
    yields: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// A key, or the id of a grant, as `potluck swarm members` shows them
    #[arg(value_name = "KEY|ID")]
    what: String,
    #[command(flatten)]
    root: RootArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Whose grant: a key that was let in here, or a line [default: this machine's own]
    #[arg(long, value_name = "KEY|LINE")]
    of: Option<String>,
    /// What: look, use, fetch, lend, reach, order, revoke or audit
    right: String,
    /// With this model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// At this peer [default: this machine's]
    #[arg(long, value_name = "KEY")]
    at: Option<PeerId>,
}

impl Limits {
    /// As caveats. `role`: where none is named.
    pub(crate) fn caveats(
        &self,
        home: &Home,
        screen: Screen,
        role: Option<Standing>,
        days: u32,
    ) -> Result<Caveats, Failure> {
        let models =
            self.models.iter().map(|name| find_model_id(home, screen, name)).collect::<Result<BTreeSet<_>, _>>()?;
        Ok(Caveats {
            role: self.role.or(role),
            from: None,
            until: Some(days_from(utc_now(), days)),
            hours: self.hours,
            models,
            peers: self.peers.iter().copied().collect(),
            tokens_per_day: self.tokens_per_day,
            hand_on: self.hand_on,
            ports: self.ports.iter().copied().collect(),
            nets: self.nets.iter().copied().collect(),
            bytes_per_day: self.bytes_per_day,
            yields: self.yields,
        })
    }
}

/// Takes these back here and at every member that is reached: how many know, of how many.
pub(super) async fn spread(
    home: &Home,
    membership: &Membership,
    signed: Vec<SignedRevocation>,
) -> Result<(usize, usize), Failure> {
    let node = client_node(home, membership).await?;
    let (offers, _) = offers_of(&node, &membership.contacts).await;
    let mut to = members_of(&offers, &membership.contacts);
    to.sort_by_key(|member| member.peer);
    to.dedup_by_key(|member| member.peer);
    let asked = to.len();
    let told = node.revoke(signed, to).await.or_fail("revoke", "potluck swarm whoami says what this machine may");
    let kept = keep_revocations(home, &node.identity().gate);
    node.close().await;
    let told = told?;
    kept.map(|()| (told, asked))
}

impl Revoke {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let home = &self.root.of(home);
        let membership = Membership::open(home)?;
        let swarm = membership.id()?;
        let what = read_revoked(&self.what)?;
        let signed = match SwarmRoot::open(home) {
            Ok(root) => {
                let by_root = |what| Revocation::sign(swarm, what, utc_now(), &root.key(), Vec::new());
                // With somebody goes what relays would still do for whoever has the line that let them in.
                let passes = match what {
                    Revoked::Key(key) => Invitations::open(home, utc_now())?.passes_of(key),
                    _ => Vec::new(),
                };
                std::iter::once(what).chain(passes.into_iter().map(Revoked::Key)).map(by_root).collect()
            }
            Err(failure) if failure.code == "no_root" => {
                let key = Identity::open(home, Role::Client)?.key;
                let (grant, gate) = (membership.grant(key.peer_id())?, membership.gate(home)?);
                if gate.read(&grant).is_ok_and(|chain| !chain.scope().rights().contains(&Right::Revoke)) {
                    screen.note(
                        "this machine is no operator: it takes back what was handed on from its own grant, and no more",
                    );
                }
                vec![Revocation::sign(swarm, what, utc_now(), &key, grant)]
            }
            Err(failure) => return Err(failure),
        };
        let (told, asked) = spread(home, &membership, signed).await?;
        if screen.json {
            return screen.object(&json!({ "revoked": self.what, "told": told, "members": asked }));
        }
        screen.text(&format!("revoked {}\n", self.what))?;
        screen
            .note(format!("{told} of {asked} members know; the others learn of it from them, or at the next contact"));
        Ok(())
    }
}

/// A key or a grant's id.
pub(crate) fn read_revoked(text: &str) -> Result<Revoked, Failure> {
    if let Ok(key) = text.parse::<PeerId>() {
        return Ok(Revoked::Key(key));
    }
    let id: GrantId = text.parse().or_fail("usage", "a key has 64 digits, a grant's id 32: potluck swarm members")?;
    Ok(Revoked::Link(*id.as_bytes()))
}

/// Whom this machine has let in.
pub(crate) fn members(home: &Home, screen: Screen) -> Result<(), Failure> {
    let (gate, now) = (Membership::open(home)?.gate(home)?, utc_now());
    let mut rows = Vec::new();
    for one in issued(home)? {
        let Ok(chain) = gate.read(&one.grant()) else { continue };
        let state = state(&gate, &one.grant(), chain.holder(), now);
        rows.push((chain, state));
    }
    if screen.json {
        let rows: Vec<_> = rows.iter().map(|(chain, state)| described(chain, state)).collect();
        return screen.object(&json!({ "members": rows }));
    }
    if rows.is_empty() {
        screen.note("this machine has let nobody in: potluck swarm invite");
        return Ok(());
    }
    let heading = ["KEY", "GRANT", "MAY", "LIMITS", "STATE"].map(str::to_owned).to_vec();
    let rows = rows.iter().map(|(chain, state)| {
        let id = chain.links().last().map(|link| link.id.to_string()).unwrap_or_default();
        vec![chain.holder().to_string(), id, may(chain.scope()), limits(chain.scope()), state.clone()]
    });
    screen.text(&table(&[heading].into_iter().chain(rows).collect::<Vec<_>>()))
}

/// This machine's keys, and what they may.
pub(crate) fn whoami(home: &Home, screen: Screen) -> Result<(), Failure> {
    let membership = Membership::open(home)?;
    let (gate, now) = (membership.gate(home)?, utc_now());
    let mut own = Vec::new();
    for (name, key) in ["serves", "asks"].into_iter().zip(keys(home)?) {
        let Ok(grant) = membership.grant(key) else { continue };
        let chain = gate.read(&grant).or_fail("no_grant", "join again: potluck swarm join --replace INVITATION")?;
        own.push((name, state(&gate, &grant, key, now), chain));
    }
    let root = SwarmRoot::is_here(home).unwrap_or(false);
    if screen.json {
        let keys = own.iter().map(|(name, state, chain)| {
            let mut row = described(chain, state);
            row["use"] = json!(name);
            row
        });
        let keys = keys.collect::<Vec<_>>();
        return screen.object(&json!({ "swarm": membership.swarm, "root": root, "keys": keys }));
    }
    let mut text = format!("swarm   {}{}\n", membership.swarm, if root { "  (its root key is here)" } else { "" });
    for (name, state, chain) in &own {
        text += &format!("{name:<7} {}\n", chain.holder());
        text += &format!("        may {}; {}; {state}\n", may(chain.scope()), limits(chain.scope()));
    }
    screen.text(&text)
}

fn described(chain: &Chain, state: &str) -> Value {
    let scope = chain.scope();
    json!({
        "key": chain.holder().to_string(),
        "state": state,
        "links": chain.links().iter().map(|link| json!({ "id": link.id.to_string(), "holder": link.holder.to_string() })).collect::<Vec<_>>(),
        "rights": scope.rights().iter().map(|right| right.name()).collect::<Vec<_>>(),
        "from": scope.time().0,
        "until": scope.time().1,
        "hours": scope.hours().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "models": scope.models().map(|models| models.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "peers": scope.peers().map(|peers| peers.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "hand_on": scope.hand_ons(),
        "ports": sets(scope.ports()),
        "nets": sets(scope.nets()),
        "tokens_per_day": scope.budgets().iter().map(|budget| budget.tokens_per_day).min(),
        "bytes_per_day": scope.byte_budgets().iter().map(|budget| budget.bytes_per_day).min(),
        "yields": scope.yields(),
    })
}

fn state(gate: &Gate, grant: &[u8], holder: PeerId, now: u64) -> String {
    gate.check(grant, holder, now).map_or_else(|error| error.to_string(), |_| "holds".to_owned())
}

/// Sets of ports or networks, each with the next one's: all of them at once.
fn sets<T: ToString>(sets: &[BTreeSet<T>]) -> Vec<Vec<String>> {
    sets.iter().map(|set| set.iter().map(ToString::to_string).collect()).collect()
}

fn join<T: ToString>(set: &BTreeSet<T>) -> String {
    set.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn may(scope: &Scope) -> String {
    scope.rights().iter().map(|right| right.name()).collect::<Vec<_>>().join(", ")
}

fn limits(scope: &Scope) -> String {
    let days = scope.time().1.saturating_sub(utc_now()).div_ceil(24 * 3_600);
    let mut limits = vec![format!("{days} days")];
    limits.extend(scope.hours().iter().map(|hours| format!("{hours} UTC")));
    limits.extend(scope.models().map(|models| format!("{} models", models.len())));
    limits.extend(scope.peers().map(|peers| format!("at {} peers", peers.len())));
    limits.extend(scope.budgets().iter().map(|budget| format!("{} tokens a day of each peer", budget.tokens_per_day)));
    // Where nothing may be reached, it does not matter where.
    if scope.rights().contains(&Right::Reach) {
        limits.extend(scope.ports().iter().map(|ports| format!("reaches {}", join(ports))));
        limits.extend(scope.nets().iter().map(|nets| format!("in {}", join(nets))));
        limits.extend(
            scope.byte_budgets().iter().map(|budget| format!("{} a day through each peer", size(budget.bytes_per_day))),
        );
    }
    limits.extend(scope.hand_ons().map(|times| format!("handed on {times} times at most")));
    limits.extend(scope.yields().then(|| "waits for others".to_owned()));
    limits.join(", ")
}

/// A model that a grant is about: one that this machine knows by a name, or any by its id.
fn find_model_id(home: &Home, screen: Screen, text: &str) -> Result<ModelId, Failure> {
    match text.parse() {
        Ok(id) => Ok(id),
        Err(_) => Ok(Models::open(home)?.find_or_only(Some(text), screen)?.id),
    }
}

/// A right with a model, as it would be asked for.
struct Asked(Right, Option<ModelId>);

impl Request for Asked {
    fn needs(&self) -> Need {
        Need { right: self.0, model: self.1 }
    }
}

impl Explain {
    pub(crate) fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let right = Right::ALL.into_iter().find(|right| right.name() == self.right).ok_or_else(|| {
            let all = Right::ALL.map(Right::name).join(", ");
            Failure::usage(format!("`{}` is no right", self.right), format!("one of {all}"))
        })?;
        let model = self.model.as_deref().map(|name| find_model_id(home, screen, name)).transpose()?;
        let membership = Membership::open(home)?;
        let gate = membership.gate(home)?;
        let (holder, grant) = self.grant(home, &membership)?;
        let at = self.at.map_or_else(|| Ok(keys(home)?[0]), Ok::<_, Failure>)?;
        let place = Place { peer: at, now: utc_now() };
        let chain = gate.read(&grant).or_fail("grant", "ask for a new one: potluck swarm grant")?;
        let answer = gate.check(&grant, holder, place.now);
        let answer = answer.and_then(|member| gate.authorize(&member, Asked(right, model), place).map(|_| ()));
        let steps = steps(&chain);
        if screen.json {
            let why = answer.as_ref().err().map(ToString::to_string);
            let object = json!({ "key": holder.to_string(), "right": self.right, "may": answer.is_ok(), "why": why, "links": steps });
            return screen.object(&object);
        }
        let mut text = String::new();
        for step in steps {
            text += &format!("  {step}\n");
        }
        let verdict = match &answer {
            Ok(()) => format!("yes: {} may {} there\n", holder.short(), self.right),
            Err(error) => format!("no: {error}\n"),
        };
        screen.text(&(verdict + &text))
    }

    /// Whose grant, and which.
    fn grant(&self, home: &Home, membership: &Membership) -> Result<(PeerId, Vec<u8>), Failure> {
        let Some(of) = &self.of else {
            let key = keys(home)?[1];
            return Ok((key, membership.grant(key)?));
        };
        if let Ok(key) = of.parse::<PeerId>() {
            if let Ok(grant) = membership.grant(key) {
                return Ok((key, grant));
            }
            let name = key.to_string();
            let found = issued(home)?.into_iter().rev().find(|one| one.key == name);
            return found.map(|one| (key, one.grant())).ok_or_else(|| {
                let message = format!("{} was not let in from here", key.short());
                Failure::new("no_grant", message, "potluck swarm members says who was; or give the line itself")
            });
        }
        match of.parse()? {
            Line::Granted(admission) => admission
                .grants
                .into_iter()
                .next_back()
                .ok_or_else(|| Failure::usage("the line grants nothing", "paste all of it")),
            Line::Invited(_) => Err(Failure::usage("an invitation is no grant yet", "it becomes one when it is used")),
        }
    }
}

/// A chain in words, a link a line.
fn steps(chain: &Chain) -> Vec<String> {
    let mut by = "the root".to_owned();
    let mut lines = Vec::new();
    for link in chain.links() {
        let caveats = &link.caveats;
        let mut said: Vec<String> = caveats.role.iter().map(|role| format!("as {role}")).collect();
        said.extend(caveats.until.map(|until| format!("until {until}")));
        said.extend(caveats.hours.map(|hours| format!("at {hours} UTC")));
        said.extend(caveats.models.iter().map(|model| format!("model {}", model.short())));
        said.extend(caveats.peers.iter().map(|peer| format!("at {}", peer.short())));
        said.extend(caveats.ports.iter().map(|ports| format!("port {ports}")));
        said.extend(caveats.nets.iter().map(|net| format!("in {net}")));
        said.extend(caveats.bytes_per_day.map(|bytes| format!("{} a day", size(bytes))));
        said.extend(caveats.hand_on.map(|times| format!("to be handed on {times} times")));
        lines.push(format!("{by} granted {} {} (grant {})", link.holder.short(), said.join(", "), link.id));
        by = link.holder.short().to_string();
    }
    lines
}
