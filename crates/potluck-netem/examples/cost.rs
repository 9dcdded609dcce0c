//! What a wire costs: processor time for each packet that it carries, in bulk and one by one (root, some seconds).
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

    use potluck_netem::{Wire, World, link::Profile};

    let delay = Duration::from_millis(5);
    let line = |rate| Profile { delay, rate, queue_bytes: 1 << 20, ..Profile::default() };
    let world = World::new().unwrap();
    let [first, second] = [1, 2].map(|number| world.machine(number).unwrap());
    let cost = |what: &str, wire: &Wire, work: &dyn Fn()| {
        let seen = || {
            let packets: u64 = wire.stats().iter().map(|direction| direction.delivered).sum();
            (packets, wire.cpu_time())
        };
        let before = seen();
        work();
        let after = seen();
        let (packets, took) = (after.0 - before.0, after.1 - before.1);
        println!("{what}: {packets} packets, {:.2} us each", took.as_secs_f64() * 1e6 / packets as f64);
    };
    for (name, rate, bytes) in [("20 Mbit/s", Some(20_000_000), 5_000_000), ("unlimited", None, 100_000_000)] {
        let wire = Wire::between(&first, &second, [line(rate); 2], 1).unwrap();
        let listener = second.inside(|| TcpListener::bind("10.99.0.2:0")).unwrap();
        let at = listener.local_addr().unwrap();
        let sending = first.inside(|| TcpStream::connect(at)).unwrap();
        let (receiving, _) = listener.accept().unwrap();
        sending.set_nodelay(true).unwrap();
        receiving.set_nodelay(true).unwrap();
        cost(&format!("{name}, one TCP stream"), &wire, &|| {
            std::thread::scope(|scope| {
                let mut sending = &sending;
                scope.spawn(move || sending.write_all(&vec![7; bytes]).unwrap());
                (&receiving).read_exact(&mut vec![0; bytes]).unwrap();
            });
        });
        let [near, far] = [(&first, "10.99.0.1"), (&second, "10.99.0.2")].map(|(at, ip)| at.udp(ip).unwrap());
        near.connect(far.local_addr().unwrap()).unwrap();
        far.connect(near.local_addr().unwrap()).unwrap();
        cost(&format!("{name}, one datagram at a time"), &wire, &|| {
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
