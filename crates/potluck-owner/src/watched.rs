//! Whether something is watched that nobody touches: a film, a talk. On Linux; elsewhere nothing is seen of it.

#[cfg(target_os = "linux")]
pub(crate) use linux::is_watched;

/// Nothing is seen of it here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_watched() -> bool {
    false
}

#[cfg(target_os = "linux")]
mod linux {
    use std::time::Duration;

    use x11rb::{
        connection::Connection as _,
        errors::ReplyError,
        protocol::xproto::{AtomEnum, ConnectionExt as _},
        rust_connection::{ConnectError, RustConnection},
    };
    use zbus::blocking::{Connection, connection::Builder};

    /// Longest that logind may take to answer: whoever comes back meanwhile waits as long.
    const PATIENCE: Duration = Duration::from_millis(250);

    /// Whether the window in front fills the screen, or a program keeps the session from being idle, as players of films do. What cannot be
    /// asked says nothing.
    pub(crate) fn is_watched() -> bool {
        let display = || x11rb::connect(None);
        let is_full = std::env::var_os("DISPLAY").is_some() && is_full_screen(display()).unwrap_or(false);
        is_full || Builder::system().and_then(|bus| is_kept_awake(bus)).unwrap_or(false)
    }

    #[derive(Debug, thiserror::Error)]
    enum Unasked {
        #[error(transparent)]
        Connect(#[from] ConnectError),
        #[error(transparent)]
        Connection(#[from] x11rb::errors::ConnectionError),
        #[error(transparent)]
        Reply(#[from] ReplyError),
    }

    /// As window managers tell it: Extended Window Manager Hints, `_NET_ACTIVE_WINDOW` and `_NET_WM_STATE`.
    fn is_full_screen(display: Result<(RustConnection, usize), ConnectError>) -> Result<bool, Unasked> {
        let (x, screen) = display?;
        let Some(root) = x.setup().roots.get(screen).map(|screen| screen.root) else { return Ok(false) };
        let [active, state, full] = [b"_NET_ACTIVE_WINDOW".as_slice(), b"_NET_WM_STATE", b"_NET_WM_STATE_FULLSCREEN"]
            .map(|name| x.intern_atom(false, name));
        let (active, state, full) = (active?.reply()?.atom, state?.reply()?.atom, full?.reply()?.atom);
        let property = |window, name, kind: AtomEnum| -> Result<Vec<u32>, Unasked> {
            let values = x.get_property(false, window, name, kind, 0, 64)?.reply()?;
            Ok(values.value32().into_iter().flatten().collect())
        };
        let Some(window) = property(root, active, AtomEnum::WINDOW)?.first().copied().filter(|window| *window != 0)
        else {
            return Ok(false);
        };
        Ok(property(window, state, AtomEnum::ATOM)?.contains(&full))
    }

    /// Of an inhibitor logind says: what, who, why, mode, user, process.
    type Inhibitor = (String, String, String, String, u32, u32);

    /// As logind knows it: a lock on `idle`, which desktops take for a film's player.
    fn is_kept_awake(bus: Builder<'_>) -> zbus::Result<bool> {
        let bus: Connection = bus.method_timeout(PATIENCE).build()?;
        let (name, path, interface) =
            ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager");
        let reply = bus.call_method(Some(name), path, Some(interface), "ListInhibitors", &())?;
        let inhibitors: Vec<Inhibitor> = reply.body().deserialize()?;
        Ok(inhibitors.iter().any(|(what, .., mode, _, _)| mode == "block" && what.split(':').any(|it| it == "idle")))
    }

    #[cfg(test)]
    mod tests {
        use std::{
            io::{BufRead as _, BufReader},
            process::{Child, Command, Stdio},
        };

        use x11rb::{
            COPY_DEPTH_FROM_PARENT,
            protocol::xproto::{CreateWindowAux, PropMode, WindowClass},
            wrapper::ConnectionExt as _,
        };

        use super::*;

        /// A program that is ended with the test.
        struct Server(Child);

        impl Drop for Server {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }

        /// Starts it, and the line that it says where it is reached with. None where there is no such program, and nothing has to be there.
        fn start(program: &str, args: &[&str]) -> Option<(Server, String)> {
            let spawned = Command::new(program).args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
            let mut child = match spawned {
                Ok(child) => Server(child),
                Err(error) if std::env::var_os("POTLUCK_SKIP_NOTHING").is_some() => panic!("{program}: {error}"),
                Err(error) => {
                    eprintln!("SKIPPED: {program}: {error}");
                    return None;
                }
            };
            let mut line = String::new();
            BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
            Some((child, line.trim().to_owned()))
        }

        #[test]
        fn a_window_that_fills_the_screen_is_seen_where_it_is_in_front() {
            let args = ["-displayfd", "1", "-screen", "0", "320x240x24", "-nolisten", "tcp"];
            let Some((_server, number)) = start("Xvfb", &args) else { return };
            let display = format!(":{number}");
            let looks = || is_full_screen(x11rb::connect(Some(&display))).unwrap();
            assert!(!looks(), "there is no window");
            let (x, screen) = x11rb::connect(Some(&display)).unwrap();
            let root = x.setup().roots[screen].root;
            let atom = |name: &[u8]| x.intern_atom(false, name).unwrap().reply().unwrap().atom;
            let (active, state) = (atom(b"_NET_ACTIVE_WINDOW"), atom(b"_NET_WM_STATE"));
            let full = [atom(b"_NET_WM_STATE_ABOVE"), atom(b"_NET_WM_STATE_FULLSCREEN")];
            let windows = [(); 2].map(|()| {
                let window = x.generate_id().unwrap();
                let (class, aux) = (WindowClass::INPUT_OUTPUT, CreateWindowAux::new());
                x.create_window(COPY_DEPTH_FROM_PARENT, window, root, 0, 0, 9, 9, 0, class, 0, &aux).unwrap();
                window
            });
            let sets = |window, name, kind: AtomEnum, values: &[u32]| {
                x.change_property32(PropMode::REPLACE, window, name, kind, values).unwrap().check().unwrap();
            };
            sets(windows[0], state, AtomEnum::ATOM, &full);
            sets(root, active, AtomEnum::WINDOW, &[windows[1]]);
            assert!(!looks(), "another one is in front");
            sets(root, active, AtomEnum::WINDOW, &[windows[0]]);
            assert!(looks());
            sets(windows[0], state, AtomEnum::ATOM, &full[..1]);
            assert!(!looks());
            sets(root, active, AtomEnum::WINDOW, &[0]);
            assert!(!looks(), "none is in front");
        }

        /// What logind would say.
        struct Manager(Vec<Inhibitor>);

        #[zbus::interface(name = "org.freedesktop.login1.Manager")]
        impl Manager {
            fn list_inhibitors(&self) -> Vec<Inhibitor> {
                self.0.clone()
            }
        }

        #[test]
        fn a_program_that_keeps_the_session_awake_is_seen() {
            let Some((_server, address)) = start("dbus-daemon", &["--session", "--nofork", "--print-address"]) else {
                return;
            };
            let lock = |what: &str, mode: &str| {
                (what.to_owned(), "player".to_owned(), "film".to_owned(), mode.to_owned(), 1000, 77)
            };
            let looks = || is_kept_awake(Builder::address(address.as_str()).unwrap());
            assert!(looks().is_err(), "nobody is there to ask");
            let cases = [
                (vec![], false),
                (vec![lock("sleep", "delay"), lock("handle-lid-switch", "block")], false),
                (vec![lock("idle", "delay")], false),
                (vec![lock("sleep", "delay"), lock("sleep:idle", "block")], true),
            ];
            for (inhibitors, is_awake) in cases {
                let bus = Builder::address(address.as_str()).unwrap().name("org.freedesktop.login1").unwrap();
                // The one before it may not be gone yet.
                let bus = bus.allow_name_replacements(true).replace_existing_names(true);
                let manager = Manager(inhibitors.clone());
                let _logind = bus.serve_at("/org/freedesktop/login1", manager).unwrap().build().unwrap();
                assert_eq!(looks().unwrap(), is_awake, "{inhibitors:?}");
            }
        }
    }
}
