//! Kinds of NAT and firewall, as rules of nftables that were each measured (`tests/rules.rs`).

use std::fmt;

/// What stands between a host and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Nat {
    /// Nothing: a public address.
    Open,
    /// A public address behind a stateful firewall.
    Firewall,
    /// One outside port for each inside port, open to everybody once used.
    FullCone,
    /// The same, open to the addresses that were written to.
    AddressRestricted,
    /// The same, open to the addresses and ports that were written to: the usual router.
    PortRestricted,
    /// Another outside port for each destination.
    Symmetric,
    /// A usual router behind a carrier's port-restricted one.
    Carrier,
    /// A usual router behind a carrier's symmetric one.
    CarrierSymmetric,
    /// UDP vanishes.
    UdpBlocked,
    /// UDP is refused, and said to be.
    UdpRejected,
    /// Nothing but TCP to port 443.
    OnlyTcp443,
    /// IPv6 alone, behind a stateful firewall.
    Ipv6Only,
    /// Port-restricted, with an outside address that changes: [`Side::change_address`](crate::Side::change_address).
    Changing,
    /// Full cone, and hosts behind it reach each other by their outside addresses.
    Hairpin,
    /// Masquerading without a rule for what is addressed to the router: ports move when a peer's packet is early.
    Leaky,
}

/// How a NAT looks to a peer that wants to reach through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Reached by anybody.
    Open,
    /// By the addresses that were written to.
    Address,
    /// By the addresses and ports that were written to.
    Port,
    /// Its outside ports cannot be known before.
    Symmetric,
    /// By nobody.
    Blocked,
}

impl Class {
    /// Whether two hosts can be expected to reach each other without a relay.
    pub fn meets(self, other: Self) -> bool {
        use Class::{Address, Blocked, Open, Port, Symmetric};
        match (self.min(other), self.max(other)) {
            (_, Blocked) => false,
            (Open | Address, _) | (Port, Port) => true,
            (Port | Symmetric | Blocked, _) => false,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "O",
            Self::Address => "A",
            Self::Port => "P",
            Self::Symmetric => "S",
            Self::Blocked => "B",
        })
    }
}

impl Nat {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Open,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
        Self::Carrier,
        Self::UdpBlocked,
        Self::OnlyTcp443,
        Self::Ipv6Only,
        Self::Changing,
        Self::Firewall,
        Self::CarrierSymmetric,
        Self::UdpRejected,
        Self::Hairpin,
        Self::Leaky,
    ];

    /// The ten of the matrix that peers are tested with: those before the further ones.
    pub const MATRIX: &[Self] = Self::ALL.split_at(10).0;

    /// How it looks to a peer.
    pub fn class(self) -> Class {
        match self {
            Self::Open | Self::FullCone | Self::Hairpin => Class::Open,
            Self::AddressRestricted => Class::Address,
            Self::PortRestricted | Self::Firewall | Self::Carrier | Self::Ipv6Only | Self::Changing | Self::Leaky => {
                Class::Port
            }
            Self::Symmetric | Self::CarrierSymmetric => Class::Symmetric,
            Self::UdpBlocked | Self::UdpRejected | Self::OnlyTcp443 => Class::Blocked,
        }
    }

    /// Whether a host behind this one and one behind the other can be expected to reach each other without a relay.
    pub fn meets(self, other: Self) -> bool {
        // One internet each: only a relay has both.
        let same_family = (self == Self::Ipv6Only) == (other == Self::Ipv6Only);
        // Ports that move when the other is early: sometimes they do, which is no promise.
        let promised = self != Self::Leaky && other != Self::Leaky;
        same_family && promised && self.class().meets(other.class())
    }

    /// Whether its hosts have public addresses.
    pub(crate) fn is_routed(self) -> bool {
        matches!(self, Self::Open | Self::Firewall | Self::Ipv6Only)
    }

    /// The router that stands between this one and the internet, if another does.
    pub(crate) fn carrier(self) -> Option<Self> {
        match self {
            Self::Carrier => Some(Self::PortRestricted),
            Self::CarrierSymmetric => Some(Self::Symmetric),
            _ => None,
        }
    }

    /// The rules of its router, whose outside address is `wan`. Loading them again forgets what the old ones knew.
    pub(crate) fn rules(self, wan: &str) -> String {
        let (family, translated) = match self {
            Self::Open => return String::new(),
            Self::Ipv6Only => ("ip6", String::new()),
            Self::Firewall => ("ip", String::new()),
            Self::FullCone => ("ip", mapped("iifname \"wan\" meta l4proto udp dnat to udp dport map @m", "", wan)),
            Self::AddressRestricted => {
                ("ip", mapped("iifname \"wan\" udp dport . ip saddr @a dnat to udp dport map @m", "", wan))
            }
            Self::PortRestricted | Self::Changing => {
                let known = "iifname \"wan\" udp dport . ip saddr . udp sport @p dnat to udp dport map @m";
                ("ip", mapped(known, "", wan))
            }
            Self::Hairpin => {
                let inward = format!("ip daddr {wan} meta l4proto udp dnat to udp dport map @m");
                let from_lan = "ip saddr 192.168.0.0/16 oifname \"lan*\" ct status dnat";
                let back = format!(
                    "{from_lan} meta l4proto udp update @m {{ udp sport : ip saddr . udp sport }}\n{from_lan} snat to {wan}"
                );
                ("ip", mapped(&inward, &back, wan))
            }
            Self::Symmetric => ("ip", masqueraded("masquerade fully-random")),
            // The rest masquerade; so does the home router of a carrier's customer.
            _ => ("ip", masqueraded("masquerade")),
        };
        format!("{}{translated}", base(family, self))
    }
}

