//! Programs that people use, through a tunnel: curl, ssh, PostgreSQL.
//!
//! Where one of them is missing it says so and checks nothing; with `POTLUCK_SKIP_NOTHING`, as in CI, it fails.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![cfg(unix)]

mod pair;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use pair::{Exposed, forward, member, service, soon};
use potluck_tunnel::{Far, UdpTimes, socks};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
};

/// Where a program is; none, where nothing may be skipped, is a failure.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').map(PathBuf::from).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.map(|version| version.path().join("bin"));
    let found = folders.chain(versions).map(|folder| folder.join(name)).find(|file| file.is_file());
    if found.is_none() {
        assert!(std::env::var_os("POTLUCK_SKIP_NOTHING").is_none(), "there is no {name}, and nothing may be skipped");
        eprintln!("SKIPPED: there is no {name} here: scripts/setup installs it");
    }
    found
}

async fn output(command: &mut Command) -> Output {
    soon(command.stdin(Stdio::null()).kill_on_drop(true).output()).await.unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Waits until something listens there.
async fn listening(port: u16, child: &mut Child) {
    soon(async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn door(far: &Far) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(socks::serve(listener, far.clone(), UdpTimes::default()));
    (at, task)
}

#[tokio::test]
async fn curl_through_socks_with_names_that_the_far_side_resolves() {
    let Some(curl) = program("curl") else { return };
    let port = service(|mut socket| async move {
        let mut asked = vec![0; 4_096];
        let len = socket.read(&mut asked).await.unwrap();
        assert!(asked[..len].starts_with(b"GET /page HTTP/1.1\r\n"), "{:?}", String::from_utf8_lossy(&asked[..len]));
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";
        socket.write_all(answer).await.unwrap();
    })
    .await;
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let (at, _door) = door(&peer.seen_by(&member(1).await)).await;
    let get = |url: String| {
        let mut command = Command::new(&curl);
        command.args(["--silent", "--show-error", "--max-time", "60", "--socks5-hostname", &at.to_string(), &url]);
        command.env_remove("http_proxy").env_remove("no_proxy").env_remove("NO_PROXY");
        command
    };
    let got = output(&mut get(format!("http://localhost:{port}/page"))).await;
    assert_eq!(text(&got), "hello\n");
    let refused = output(&mut get(format!("http://localhost:{}/page", free_port().await))).await;
    // curl's number for what a proxy refuses.
    assert_eq!(refused.status.code(), Some(97), "{}", text(&refused));
    let unknown = output(&mut get("http://no.such.host.invalid/".into())).await;
    assert_eq!(unknown.status.code(), Some(97), "{}", text(&unknown));
}

async fn sshd(dir: &Path, sshd: &Path, keygen: &Path, port: u16) -> Child {
    for name in ["host", "user"] {
        let made = output(Command::new(keygen).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(name))).await;
        assert!(made.status.success(), "{}", text(&made));
    }
    std::fs::copy(dir.join("user.pub"), dir.join("authorized_keys")).unwrap();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized_keys\nPidFile none\n\
         StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n",
        dir.display()
    );
    std::fs::write(dir.join("config"), config).unwrap();
    // It separates its privileges there.
    let _ = std::fs::create_dir_all("/run/sshd");
    let mut child = Command::new(sshd)
        .args(["-D", "-e", "-f"])
        .arg(dir.join("config"))
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    listening(port, &mut child).await;
    child
}

#[tokio::test]
async fn ssh_through_a_port() {
    let (Some(server), Some(client), Some(keygen)) = (program("sshd"), program("ssh"), program("ssh-keygen")) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let port = free_port().await;
    let _sshd = sshd(dir.path(), &server, &keygen, port).await;
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let (at, _forwarding) = forward(&peer.seen_by(&member(1).await), port).await;
    let ssh = |command: &str| {
        let mut ssh = Command::new(&client);
        ssh.args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "-i"]).arg(dir.path().join("user"));
        ssh.args(["-p", &at.port().to_string(), "127.0.0.1", command]);
        ssh
    };
    let said = output(&mut ssh("echo through; exit 7")).await;
    assert_eq!((text(&said).as_str(), said.status.code()), ("through\n", Some(7)));
    // Half a close: what is read to its end there is answered here.
    let mut counting = ssh("wc -c").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut stdin = counting.stdin.take().unwrap();
    let writing = tokio::spawn(async move {
        stdin.write_all(&vec![b'x'; 8 << 20]).await.unwrap();
    });
    let counted = soon(counting.wait_with_output()).await.unwrap();
    writing.await.unwrap();
    assert_eq!(String::from_utf8_lossy(&counted.stdout).trim(), (8 << 20).to_string());
}

#[tokio::test]
async fn postgresql_through_a_port() {
    let (Some(initdb), Some(postgres), Some(psql)) = (program("initdb"), program("postgres"), program("psql")) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // It does not run as root: as whoever it was installed for.
    let root = rustix::process::geteuid().is_root();
    let as_user = |program: &Path| {
        let mut command = Command::new(if root { Path::new("setpriv") } else { program });
        if root {
            command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]).arg(program);
        }
        command.current_dir(dir.path());
        command
    };
    if root {
        let owned = output(Command::new("chown").arg("postgres").arg(dir.path())).await;
        assert!(owned.status.success(), "{}", text(&owned));
    }
    let args = ["--auth=trust", "--username=potluck", "--no-sync", "--encoding=UTF8", "--no-locale", "--pgdata"];
    let made = output(as_user(&initdb).args(args).arg(&data)).await;
    assert!(made.status.success(), "{}", text(&made));
    let port = free_port().await;
    let mut serving = as_user(&postgres)
        .arg("-D")
        .arg(&data)
        .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-F", "-c", "unix_socket_directories="])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    listening(port, &mut serving).await;
    let peer = Exposed::new(20, &[&port.to_string()]).await;
    let (at, _forwarding) = forward(&peer.seen_by(&member(1).await), port).await;
    let query = "SELECT count(*), sum(length(repeat('x', n))) FROM generate_series(1, 2000) AS n";
    let place = format!("host=127.0.0.1 port={} user=potluck dbname=postgres sslmode=disable", at.port());
    let ask = |query: &str| {
        let mut command = Command::new(&psql);
        command.args(["--no-psqlrc", "--tuples-only", "--no-align", &place, "--command", query]);
        command
    };
    let answered = soon(async {
        loop {
            let answered = output(&mut ask(query)).await;
            // It listens before it takes anybody.
            if !text(&answered).contains("starting up") {
                return answered;
            }
        }
    })
    .await;
    assert_eq!(text(&answered), "2000|2001000\n");
    let rows = output(&mut ask("SELECT repeat('y', 1000) FROM generate_series(1, 5000)")).await;
    assert_eq!(rows.stdout.len(), 5_000 * 1_001);
}
