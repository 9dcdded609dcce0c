//! A wire between two namespaces: a TUN device at each end, and a [`Link`] each way between them.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::{
    Namespace, NetemError,
    link::{Fate, Link, Profile},
};

/// Bytes of the longest packet.
const MTU: u16 = 1_500;

/// Packets that are taken from one device before the other has its turn.
const TURN: usize = 64;

/// Longest wait without an event: none is lost, and none is waited for longer than this.
const LULL: Duration = Duration::from_secs(3_600);

/// What has become of the packets that entered a wire, in one direction.
#[derive(Debug, Default)]
struct Counters {
    delivered: AtomicU64,
    delivered_bytes: AtomicU64,
    lost: AtomicU64,
    no_room: AtomicU64,
}

/// What has become of the packets that entered a wire, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireStats {
    /// Given to the other end.
    pub delivered: u64,
    /// Bytes of those.
    pub delivered_bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Refused by a full queue.
    pub no_room: u64,
}

/// A wire, which is cut when dropped: the devices at its ends go with it.
#[derive(Debug)]
pub struct Wire {
    counters: Arc<[Counters; 2]>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// One end.
struct End {
    device: SyncDevice,
    /// Towards the other.
    link: Link,
}

impl Wire {
    /// Lays a wire from the first namespace to the second. `device` is its name in both, without addresses and routes, and down.
    ///
    /// `there` is what happens to packets from the first to the second, `back` to the others; the seed decides about both.
    ///
    /// # Errors
    /// `Io` where there is no `/dev/net/tun`, or the name is taken.
    pub fn lay(
        between: [&Namespace; 2],
        device: [&str; 2],
        [there, back]: [Profile; 2],
        seed: u64,
    ) -> Result<Self, NetemError> {
        let open = |at: usize| {
            let built =
                between[at].inside(|| DeviceBuilder::new().name(device[at]).mtu(MTU).enable(false).build_sync());
            let device = built.map_err(NetemError::io(format!("a TUN device in {}", between[at].name())))?;
            device.set_nonblocking(true).map_err(NetemError::io("a TUN device"))?;
            Ok::<_, NetemError>(device)
        };
        let mut chance = fastrand::Rng::with_seed(seed);
        let ends = [
            End { device: open(0)?, link: Link::new(there, chance.u64(..)) },
            End { device: open(1)?, link: Link::new(back, chance.u64(..)) },
        ];
        let counters: Arc<[Counters; 2]> = Arc::default();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?;
        let (counted, stopped) = (counters.clone(), stop.try_clone()?);
        let thread = thread::Builder::new().name("wire".into()).spawn(move || carry(ends, &counted, &stopped))?;
        Ok(Self { counters, stop, thread: Some(thread) })
    }

    /// A wire and the network of its own that it makes: `10.99.0.1` in the first namespace, `10.99.0.2` in the second.
    ///
    /// # Errors
    /// As [`lay`](Self::lay).
    pub fn between(first: &Namespace, second: &Namespace, both: [Profile; 2], seed: u64) -> Result<Self, NetemError> {
        let wire = Self::lay([first, second], ["wire", "wire"], both, seed)?;
        for (namespace, number) in [(first, 1), (second, 2)] {
            namespace.ip(&format!("addr add 10.99.0.{number}/24 dev wire\nlink set wire up\n"))?;
        }
        Ok(wire)
    }

    /// What became of packets: from the first end to the second, and back.
    pub fn stats(&self) -> [WireStats; 2] {
        self.counters.each_ref().map(|counters| WireStats {
            delivered: counters.delivered.load(Ordering::Relaxed),
            delivered_bytes: counters.delivered_bytes.load(Ordering::Relaxed),
            lost: counters.lost.load(Ordering::Relaxed),
            no_room: counters.no_room.load(Ordering::Relaxed),
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Its thread reads it, if it still runs.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Carries packets until told to stop, or until a device is gone.
fn carry(mut ends: [End; 2], counters: &[Counters; 2], stop: &OwnedFd) {
    let begun = Instant::now();
    let mut buffer = vec![0; usize::from(MTU)];
    loop {
        for at in [0, 1] {
            if take(&mut ends[at], begun, &mut buffer, &counters[at]).is_err() {
                return;
            }
        }
        for at in [0, 1] {
            while let Some(packet) = ends[at].link.poll(begun.elapsed()) {
                deliver(&ends[1 - at].device, &packet, &counters[at]);
            }
        }
        let due = ends.iter().filter_map(|end| end.link.next()).min();
        let patience = due.map_or(LULL, |due| due.saturating_sub(begun.elapsed()));
        let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        let devices = ends.each_ref().map(|end| end.device.as_fd());
        let mut events = [devices[0], devices[1], stop.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut events, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        // A device that is gone is told by reading it.
        if events[2].revents().intersects(PollFlags::IN | gone) {
            return;
        }
    }
}

/// Takes what its device has for the other end.
fn take(end: &mut End, begun: Instant, buffer: &mut [u8], counters: &Counters) -> io::Result<()> {
    for _ in 0..TURN {
        let length = match end.device.recv(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let counter = match end.link.push(begun.elapsed(), buffer[..length].to_vec()) {
            Fate::Arrives => continue,
            Fate::Lost => &counters.lost,
            Fate::NoRoom => &counters.no_room,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn deliver(device: &SyncDevice, packet: &[u8], counters: &Counters) {
    // Counted before it goes: whoever has received it finds it counted.
    counters.delivered.fetch_add(1, Ordering::Relaxed);
    counters.delivered_bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
    // A device that is down takes nothing: so would a network card.
    if device.send(packet).is_err() {
        counters.delivered.fetch_sub(1, Ordering::Relaxed);
        counters.delivered_bytes.fetch_sub(packet.len() as u64, Ordering::Relaxed);
        counters.lost.fetch_add(1, Ordering::Relaxed);
    }
}
