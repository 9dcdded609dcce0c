//! Where a gateway listens, and who may ask.

use std::{fs, net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use potluck_gateway::{Access, Granted, KEY_BYTES_MIN, Overflow};
use potluck_grant::Gate;
use tokio::net::TcpListener;

use crate::{
    failure::Failure,
    home::{Counted, Home, Identity, Membership, Role, meter},
};

/// Bytes of a file of keys: more are refused.
const KEYS_BYTES_MAX: u64 = 64 << 10;

/// Where a gateway listens, unless the user says otherwise.
const DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7575);

/// Where a gateway listens, and who may ask.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Gateway")]
pub(crate) struct DoorArgs {
    /// Where to listen [default: 127.0.0.1:7575, which only this machine reaches]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Answers at once; other requests wait their turn
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) slots: u16,
    /// A file with an API key in each line, beside those that the swarm grants (`potluck swarm grant --api-key`) [default: on this machine alone, whoever
    /// reaches the address may ask]
    #[arg(long, value_name = "FILE", env = "POTLUCK_API_KEY_FILE", hide_env_values = true)]
    api_key_file: Option<PathBuf>,
    /// Another name by which requests may call the model (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Vec<String>,
    /// Let nobody fetch or remove models through the gateway: Ollama's /api/pull and /api/delete
    #[arg(long)]
    pub(crate) no_pull: bool,
    /// What becomes of a prompt that is longer than the context, where its request does not say
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OverflowArg::Error, env = "POTLUCK_OVERFLOW", hide_env_values = true)]
    pub(crate) overflow: OverflowArg,
}

/// What becomes of a prompt that is longer than the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OverflowArg {
    /// An error says by how much
    Error,
    /// The oldest messages are left out
    Truncate,
}

impl From<OverflowArg> for Overflow {
    fn from(arg: OverflowArg) -> Self {
        match arg {
            OverflowArg::Error => Self::Error,
            OverflowArg::Truncate => Self::Truncate,
        }
    }
}

/// Each connection is a handle, and most systems give a process few unless it asks for those that it may have.
#[cfg(unix)]
pub(crate) fn take_handles() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, what there is has to do.
    let _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit });
}

#[cfg(not(unix))]
pub(crate) fn take_handles() {}

impl DoorArgs {
    /// Listens, before anything loads: an address that is taken is told at once.
    pub(crate) async fn listen(&self) -> Result<TcpListener, Failure> {
        take_handles();
        let at = self.address();
        TcpListener::bind(at).await.map_err(|error| {
            let hint = "choose another address: --listen 127.0.0.1:0 takes any free port";
            Failure { hint: hint.into(), ..Failure::io(format!("listening at {at}"), &error) }
        })
    }

    /// The same; where no address was asked for and the usual one is taken, at any free port.
    pub(crate) async fn listen_somewhere(&self) -> Result<TcpListener, Failure> {
        match self.listen().await {
            Err(_) if self.listen.is_none() => {
                let any = SocketAddr::new(DEFAULT.ip(), 0);
                TcpListener::bind(any).await.map_err(|error| Failure::io(format!("listening at {any}"), &error))
            }
            listener => listener,
        }
    }

    /// Who may ask: whoever has one of these keys, or one that the swarm has granted, as the gate says, which is to be told what is taken back.
    pub(crate) fn access(&self, home: &Home) -> Result<(Access, Option<Gate>), Failure> {
        let at = self.address();
        let keys = self.keys()?;
        let membership = Membership::find(home)?;
        if keys.is_empty() && membership.is_none() && !at.ip().is_loopback() {
            let message = format!("{at} is reached by others, and there are no API keys");
            return Err(Failure::usage(message, "put a long random key into a file: --api-key-file FILE"));
        }
        let access = Access::new(keys, at.ip().is_loopback());
        let Some(membership) = membership else { return Ok((access, None)) };
        let own = Identity::open(home, Role::Client)?.key.peer_id();
        let gate = membership.gate(home)?;
        let granted = Granted::new(gate.clone(), own, meter(home, Counted::Gateway)?);
        Ok((access.or_granted(granted), Some(gate)))
    }

    fn address(&self) -> SocketAddr {
        self.listen.unwrap_or(DEFAULT)
    }

    fn keys(&self) -> Result<Vec<String>, Failure> {
        let Some(path) = &self.api_key_file else { return Ok(Vec::new()) };
        let unreadable = |error| Failure::io(path.display(), &error);
        if fs::metadata(path).map_err(unreadable)?.len() > KEYS_BYTES_MAX {
            return Err(Failure::usage(format!("{} is no file of keys", path.display()), "a key in each line"));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let keys: Vec<_> =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        if keys.is_empty() || keys.iter().any(|key| key.len() < KEY_BYTES_MIN) {
            let message = format!("{}: no key, or one of fewer than {KEY_BYTES_MIN} characters", path.display());
            return Err(Failure::usage(message, "a long random key in each line, such as of `openssl rand -hex 24`"));
        }
        Ok(keys.into_iter().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        door: DoorArgs,
    }

    fn parse(args: &[&str]) -> DoorArgs {
        Cli::try_parse_from([&["potluck"], args].concat()).unwrap().door
    }

    #[test]
    fn strangers_are_kept_out_by_a_key_of_some_length() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("home")), crate::args::Reach::default()).unwrap();
        assert!(parse(&[]).access(&home).is_ok(), "this machine only");
        assert_eq!(parse(&["--listen", "0.0.0.0:0"]).access(&home).unwrap_err().code, "usage");
        let file = dir.path().join("keys");
        let path = file.display().to_string();
        let with = |text: &str| {
            fs::write(&file, text).unwrap();
            parse(&["--listen", "0.0.0.0:0", "--api-key-file", &path]).access(&home).map(drop)
        };
        assert!(with("# for the lab\n0123456789abcdef\n").is_ok());
        assert_eq!(with("short\n").unwrap_err().code, "usage");
        assert_eq!(with("\n").unwrap_err().code, "usage");
    }
}
