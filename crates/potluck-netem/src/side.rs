//! One side of a world: hosts, and the routers between them and the internet.

use crate::{Namespace, Nat, NetemError, RELAY_HOST, RELAY_V4, RELAY_V6, Wire, link::Profile};

/// Sides that one world can have: their number is in their addresses, and a changed address is that much further.
pub(crate) const SIDES_MAX: usize = 99;

/// Connections of UDP are remembered that long by routers, in seconds, once answered.
const UDP_STREAM_TIMEOUT: u32 = 300;

/// Hosts, and what stands between them and the internet.
#[derive(Debug)]
pub struct Side {
    nat: Nat,
    number: usize,
    /// Outermost first.
    routers: Vec<(Namespace, Nat)>,
    hosts: Vec<Namespace>,
    moved: bool,
}

impl Side {
    /// A side with that number, plugged into the switch.
    pub(crate) fn new(world: &str, switch: &Namespace, number: usize, nat: Nat) -> Result<Self, NetemError> {
        let mut side = Self { nat, number, routers: Vec::new(), hosts: Vec::new(), moved: false };
        if let Some(carrier) = nat.carrier() {
            side.router(format!("{world}-s{number}c"), carrier)?;
        }
        side.router(format!("{world}-s{number}r"), nat)?;
        side.connect(switch)?;
        side.add_host(world)?;
        side.load_rules()?;
        Ok(side)
    }

    /// One more router, further inside.
    fn router(&mut self, name: String, nat: Nat) -> Result<(), NetemError> {
        let router = Namespace::new(name, nat == Nat::Ipv6Only)?;
        for (what, value) in
            [("ipv4/ip_forward", 1), ("ipv4/conf/all/send_redirects", 0), ("ipv4/conf/default/send_redirects", 0)]
        {
            router.set(what, value)?;
        }
        if nat == Nat::Ipv6Only {
            router.set("ipv6/conf/all/forwarding", 1)?;
        }
        router.ip("link add lan type bridge mcast_snooping 0\nlink set lan up\n")?;
        self.routers.push((router, nat));
        Ok(())
    }

    /// Cables and addresses, from the switch inwards.
    fn connect(&self, switch: &Namespace) -> Result<(), NetemError> {
        let n = self.number;
        let outermost = &self.routers[0].0;
        plug(switch, &format!("s{n}"), outermost, "wan")?;
        if self.nat == Nat::Ipv6Only {
            outermost.ip(&format!(
                "addr add 2001:db8::{n}/64 dev wan nodad\nlink set wan up\naddr add 2001:db8:{n}::1/64 dev lan nodad\n\
                 route add default via 2001:db8::254\n"
            ))?;
            return switch.ip(&format!("route add 2001:db8:{n}::/64 via 2001:db8::{n}\n"));
        }
        outermost.ip(&format!(
            "addr add {}/24 dev wan\nlink set wan up\nroute add default via 198.18.0.254\n",
            self.outside()
        ))?;
        if let [(carrier, _), (home, _)] = &self.routers[..] {
            carrier.ip(&format!("addr add 100.64.{n}.1/24 dev lan\n"))?;
            plug(carrier, "h1", home, "wan")?;
            home.ip(&format!(
                "addr add 100.64.{n}.2/24 dev wan\nlink set wan up\nroute add default via 100.64.{n}.1\n"
            ))?;
        }
        self.inner().ip(&format!("addr add {}.1/24 dev lan\n", self.inside()))?;
        if self.nat.is_routed() {
            switch.ip(&format!("route add {}.0/24 via {}\n", self.inside(), self.outside()))?;
        }
        Ok(())
    }

    /// One more host at the innermost router.
    pub(crate) fn add_host(&mut self, world: &str) -> Result<(), NetemError> {
        let (n, number) = (self.number, self.hosts.len() + 2);
        let ipv6 = self.nat == Nat::Ipv6Only;
        let host = Namespace::new(format!("{world}-s{n}h{number}"), ipv6)?;
        plug(self.inner(), &format!("h{number}"), &host, "eth0")?;
        host.ip(&if ipv6 {
            format!(
                "addr add 2001:db8:{n}::{number}/64 dev eth0 nodad\nlink set eth0 up\n\
                 route add default via 2001:db8:{n}::1\n"
            )
        } else {
            let inside = self.inside();
            format!("addr add {inside}.{number}/24 dev eth0\nlink set eth0 up\nroute add default via {inside}.1\n")
        })?;
        names(&host)?;
        self.hosts.push(host);
        Ok(())
    }

    /// What its hosts' addresses begin with.
    fn inside(&self) -> String {
        format!("{}.{}", if self.nat.is_routed() { "198.19" } else { "192.168" }, self.number)
    }

    fn inner(&self) -> &Namespace {
        &self.routers[self.routers.len() - 1].0
    }

