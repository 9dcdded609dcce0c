//! The client: a member of a swarm inside a program of one's own.

mod chat;
mod error;
mod forward;
mod member;
mod messages;
mod peers;
mod settings;
mod worker;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use potluck_core::PeerId;
use potluck_grant::Gate;
use potluck_net::Identity;
use potluck_tunnel::{Far, FindPeer, TunnelError, forward_tcp};
use potluck_wire::{Dial, Host, PeerAddress, Service};
use tokio::{
    net::TcpListener,
    time::{Instant, timeout_at},
};

use crate::{
    commands::join::{Reaching, become_member, show},
    engines::use_program,
    failure::Failure,
    home::{self, Home, Line, Membership, new_key},
    screen::Screen,
};

use member::Member;
use settings::relays_in_memory;
use worker::Worker;

pub use chat::{Answer, Chat, Conversation, Finished};
pub use error::ClientError;
pub use forward::Forward;
pub use messages::{Message, Messages, Receipt, Streams};
pub use peers::{Peer, Standing};
pub use potluck_net::PathKind;
pub use potluck_tunnel::PeerStream;
pub use settings::{Grant, Settings, generate_key};

/// After which a connection ends that nothing has used: a listener has room for so many.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// A member of a swarm. Clones are the same member; the last one that is dropped ends it, and [`close`](Self::close)
/// waits for that.
///
/// Its connections live on a thread of the client's own: it may be used in any runtime, of one thread or several, and a
/// program that computes for a while loses none of them.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    worker: Worker,
    member: Member,
    grant: Grant,
    home: Option<Home>,
    deadline: Duration,
    /// Those that were reached.
    fars: Mutex<BTreeMap<PeerId, Far>>,
}

impl Client {
    /// Joins a swarm with the line that its owner passed on (`potluck swarm invite`, `potluck swarm grant`). With
    /// [`Settings::home`] this machine is a member from then on, and [`open`](Self::open) does the next time; without,
    /// all is in memory: [`grant`](Self::grant) is what to keep.
    ///
    /// # Errors
    /// As `potluck swarm join` tells them: `usage`, `invitation_used`, `already_joined` and so on.
    pub async fn join(line: &str, settings: &Settings) -> Result<Self, ClientError> {
        let line: Line = line.parse()?;
        let worker = Worker::start()?;
        let Some(folder) = settings.home.clone() else {
            let key = new_key()?;
            let admission = match line {
                Line::Granted(_) => {
                    let message = "this line is for keys that exist already, and none is kept in memory";
                    let hint = "read it with Grant::from_line, and call Client::connect; or join with Settings::home";
                    return Err(ClientError::other("not_for_us", message, hint));
                }
                Line::Invited(invitation) => {
                    let urls = settings.relays.clone().unwrap_or_else(|| invitation.relays.clone());
                    let mut relay = relays_in_memory(&urls);
                    relay.iter_mut().for_each(|relay| relay.pass = Some(invitation.relay_pass()));
                    let reach = Reaching {
                        bind: settings.binding(),
                        lan: settings.lan(false),
                        relay,
                        discovery: settings.reach()?.discovery,
                    };
                    let (own, keys) = (key.clone(), vec![key.peer_id()]);
                    worker.run(async move { show(&own, keys, &invitation, reach).await }).await??
                }
            };
            return Self::enter(worker, Grant::of(admission, key)?, settings, None).await;
        };
        let home = Home::open(Some(folder), settings.reach()?)?;
        let joining = home.clone();
        worker.run(async move { become_member(&joining, Screen::new(true), line, false).await }).await??;
        Self::open_home(worker, home, settings).await
    }

    /// The member that this machine is: of a folder where it joined, as `POTLUCK_HOME`, with its key that asks.
    /// Commands may ask at the same time; one client at a time does.
    ///
    /// # Errors
    /// `no_swarm`: it has not joined; `identity_in_use`: another client is that key now; `not_allowed`: its grant has
    /// ended.
    pub async fn open(home: impl AsRef<Path>, settings: &Settings) -> Result<Self, ClientError> {
        let home = Home::open(Some(home.as_ref().to_owned()), settings.reach()?)?;
        Self::open_home(Worker::start()?, home, settings).await
    }

    /// A member by a grant that the program holds: nothing is read from the disk, and nothing is written to it.
    ///
    /// # Errors
    /// `not_allowed`: the grant is not this key's, has ended, or is another swarm's; `bind`: no socket.
    pub async fn connect(grant: Grant, settings: &Settings) -> Result<Self, ClientError> {
        Self::enter(Worker::start()?, grant, settings, None).await
    }

    async fn open_home(worker: Worker, home: Home, settings: &Settings) -> Result<Self, ClientError> {
        let membership = Membership::open(&home)?;
        let identity = home::Identity::open(&home, home::Role::Client)?;
        let grant = Grant {
            grant: membership.grant(identity.key.peer_id())?,
            swarm: membership.swarm.clone(),
            contacts: membership.contacts.clone(),
            relays: membership.relays(&home),
            successions: membership.gate(&home)?.lineage(),
            key: identity.key.clone(),
        };
        let lock = identity.lock(&home)?;
        Self::enter(worker, grant, settings, Some((home, membership, lock))).await
    }