/// What every router has, the leaky one excepted: its own ports are closed, and answers come back in.
fn base(family: &str, nat: Nat) -> String {
    // Without this, an early packet of a peer would reach the router itself, and move the port that it is meant for.
    let own = match nat {
        Nat::Leaky => "",
        // What remains is how neighbours find each other.
        Nat::Ipv6Only => {
            "iifname \"wan\" ct state established,related accept\niifname \"wan\" meta l4proto { tcp, udp } drop\n"
        }
        _ => "iifname \"wan\" ct state established,related accept\niifname \"wan\" drop\n",
    };
    let forward = match nat {
        Nat::Symmetric | Nat::Firewall | Nat::Ipv6Only | Nat::Leaky | Nat::Carrier | Nat::CarrierSymmetric => {
            "iifname \"wan\" drop"
        }
        Nat::UdpBlocked => "meta l4proto udp drop",
        Nat::UdpRejected => "meta l4proto udp reject with icmp type admin-prohibited",
        Nat::OnlyTcp443 => "iifname \"lan*\" oifname \"wan\" tcp dport 443 accept\ndrop",
        _ => "",
    };
    format!(
        "table {family} f\ndelete table {family} f\ntable {family} f {{\n\
         chain input {{\ntype filter hook input priority 0; policy accept\n{own}}}\n\
         chain forward {{\ntype filter hook forward priority 0; policy accept\n\
         ct state established,related accept\n{forward}\n}}\n}}\n"
    )
}

/// A NAT with one outside port for each inside one; its sets hold what the inside host has written to.
fn mapped(inward: &str, back: &str, wan: &str) -> String {
    format!(
        "table ip n\ndelete table ip n\ntable ip n {{\n\
         map m {{\ntype inet_service : ipv4_addr . inet_service\nflags dynamic,timeout\ntimeout 300s\nsize 65536\n}}\n\
         set a {{\ntype inet_service . ipv4_addr\nflags dynamic,timeout\ntimeout 300s\nsize 65536\n}}\n\
         set p {{\ntype inet_service . ipv4_addr . inet_service\nflags dynamic,timeout\ntimeout 300s\nsize 65536\n}}\n\
         chain pre {{\ntype nat hook prerouting priority dstnat; policy accept\n{inward}\n}}\n\
         chain post {{\ntype nat hook postrouting priority srcnat; policy accept\n{back}\n\
         oifname \"wan\" meta l4proto udp update @m {{ udp sport : ip saddr . udp sport }}\n\
         oifname \"wan\" meta l4proto udp update @a {{ udp sport . ip daddr }}\n\
         oifname \"wan\" meta l4proto udp update @p {{ udp sport . ip daddr . udp dport }}\n\
         oifname \"wan\" snat to {wan}\n}}\n}}\n"
    )
}

/// The kernel's own NAT. The first chain is empty and needed: without it, nothing that comes back is translated.
fn masqueraded(how: &str) -> String {
    format!(
        "table ip n\ndelete table ip n\ntable ip n {{\n\
         chain pre {{\ntype nat hook prerouting priority dstnat; policy accept\n}}\n\
         chain post {{\ntype nat hook postrouting priority srcnat; policy accept\noifname \"wan\" {how}\n}}\n}}\n"
    )
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::Firewall => "firewall",
            Self::FullCone => "full-cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
            Self::Carrier => "carrier",
            Self::CarrierSymmetric => "carrier-symmetric",
            Self::UdpBlocked => "udp-blocked",
            Self::UdpRejected => "udp-rejected",
            Self::OnlyTcp443 => "only-tcp-443",
            Self::Ipv6Only => "ipv6-only",
            Self::Changing => "changing",
            Self::Hairpin => "hairpin",
            Self::Leaky => "leaky",
        })
    }
}