    fn load_rules(&self) -> Result<(), NetemError> {
        for (at, (router, nat)) in self.routers.iter().enumerate() {
            let wan = if at == 0 { self.outside() } else { format!("100.64.{}.2", self.number) };
            let rules = nat.rules(&wan);
            if !rules.is_empty() {
                router.nft(&rules)?;
                router.set("netfilter/nf_conntrack_udp_timeout_stream", UDP_STREAM_TIMEOUT)?;
            }
        }
        Ok(())
    }

    /// What kind it is.
    pub fn nat(&self) -> Nat {
        self.nat
    }

    /// Its first host.
    pub fn host(&self) -> &Namespace {
        &self.hosts[0]
    }

    /// All its hosts.
    pub fn hosts(&self) -> &[Namespace] {
        &self.hosts
    }

    /// The address that the internet sees its hosts by: with a NAT theirs, without one its router's.
    pub fn outside(&self) -> String {
        if self.nat == Nat::Ipv6Only {
            return format!("2001:db8::{}", self.number);
        }
        format!("198.18.0.{}", self.number + if self.moved { SIDES_MAX + 1 } else { 0 })
    }

    /// Its routers forget the connections that they know, as by a restart, or a carrier's limit on their age.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn rebind(&self) -> Result<(), NetemError> {
        for (router, nat) in &self.routers {
            router.forget_connections()?;
            if nat.rules("192.0.2.1").contains("map m {") {
                router.nft("flush map ip n m\n")?;
            }
        }
        Ok(())
    }

    /// From now on, or no longer, UDP vanishes on its way through the innermost router.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn block_udp(&self, blocked: bool) -> Result<(), NetemError> {
        let rules = "chain forward {\ntype filter hook forward priority -10; policy accept\nmeta l4proto udp drop\n}\n";
        let gone = "table inet blocked\ndelete table inet blocked\n";
        self.inner().nft(&if blocked { format!("{gone}table inet blocked {{\n{rules}}}\n") } else { gone.into() })
    }

    /// Its cable is pulled, or plugged in again.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn cut(&self, cut: bool) -> Result<(), NetemError> {
        let rules = "chain forward {\ntype filter hook forward priority -10; policy drop\n}\n";
        let gone = "table inet cut\ndelete table inet cut\n";
        self.inner().nft(&if cut { format!("{gone}table inet cut {{\n{rules}}}\n") } else { gone.into() })
    }

    /// See [`World::slow_down`](crate::World::slow_down).
    pub(crate) fn slow_down(&self, both: [Profile; 2], seed: u64) -> Result<Wire, NetemError> {
        let (host, router) = (self.host(), self.inner());
        let wire = Wire::lay([host, router], ["slow", "lanslow"], both, seed)?;
        host.ip("link del eth0\n")?;
        let (own, gateway, bits) = match self.nat {
            Nat::Ipv6Only => (format!("2001:db8:{}::2", self.number), format!("2001:db8:{}::1", self.number), 128),
            _ => (format!("{}.2", self.inside()), format!("{}.1", self.inside()), 32),
        };
        host.ip(&format!(
            "addr add {own}/{bits} dev slow\nlink set slow up\nroute add {gateway}/{bits} dev slow\n\
             route add default via {gateway} dev slow\n"
        ))?;
        router.ip(&format!("link set lanslow up\nroute add {own}/{bits} dev lanslow\n"))?;
        Ok(wire)
    }

    /// See [`World::change_address`](crate::World::change_address).
    pub(crate) fn change_address(&mut self) -> Result<(), NetemError> {
        assert!(!self.nat.is_routed(), "a side with public hosts has no address to change");
        let old = self.outside();
        self.moved = !self.moved;
        let router = &self.routers[0].0;
        router.ip(&format!(
            "addr del {old}/24 dev wan\naddr add {}/24 dev wan\nroute replace default via 198.18.0.254\n",
            self.outside()
        ))?;
        router.forget_connections()?;
        self.load_rules()
    }
}

/// A cable from the bridge of a namespace to a device of another.
pub(crate) fn plug(at: &Namespace, port: &str, to: &Namespace, device: &str) -> Result<(), NetemError> {
    let bridge = if port.starts_with('h') { "lan" } else { "br0" };
    at.ip(&format!(
        "link add {port} type veth peer name {device} netns {}\nlink set {port} master {bridge}\nlink set {port} up\n",
        to.name()
    ))
}

/// Programs know the relay by its name, and ask nobody else for any.
pub(crate) fn names(machine: &Namespace) -> Result<(), NetemError> {
    machine.etc("hosts", &format!("127.0.0.1 localhost\n{RELAY_V4} {RELAY_HOST}\n{RELAY_V6} {RELAY_HOST}\n"))?;
    machine.etc("resolv.conf", "")
}
