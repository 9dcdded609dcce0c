//! The device: made at the start, gone at the end, and its routes with it, whichever way the process ends.

use std::{io, net::IpAddr, process::Command};

use potluck_grant::Net;
use tun_rs::{AsyncDevice, DeviceBuilder};

use super::{MTU, OWN_V4, OWN_V6};

/// Names of devices that are tried.
const NAMES_MAX: usize = 32;

/// A TUN device, to which ranges of addresses are routed. It ends when dropped.
pub struct TunDevice {
    device: AsyncDevice,
    name: String,
}

impl TunDevice {
    /// Makes one, and routes these ranges to it.
    ///
    /// # Errors
    /// The system's: it takes root, or `CAP_NET_ADMIN`; and where a range holds an address of this machine, or all there are.
    pub fn open(ranges: &[Net]) -> io::Result<Self> {
        for range in ranges {
            check(*range)?;
        }
        let (device, name) = make()?;
        let this = Self { device, name };
        let name = this.name.as_str();
        ip(&["link", "set", "dev", name, "mtu", &MTU.to_string(), "up"])?;
        ip(&["addr", "add", &format!("{OWN_V4}/32"), "dev", name])?;
        // A machine may do without IPv6: then no range of it can be asked for.
        let v6 = ip(&["-6", "addr", "add", &format!("{OWN_V6}/128"), "dev", name, "nodad"]);
        for range in ranges {
            let (address, bits) = range.parts();
            let (family, own) = match address {
                IpAddr::V4(_) => ("-4", OWN_V4.to_string()),
                IpAddr::V6(_) => ("-6", OWN_V6.to_string()),
            };
            if address.is_ipv6()
                && let Err(error) = &v6
            {
                return Err(io::Error::other(error.to_string()));
            }
            ip(&[family, "route", "add", &format!("{address}/{bits}"), "dev", name, "src", &own])?;
        }
        Ok(this)
    }

    /// What the system calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn recv(&self, packet: &mut [u8]) -> io::Result<usize> {
        self.device.recv(packet).await
    }

    pub(super) async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.device.send(packet).await.map(|_| ())
    }
}

fn make() -> io::Result<(AsyncDevice, String)> {
    let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
    for number in 0..NAMES_MAX {
        let name = format!("potluck{number}");
        if std::path::Path::new("/sys/class/net").join(&name).exists() {
            continue;
        }
        match DeviceBuilder::new().name(&name).build_async() {
            Ok(device) => return Ok((device, name)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

/// Whether a range can be routed away: not what the tunnel itself goes by.
fn check(range: Net) -> io::Result<()> {
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{range}: {why}")));
    let (address, bits) = range.parts();
    if bits < if address.is_ipv4() { 8 } else { 16 } {
        return refused("a range this wide would take the tunnel's own packets, too");
    }
    if address.is_loopback() || address.is_multicast() || address.is_unspecified() {
        return refused("that is no range of another network");
    }
    let own = own_addresses()?;
    match own.iter().find(|own| range.holds(**own)) {
        Some(own) => refused(&format!("this machine is in it itself, at {own}")),
        None => Ok(()),
    }
}

/// The addresses of this machine.
fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let listed = output(&["-o", "addr", "show"])?;
    let address = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| !matches!(*word, "inet" | "inet6")).skip(1);
        words.next()?.split('/').next()?.parse().ok()
    };
    Ok(listed.lines().filter_map(address).collect())
}

fn ip(args: &[&str]) -> io::Result<()> {
    output(args).map(|_| ())
}

/// What the system's `ip` says.
fn output(args: &[&str]) -> io::Result<String> {
    let done = Command::new("ip").args(args).output()?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&done.stderr);
    Err(io::Error::other(format!("ip {}: {}", args.join(" "), why.trim())))
}
