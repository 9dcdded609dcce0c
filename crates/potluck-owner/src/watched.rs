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

    /// Longest that each question on a bus may take to be answered: whoever comes back meanwhile waits as long.
    const PATIENCE: Duration = Duration::from_millis(250);

    /// In what GNOME's sessions are inhibited: from being idle.
    const GNOME_IDLE: u32 = 8;

    /// Whether the window in front fills the screen, or a program keeps the session from being idle, as players of films do. What cannot be
    /// asked says nothing.
    pub(crate) fn is_watched() -> bool {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let bus = |builder: zbus::Result<Builder<'_>>| builder?.method_timeout(PATIENCE).build();
        let is_full = is_set("DISPLAY") && is_full_screen(x11rb::connect(None)).unwrap_or(false);
        is_full
            || is_set("DBUS_SESSION_BUS_ADDRESS") && bus(Builder::session()).is_ok_and(|bus| is_inhibited(&bus))
            || bus(Builder::system()).and_then(|bus| is_kept_awake(&bus)).unwrap_or(false)
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

    /// As the desktop knows it: GNOME, or those that have the older interface of freedesktop.org (KDE, Xfce, MATE).
    fn is_inhibited(bus: &Connection) -> bool {
        let gnome = || {
            let (name, path) = ("org.gnome.SessionManager", "/org/gnome/SessionManager");
            bus.call_method(Some(name), path, Some(name), "IsInhibited", &GNOME_IDLE)?.body().deserialize()
        };
        let others = || {
            let (name, path) = ("org.freedesktop.PowerManagement", "/org/freedesktop/PowerManagement/Inhibit");
            let interface = "org.freedesktop.PowerManagement.Inhibit";
            bus.call_method(Some(name), path, Some(interface), "HasInhibit", &())?.body().deserialize()
        };
        let or_not = |answer: zbus::Result<bool>| answer.unwrap_or(false);
        or_not(gnome()) || or_not(others())
    }

    /// As logind knows it: a lock on `idle`, as `systemd-inhibit` takes it.
    fn is_kept_awake(bus: &Connection) -> zbus::Result<bool> {
        let (name, path, interface) =
            ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager");
        let reply = bus.call_method(Some(name), path, Some(interface), "ListInhibitors", &())?;
        let inhibitors: Vec<Inhibitor> = reply.body().deserialize()?;
        let blocks = |mode: &str| ["block", "block-weak"].contains(&mode);
        Ok(inhibitors.iter().any(|(what, .., mode, _, _)| blocks(mode) && what.split(':').any(|it| it == "idle")))
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
                // Killed, a screen would leave its socket behind, which says that there is one.
                let pid = self.0.id().to_string();
                let _ = Command::new("kill").args(["-TERM", &pid]).status();
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
            let args = ["-displayfd", "1", "-screen", "0", "320x240x24", "-nolisten", "tcp", "-noreset"];
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
            let bus = Builder::address(address.as_str()).unwrap().build().unwrap();
            assert!(is_kept_awake(&bus).is_err(), "nobody is there to ask");
            let cases = [
                (vec![], false),
                (vec![lock("sleep", "delay"), lock("handle-lid-switch", "block")], false),
                (vec![lock("idle", "delay")], false),
                (vec![lock("sleep", "delay"), lock("sleep:idle", "block")], true),
                (vec![lock("idle", "block-weak")], true),
            ];
            let at = || Builder::address(address.as_str()).unwrap();
            for (inhibitors, is_awake) in cases {
                let manager = Manager(inhibitors.clone());
                let logind = at().serve_at("/org/freedesktop/login1", manager).unwrap();
                // The one before it may not be gone yet.
                let logind = logind.allow_name_replacements(true).replace_existing_names(true);
                let _logind = logind.name("org.freedesktop.login1").unwrap().build().unwrap();
                assert_eq!(is_kept_awake(&bus).unwrap(), is_awake, "{inhibitors:?}");
            }

            assert!(!is_inhibited(&bus), "no desktop is there to ask");
            let others = at().serve_at("/org/freedesktop/PowerManagement/Inhibit", Others).unwrap();
            let others = others.name("org.freedesktop.PowerManagement").unwrap().build().unwrap();
            assert!(is_inhibited(&bus));
            drop(others.close());
            let gnome = at().serve_at("/org/gnome/SessionManager", Gnome).unwrap();
            let _gnome = gnome.name("org.gnome.SessionManager").unwrap().build().unwrap();
            assert!(is_inhibited(&bus));
        }

        /// What GNOME's session would say, where it is kept from being idle and from nothing else.
        struct Gnome;

        #[zbus::interface(name = "org.gnome.SessionManager")]
        impl Gnome {
            fn is_inhibited(&self, flags: u32) -> bool {
                flags & GNOME_IDLE != 0
            }
        }

        /// What other desktops would.
        struct Others;

        #[zbus::interface(name = "org.freedesktop.PowerManagement.Inhibit")]
        impl Others {
            fn has_inhibit(&self) -> bool {
                true
            }
        }
    }
}