    async fn enter(
        worker: Worker,
        grant: Grant,
        settings: &Settings,
        kept: Option<(Home, Membership, home::KeyLock)>,
    ) -> Result<Self, ClientError> {
        if let Some(program) = chat::program(settings.program.as_deref()) {
            use_program(program);
        }
        let (gate, relay, home, lock) = match kept {
            Some((home, membership, lock)) => {
                let relay = home.claim_relays(grant.relays.clone(), None);
                (membership.gate(&home)?, relay, Some(home), Some(lock))
            }
            None => {
                let swarm = grant.swarm.parse().map_err(|error: potluck_grant::GrantError| {
                    ClientError::other(
                        "usage",
                        error.to_string(),
                        "a swarm's name is what `potluck swarm whoami` shows",
                    )
                })?;
                let urls = settings.relays.as_ref().unwrap_or(&grant.relays);
                let gate = Gate::new(swarm);
                // One that does not hold leads nowhere: then the grant is refused.
                grant.successions.iter().for_each(|succession| drop(gate.revoke(succession.clone())));
                (gate, relays_in_memory(urls), None, None)
            }
        };
        let identity = Identity { key: grant.key.clone(), grant: grant.grant.clone(), gate };
        let (contacts, how) = (grant.contacts.clone(), settings.clone());
        let entering = async move { Member::enter(identity, contacts, relay, &how).await };
        let member = worker.run(entering).await??;
        worker.keep(member.node().clone());
        worker.spawn(member.clone().stay(home.clone(), lock));
        let home = home.map(|home| home.with_node(member.node().clone()));
        let (deadline, fars) = (settings.deadline, Mutex::default());
        Ok(Self(Arc::new(Inner { worker, member, grant, home, deadline, fars })))
    }

    /// This member's public key: what others call it by.
    pub fn id(&self) -> PeerId {
        self.0.member.node().id()
    }

    /// Where it is reached at present, as far as it knows.
    pub fn address(&self) -> PeerAddress {
        self.0.member.node().address()
    }

    /// What makes it a member: kept by a program, it may [`connect`](Self::connect) again. It holds the secret key.
    pub fn grant(&self) -> Grant {
        let known = self.0.member.node().identity().gate.lineage();
        Grant { contacts: self.0.member.contacts(), successions: known, ..self.0.grant.clone() }
    }

    /// Who it is in its swarm, and what it may.
    ///
    /// # Errors
    /// `NotAllowed`: its grant has ended, or was taken back.
    pub fn whoami(&self) -> Result<Standing, ClientError> {
        peers::standing(self.0.member.node())
    }

