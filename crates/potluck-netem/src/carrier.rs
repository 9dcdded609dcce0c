//! A thread that carries packets between TUN devices, over the lines of a [`Hub`].

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
    process::{Pid, setpriority_process},
    thread::gettid,
};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::{
    Namespace, NetemError,
    link::{Hub, HubStats},
};

/// Bytes of the longest packet.
const MTU: u16 = 1_500;

/// Packets that the kernel keeps at an end until they are taken. Those beyond are lost uncounted, which a carrier that keeps up
/// with its programs leaves no time for.
const TRANSMIT_PACKETS: u32 = 4_096;

/// Packets that are taken from one device before others have their turn.
const TURN: usize = 64;

/// Longest wait without an event: none is lost, and none is waited for longer than this.
const LULL: Duration = Duration::from_secs(3_600);

/// Nice value of the threads that carry packets: what is measured over a wire may fill every core.
const PRIORITY: i32 = -15;

/// Which device a packet goes to that came from another. One that is not there, or none, drops it.
pub(crate) type Route = fn(from: usize, packet: &[u8]) -> Option<usize>;

/// Carries until dropped; the devices are gone with it.
#[derive(Debug)]
pub(crate) struct Carrier {
    stats: HubStats,
    stop: OwnedFd,
    id: Pid,
    thread: Option<JoinHandle<()>>,
}

/// A TUN device there, without addresses and routes, and down.
pub(crate) fn device(at: &Namespace, name: &str) -> Result<SyncDevice, NetemError> {
    let built = at.inside(|| {
        let device = DeviceBuilder::new().name(name).mtu(MTU).tx_queue_len(TRANSMIT_PACKETS);
        device.enable(false).build_sync()
    });
    let device = built.map_err(NetemError::io(format!("a TUN device in {}", at.name())))?;
    device.set_nonblocking(true).map_err(NetemError::io("a TUN device"))?;
    Ok(device)
}

impl Carrier {
    /// Carries between those devices, one for each line.
    pub(crate) fn new(devices: Vec<SyncDevice>, hub: Hub<Vec<u8>>, route: Route) -> Result<Self, NetemError> {
        let stats = hub.stats();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?;
        let stopped = stop.try_clone()?;
        let (tell, told) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("wire".into()).spawn(move || {
            // Who may not is slower on a busy machine, and that is all.
            let _ = setpriority_process(None, PRIORITY);
            let _ = tell.send(gettid());
            carry(&devices, hub, route, &stopped);
        })?;
        let id = told.recv().map_err(|_| io::Error::other("the thread of a wire is gone"))?;
        Ok(Self { stats, stop, id, thread: Some(thread) })
    }

    pub(crate) fn stats(&self) -> &HubStats {
        &self.stats
    }

    /// Processor time of its thread.
    pub(crate) fn cpu_time(&self) -> Duration {
        let told = fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.id.as_raw_nonzero()));
        // The thread is there for as long as the carrier, and a kernel without these figures has none.
        let nanoseconds = told.ok().and_then(|told| told.split(' ').next()?.parse().ok());
        Duration::from_nanos(nanoseconds.unwrap_or_default())
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // Its thread reads it, if it still runs.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Carries packets until told to stop, or until a device is gone.
fn carry(devices: &[SyncDevice], mut hub: Hub<Vec<u8>>, route: Route, stop: &OwnedFd) {
    let (begun, stats) = (Instant::now(), hub.stats());
    let mut buffer = vec![0; usize::from(MTU)];
    let watched = devices.iter().map(SyncDevice::as_fd).chain([stop.as_fd()]);
    let mut events: Vec<_> = watched.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    loop {
        while let Some((to, packet)) = hub.poll(begun.elapsed()) {
            // A device that is down takes nothing: so would a network card.
            if devices[to].send(&packet).is_err() {
                stats.refused(to, packet.len());
            }
        }
        let patience = hub.next().map_or(LULL, |due| due.saturating_sub(begun.elapsed()));
        let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        match poll(&mut events, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let come = |at: usize| !events[at].revents().is_empty();
        if come(devices.len()) {
            return;
        }
        for (at, device) in devices.iter().enumerate().filter(|(at, _)| come(*at)) {
            // A device that is gone is told by reading it.
            let taken = take(device, &mut buffer, |packet| {
                if let Some(to) = route(at, packet).filter(|to| *to < devices.len()) {
                    hub.push(begun.elapsed(), [at, to], packet.to_vec(), packet.len());
                }
            });
            if taken.is_err() {
                return;
            }
        }
    }
}

/// Takes what a device has.
fn take(device: &SyncDevice, buffer: &mut [u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    for _ in 0..TURN {
        match device.recv(buffer) {
            Ok(length) => each(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
