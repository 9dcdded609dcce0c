//! TCP of this machine's programs, ended here: one stream for each connection, which is accepted once the far side has connected.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{Socket, SocketBuffer, State},
    time::{Duration as SmolDuration, Instant as SmolInstant},
    wire::{HardwareAddress, IpAddress, IpCidr},
};
use tokio::sync::{Notify, mpsc};

use super::{GATEWAY_V4, GATEWAY_V6, MTU};

/// Connections at once. The next one is not answered until one ends.
const CONNECTIONS_MAX: usize = 512;

/// Bytes that are held of a connection for each direction.
const BUFFER_BYTES: usize = 128 << 10;

/// Pieces that wait on the way between a connection and its stream.
pub(super) const PIECES_MAX: usize = 4;

/// Bytes of a piece.
const PIECE_BYTES: usize = 16 << 10;

/// Longest that a connection's other end, a program here, may be silent while we wait for its word.
const SILENT_MAX: SmolDuration = SmolDuration::from_secs(60);

/// How often a silent program is asked whether it is there.
const KEEP_ALIVE: SmolDuration = SmolDuration::from_secs(30);

/// What passes between a connection and its stream.
#[derive(Debug)]
pub(super) enum Piece {
    /// The far side has connected.
    Connected,
    Bytes(Bytes),
    /// This direction has ended well.
    End,
    /// Both have ended, and not well.
    Reset,
}

/// A connection's end that its stream sees.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) to: SocketAddr,
    pub(super) from_program: mpsc::Receiver<Piece>,
    pub(super) to_program: mpsc::Sender<Piece>,
    /// To be told when a piece was taken or given.
    pub(super) moved: Arc<Notify>,
}

#[derive(Debug)]
struct Connection {
    handle: SocketHandle,
    /// None once its end was told.
    to_stream: Option<mpsc::Sender<Piece>>,
    from_stream: mpsc::Receiver<Piece>,
    /// What the stream has no room for yet, once the program has sent its last: the socket may be gone before the stream has it.
    held: VecDeque<Bytes>,
    /// Whether the program has sent its last.
    ended: bool,
    /// What the socket has no room for yet.
    rest: Bytes,
    closed: bool,
}

/// Both ends of a connection.
type Pair = (SocketAddr, SocketAddr);

/// The stack: packets in, packets out, and the connections between.
pub(super) struct Stack {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    connections: HashMap<Pair, Connection>,
    moved: Arc<Notify>,
    begun: Instant,
}

/// Packets on their way in and out.
#[derive(Debug, Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

impl Stack {
    /// `seed`: what sequence numbers begin with is not to be guessed.
    pub(super) fn new(seed: u64) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, SmolInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(GATEWAY_V4), 32));
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv6(GATEWAY_V6), 128));
        });
        // Whatever it is for, it is for us.
        interface.set_any_ip(true);
        let _ = interface.routes_mut().add_default_ipv4_route(GATEWAY_V4);
        let _ = interface.routes_mut().add_default_ipv6_route(GATEWAY_V6);
        Self {
            interface,
            wire,
            sockets: SocketSet::new(Vec::new()),
            connections: HashMap::new(),
            moved: Arc::new(Notify::new()),
            begun: Instant::now(),
        }
    }

    /// Returned from when a stream has taken or given a piece.
    pub(super) fn moved(&self) -> Arc<Notify> {
        self.moved.clone()
    }

    /// Takes a packet. The ends of a connection that it opens: its stream is to be begun.
    pub(super) fn take(&mut self, packet: &[u8], pair: Pair, opens: bool) -> Option<Ends> {
        let ends = if opens && !self.connections.contains_key(&pair) {
            if self.connections.len() >= CONNECTIONS_MAX {
                return None;
            }
            Some(self.open(pair))
        } else {
            None
        };
        self.wire.incoming.push_back(packet.to_vec());
        // At once: of two that open connections to one place, each has its own socket.
        self.poll();
        ends
    }

    fn open(&mut self, pair: Pair) -> Ends {
        let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(SILENT_MAX));
        socket.pause_synack(true);
        // A port of its own each: it is none that it could not listen at.
        let _ = socket.listen((IpAddress::from(pair.1.ip()), pair.1.port()));
        let handle = self.sockets.add(socket);
        let (to_stream, from_program) = mpsc::channel(PIECES_MAX);
        let (to_program, from_stream) = mpsc::channel(PIECES_MAX);
        let connection = Connection {
            handle,
            to_stream: Some(to_stream),
            from_stream,
            held: VecDeque::new(),
            ended: false,
            rest: Bytes::new(),
            closed: false,
        };
        self.connections.insert(pair, connection);
        Ends { to: pair.1, from_program, to_program, moved: self.moved.clone() }
    }

    /// Moves what can be moved. Packets that are to go out.
    pub(super) fn run(&mut self) -> VecDeque<Vec<u8>> {
        self.poll();
        let Self { sockets, connections, .. } = self;
        for connection in connections.values_mut() {
            let socket = sockets.get_mut::<Socket<'_>>(connection.handle);
            connection.pass_up(socket);
            connection.pass_down(socket);
        }
        self.poll();
        let sockets = &mut self.sockets;
        self.connections.retain(|_, connection| {
            let socket = sockets.get::<Socket<'_>>(connection.handle);
            // Both directions have ended: what is late is answered by nobody, as of a port that is closed. A program that gave up before it was
            // answered leaves its socket listening, and so does a first packet that was damaged.
            let over = matches!(socket.state(), State::Closed | State::TimeWait | State::Listen);
            let over = over && !(connection.ended && connection.to_stream.is_some());
            if over {
                connection.over();
                sockets.remove(connection.handle);
            }
            !over
        });
        std::mem::take(&mut self.wire.outgoing)
    }

    /// When there is something to do, if nothing happens before.
    pub(super) fn poll_at(&mut self) -> Option<Instant> {
        let now = self.now();
        let delay = self.interface.poll_delay(now, &self.sockets)?;
        Some(Instant::now() + std::time::Duration::from(delay))
    }

    fn now(&self) -> SmolInstant {
        SmolInstant::from_micros(i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }
}