    /// Who is there, as the members say that this one knows: each is asked itself, for up to some 15 s where one does
    /// not answer.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn peers(&self) -> Result<Vec<Peer>, ClientError> {
        let (node, contacts) = (self.0.member.node().clone(), self.0.member.contacts());
        self.0.worker.run(peers::peers(node, contacts)).await
    }

    /// Sends a message of up to [`MESSAGE_BYTES_MAX`](crate::MESSAGE_BYTES_MAX) bytes to the program of that peer that
    /// listens for that topic. Returns once that program has taken it; the receipt gives its reply. Where a connection
    /// is lost meanwhile, the message is sent again by another, and taken once.
    ///
    /// Messages that are awaited one after the other are taken in that order; of those that are under way at once, any
    /// may be first.
    ///
    /// # Errors
    /// [`NotListening`](ClientError::NotListening), [`NotAllowed`](ClientError::NotAllowed),
    /// [`Busy`](ClientError::Busy), [`TooLong`](ClientError::TooLong), [`Away`](ClientError::Away): it was not taken.
    /// [`Unconfirmed`](ClientError::Unconfirmed): it may have been.
    pub async fn send(&self, to: PeerId, topic: &str, body: impl Into<Bytes>) -> Result<Receipt, ClientError> {
        let (far, topic, body, within) = (self.far(to), topic.to_owned(), body.into(), self.0.deadline);
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| ClientError::other("io", format!("no randomness: {error}"), "check /dev/urandom"))?;
        let sending = async move {
            // Looking it up takes of the same time.
            let until = Instant::now() + within;
            let away = TunnelError::Away { peer: to, seconds: within.as_secs() };
            let far = timeout_at(until, far).await.map_err(|_| away)?;
            far.send_message(&topic, &body, id, until.saturating_duration_since(Instant::now())).await
        };
        let receipt = self.0.worker.run(sending).await??;
        Ok(Receipt { receipt, worker: self.0.worker.clone() })
    }

    /// Sends a message, and waits for its reply; none where the program there has taken it and gives none.
    ///
    /// # Errors
    /// As for [`send`](Self::send) and [`Receipt::reply`].
    pub async fn request(&self, to: PeerId, topic: &str, body: impl Into<Bytes>) -> Result<Option<Bytes>, ClientError> {
        self.send(to, topic, body).await?.reply().await
    }

    /// Takes messages of that topic (1 to 128 characters of ASCII without spaces), for as long as what it returns is
    /// kept. Returns once the members that this one knows can say where it is, or after 4 s.
    ///
    /// # Errors
    /// [`NotAllowed`](ClientError::NotAllowed): this key's grant does not let others connect to it. `usage`,
    /// `listening`; `Closed`.
    pub async fn listen(&self, topic: &str) -> Result<Messages, ClientError> {
        self.0.member.may_listen()?;
        let messages = self.0.member.apps().listen(topic)?;
        self.known().await?;
        Ok(Messages(messages))
    }

    /// Opens a stream to the program of that peer that accepts that topic, once it has accepted.
    ///
    /// # Errors
    /// As for [`send`](Self::send), less `TooLong` and `Unconfirmed`; `Away` also where it is not accepted within 17 s.
    pub async fn dial(&self, to: PeerId, topic: &str) -> Result<PeerStream, ClientError> {
        let (far, topic) = (self.far(to), topic.to_owned());
        Ok(self.0.worker.run(async move { far.await.open_stream(&topic).await }).await??)
    }

    /// Takes streams of that topic, for as long as what it returns is kept.
    ///
    /// # Errors
    /// As for [`listen`](Self::listen).
    pub async fn accept(&self, topic: &str) -> Result<Streams, ClientError> {
        self.0.member.may_listen()?;
        let streams = self.0.member.apps().accept(topic)?;
        self.known().await?;
        Ok(Streams(streams))
    }

    /// Connects to a TCP port of that peer itself, which it exposes (`potluck tunnel --expose PORT`).
    ///
    /// # Errors
    /// As for [`dial`](Self::dial).
    pub async fn dial_tcp(&self, to: PeerId, port: u16) -> Result<PeerStream, ClientError> {
        let dial = Dial { service: Service::Tcp(port), host: Host::Own };
        let far = self.far(to);
        Ok(self.0.worker.run(async move { far.await.open_service(&dial).await }).await??)
    }

    /// Listens at an address of this machine for programs that know nothing of Potluck: what connects there comes out
    /// at a TCP port of that peer. A connection that does not get there is reset.
    ///
    /// # Errors
    /// `io`: the address is taken; `Closed`.
    pub async fn forward_tcp(&self, local: SocketAddr, to: PeerId, port: u16) -> Result<Forward, ClientError> {
        let dial = Dial { service: Service::Tcp(port), host: Host::Own };
        let far = self.far(to);
        let listening = async move { Ok((TcpListener::bind(local).await?, far.await)) };
        let failed = |error: std::io::Error| ClientError::from(Failure::io(format!("listening at {local}"), &error));
        let (listener, far) = self.0.worker.run(listening).await?.map_err(failed)?;
        let at = listener.local_addr().map_err(failed)?;
        Ok(Forward::new(at, self.0.worker.spawn(forward_tcp(listener, far, dial))))
    }

    /// Asks a model, by a name or an id of `potluck model list`, a path, or a name that members share: on this machine
    /// where that is enough, over peers otherwise, as `potluck run` does. Needs a folder ([`Settings::home`]) and the
    /// program `potluck` ([`Settings::program`]).
    pub fn chat(&self, model: &str) -> Chat {
        Chat::new(self.0.worker.clone(), self.0.home.clone(), model)
    }

    /// Where a peer is, for one that nobody else would know: tried first when it is reached the next time.
    pub fn note(&self, at: PeerAddress) {
        let far = self.at(at);
        self.fars().insert(far.peer(), far);
    }

    /// Ends it: listeners see the end, what is under way is cut short. Returns once the other sides were told, or after
    /// 3 s.
    pub async fn close(&self) {
        self.0.worker.stop().await;
    }

    async fn known(&self) -> Result<(), ClientError> {
        let member = self.0.member.clone();
        self.0.worker.run(async move { member.is_known().await }).await
    }

    /// That peer, as this client reaches it. Awaited on the client's thread.
    fn far(&self, to: PeerId) -> impl Future<Output = Far> + Send + use<> {
        let (client, known) = (self.0.clone(), self.fars().get(&to).cloned());
        async move {
            if let Some(known) = known {
                return known;
            }
            let nowhere = PeerAddress { peer: to, addresses: Vec::new(), relay: None };
            let at = client.member.find(to).await.unwrap_or(nowhere);
            let far = Client(client.clone()).at(at);
            client.fars.lock().unwrap_or_else(PoisonError::into_inner).entry(to).or_insert(far).clone()
        }
    }

    fn at(&self, at: PeerAddress) -> Far {
        let (member, peer) = (self.0.member.clone(), at.peer);
        let find = FindPeer::new(move || {
            let member = member.clone();
            async move { member.find(peer).await }
        });
        Far::resting(self.0.member.node().clone(), at, find, IDLE_MAX)
    }

    fn fars(&self) -> std::sync::MutexGuard<'_, BTreeMap<PeerId, Far>> {
        self.0.fars.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
