//! What lines between machines cost: processor time for each packet from one machine to another, in bulk and one by one (root,
//! some seconds). A packet that comes alone costs two wake-ups, which the first line gives to compare with.
//!
//! `cargo run --package potluck-netem --example cost`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "it prints, and who runs it is told where it fails")]

#[cfg(all(target_os = "linux", feature = "namespaces"))]
fn main() {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use potluck_netem::{Star, link::Profile};
    use rustix::{
        event::{Timespec, poll},
        time::{ClockId, clock_gettime},
    };

    let own_time = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let before = own_time();
    for _ in 0..1_000 {
        poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 })).unwrap();
    }
    println!("a wake-up by a timer: {:.2} us", (own_time() - before).as_secs_f64() * 1e3);

    for (name, rate, bytes) in [("20 Mbit/s", Some(20_000_000), 5_000_000), ("unlimited", None, 100_000_000)] {
        let delay = Duration::from_micros(2_500);
        let line = Profile { delay, rate, queue_bytes: 1 << 20, ..Profile::default() };
        let star = Star::new(&[[line; 2]; 2], 1).unwrap();
        let [first, second] = star.machines() else { unreachable!("it has two") };
        let cost = |what: &str, work: &dyn Fn()| {
            let seen = || {
                let packets: u64 = star.stats().iter().map(|[_, down]| down.delivered).sum();
                (packets, star.cpu_time())
            };
            let before = seen();
            work();
            let after = seen();
            let (packets, took) = (after.0 - before.0, after.1 - before.1);
            println!("{name}, {what}: {packets} packets, {:.2} us each", took.as_secs_f64() * 1e6 / packets as f64);
        };
        let listener = second.inside(|| TcpListener::bind((star.address(1), 0))).unwrap();
        let at = listener.local_addr().unwrap();
        let sending = first.inside(|| TcpStream::connect(at)).unwrap();
        let (receiving, _) = listener.accept().unwrap();
        cost("one TCP stream", &|| {
            std::thread::scope(|scope| {
                let mut sending = &sending;
                scope.spawn(move || sending.write_all(&vec![7; bytes]).unwrap());
                (&receiving).read_exact(&mut vec![0; bytes]).unwrap();
            });
        });
        let [near, far] = [(first, 0), (second, 1)].map(|(at, n)| at.udp(&star.address(n).to_string()).unwrap());
        near.connect(far.local_addr().unwrap()).unwrap();
        far.connect(near.local_addr().unwrap()).unwrap();
        cost("one datagram at a time", &|| {
            for _ in 0..300 {
                near.send(&[7; 500]).unwrap();
                far.recv(&mut [0; 500]).unwrap();
                far.send(&[7; 500]).unwrap();
                near.recv(&mut [0; 500]).unwrap();
            }
        });
    }
}

#[cfg(not(all(target_os = "linux", feature = "namespaces")))]
fn main() {
    println!("namespaces need Linux");
}