impl Connection {
    /// What the program sent, as far as the stream takes it.
    fn pass_up(&mut self, socket: &mut Socket<'_>) {
        let Some(sender) = &self.to_stream else { return };
        // Seen before it is over: it gets there by our own close, or stays for a while.
        self.ended |= matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if self.ended {
            self.held.extend(std::iter::from_fn(|| piece(socket)));
        }
        loop {
            // Until there is room, the program's window closes.
            let room = match sender.try_reserve() {
                Ok(room) => room,
                Err(mpsc::error::TrySendError::Full(())) => return,
                // Its stream is gone: nobody takes what is held.
                Err(mpsc::error::TrySendError::Closed(())) => {
                    self.held.clear();
                    break;
                }
            };
            match self.held.pop_front().or_else(|| piece(socket)) {
                Some(bytes) => room.send(Piece::Bytes(bytes)),
                None if self.ended => {
                    room.send(Piece::End);
                    break;
                }
                None => return,
            }
        }
        self.to_stream = None;
    }

    /// What the stream gave, as far as the program takes it.
    fn pass_down(&mut self, socket: &mut Socket<'_>) {
        loop {
            if !self.rest.is_empty() {
                if !socket.can_send() {
                    return;
                }
                let Ok(sent) = socket.send_slice(&self.rest) else { return };
                let _ = self.rest.split_to(sent);
                continue;
            }
            match self.from_stream.try_recv() {
                Ok(Piece::Connected) => socket.pause_synack(false),
                Ok(Piece::Bytes(bytes)) => self.rest = bytes,
                Ok(Piece::End) => {
                    self.closed = true;
                    socket.close();
                }
                Ok(Piece::Reset) => return socket.abort(),
                Err(mpsc::error::TryRecvError::Empty) => return,
                // Its task is gone without a word.
                Err(mpsc::error::TryRecvError::Disconnected) if self.closed => return,
                Err(mpsc::error::TryRecvError::Disconnected) => return socket.abort(),
            }
        }
    }

    /// It is gone: if its stream does not know, that was no good end.
    fn over(&mut self) {
        if let Some(sender) = self.to_stream.take() {
            let _ = sender.try_send(Piece::Reset);
        }
    }
}

/// What the program sent, a piece of it.
fn piece(socket: &mut Socket<'_>) -> Option<Bytes> {
    if !socket.can_recv() {
        return None;
    }
    let take = |bytes: &mut [u8]| {
        let len = bytes.len().min(PIECE_BYTES);
        (len, Bytes::copy_from_slice(&bytes[..len]))
    };
    socket.recv(take).ok().filter(|bytes| !bytes.is_empty())
}

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: SmolInstant) -> Option<(Incoming, Outgoing<'_>)> {
        let packet = self.incoming.pop_front()?;
        Some((Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _now: SmolInstant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        (capabilities.medium, capabilities.max_transmission_unit) = (Medium::Ip, usize::from(MTU));
        capabilities
    }
}

struct Incoming(Vec<u8>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let done = f(&mut packet);
        self.0.push_back(packet);
        done
    }
}
