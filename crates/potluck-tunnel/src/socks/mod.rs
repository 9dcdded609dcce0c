//! A door for programs that speak SOCKS 5 (RFC 1928): CONNECT and UDP ASSOCIATE, names resolved by the far side.

mod codec;
mod datagrams;

use std::{net::SocketAddr, time::Duration};

use potluck_wire::{Dial, NotReached, Service};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tracing::{debug, info};

use crate::{
    Far, TunnelError, UdpTimes,
    copy::{Free, copy, prepare, reset},
    forward::accept,
};
use codec::{Command, Reply, request};
use datagrams::associate;

/// Longest that a program may take to say what it wants.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// Serves SOCKS at that listener. Never returns.
///
/// There is no password: whoever reaches the listener reaches what this machine's grant allows. So it belongs on loopback.
pub async fn serve(listener: TcpListener, far: Far, times: UdpTimes) {
    accept(listener, |socket| connection(socket, far.clone(), times)).await
}

async fn connection(mut socket: TcpStream, far: Far, times: UdpTimes) {
    let (command, host, port) = match timeout(REQUEST_MAX, request(&mut socket)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => {
            debug!(%error, "a program spoke no SOCKS 5");
            if let Some(reply) = error.reply() {
                let _ = answer(&mut socket, reply, None).await;
            }
            return;
        }
        Err(_) => return debug!("a program did not say in time what it wants"),
    };
    match command {
        Command::Connect => connect(socket, far, Dial { service: Service::Tcp(port), host }).await,
        Command::Associate => associate(socket, far, times).await,
    }
}

async fn connect(mut socket: TcpStream, far: Far, dial: Dial) {
    match far.open(&dial).await {
        Ok(opened) => {
            let answered = prepare(&socket).is_ok() && answer(&mut socket, Reply::Done, None).await;
            if answered {
                copy(socket, opened.send, opened.recv, Free).await;
            }
        }
        Err(error) => {
            info!(%error, "a program did not reach what it asked for");
            if !answer(&mut socket, reply_to(&error), None).await {
                reset(socket);
            }
        }
    }
}

/// Writes a reply, and at which address this door listens for the program, where it does.
async fn answer(socket: &mut TcpStream, reply: Reply, at: Option<SocketAddr>) -> bool {
    let bytes = codec::reply(reply, at);
    matches!(timeout(REQUEST_MAX, socket.write_all(&bytes)).await, Ok(Ok(())))
}

fn reply_to(error: &TunnelError) -> Reply {
    match error {
        TunnelError::NotReached { why, .. } => match why {
            NotReached::NotAllowed | NotReached::NotExposed | NotReached::Spent => Reply::NotAllowed,
            NotReached::NoRoute => Reply::NoNetwork,
            NotReached::NoName => Reply::NoHost,
            NotReached::Refused => Reply::Refused,
            NotReached::Late => Reply::Late,
            _ => Reply::Failed,
        },
        TunnelError::Away { .. } | TunnelError::Lost(_) => Reply::NoNetwork,
        _ => Reply::Failed,
    }
}
