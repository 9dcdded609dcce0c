//! What goes on at a machine, as far as terms ask for it. Looking may take a moment: it is for a thread of its own.

use std::{
    collections::HashSet,
    env,
    path::Path,
    time::{Duration, Instant},
};

use starship_battery::{Manager, State, units::ratio::percent};
use sysinfo::{Components, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::{Battery, Moment, Terms, terminals, watched::is_watched};

/// How often what changes slowly, or takes work to see, is looked at.
const SLOWLY: Duration = Duration::from_secs(2);

/// What is watched is watched for so long without a key or a movement: nobody is there any more after that.
const WATCHED_MAX: Duration = Duration::from_secs(4 * 3_600);

/// What was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Whether somebody is there.
    pub presence: Presence,
    /// Per cent of all processors that other programs use; none: not looked at, or not known yet.
    pub others_cpu: Option<f32>,
    /// What it runs on, as far as it was looked at.
    pub power: Power,
    /// Degrees Celsius of the hottest part that has a thermometer.
    pub temperature: Option<f32>,
    /// When.
    pub moment: Moment,
}

/// Whether somebody uses a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// There is no screen and no terminal.
    Nobody,
    /// Somebody did, so long ago.
    Somebody {
        /// Since the last key, or movement.
        since_input: Duration,
    },
    /// Nobody has touched anything for as long as that; but a film fills the screen, or something else keeps it awake.
    Watches {
        /// Since the last key, or movement.
        since_input: Duration,
    },
    /// There is a screen, and no way to know what goes on in front of it: why.
    Unseen(String),
}

/// What a machine runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Power {
    /// It does not drain a battery, or nobody asked.
    Mains,
    /// It drains a battery that holds so many per cent.
    Battery(u8),
    /// It cannot be known: why.
    Unseen(String),
}

/// Looks.
#[derive(Debug)]
pub struct Senses {
    system: System,
    components: Components,
    batteries: Result<Manager, String>,
    /// Milliseconds that this program and those that it started had computed, and when.
    own: Option<(Instant, u64)>,
    /// What was seen last of what is looked at slowly.
    last: Option<Slow>,
}

#[derive(Debug, Clone)]
struct Slow {
    at: Instant,
    /// For which terms.
    terms: Terms,
    others_cpu: Option<f32>,
    power: Power,
    temperature: Option<f32>,
    is_watched: bool,
}

impl Default for Senses {
    fn default() -> Self {
        let batteries = Manager::new().map_err(|error| error.to_string());
        Self { system: System::new(), components: Components::new(), batteries, own: None, last: None }
    }
}

impl Senses {
    /// Sees what those terms ask for. It may be called several times a second.
    pub fn look(&mut self, terms: &Terms) -> Seen {
        let Slow { others_cpu, power, temperature, is_watched, .. } = self.slow(terms);
        // Last, for it is what must not be late.
        let presence = match terms.idle() {
            Some(idle) => presence(screen(), terminals::since_input(), idle),
            None => Presence::Nobody,
        };
        let presence = if is_watched { presence.watching() } else { presence };
        Seen { presence, others_cpu, power, temperature, moment: Moment::now() }
    }

    fn slow(&mut self, terms: &Terms) -> Slow {
        if let Some(last) = self.last.as_ref().filter(|last| last.at.elapsed() < SLOWLY && last.terms == *terms) {
            return last.clone();
        }
        let others_cpu = terms.others_cpu.and_then(|_| self.others_cpu());
        let power = if terms.battery == Battery::Any { Power::Mains } else { self.power() };
        let temperature = terms.temperature.and_then(|_| self.temperature());
        let is_watched = terms.idle_s.is_some() && is_watched();
        let slow = Slow { at: Instant::now(), terms: terms.clone(), others_cpu, power, temperature, is_watched };
        self.last = Some(slow.clone());
        slow
    }

    /// What all compute, without this program and those that it started.
    fn others_cpu(&mut self) -> Option<f32> {
        self.system.refresh_cpu_usage();
        // Threads are no processes: what they compute is their process's already.
        let kind = ProcessRefreshKind::nothing().with_cpu().without_tasks();
        self.system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
        let (now, own) = (Instant::now(), self.own_ms());
        let (then, before) = self.own.replace((now, own))?;
        let passed = now.duration_since(then).as_secs_f32() * self.system.cpus().len() as f32;
        let share = own.saturating_sub(before) as f32 / 10.0 / passed.max(0.01);
        Some((self.system.global_cpu_usage() - share).clamp(0.0, 100.0))
    }

    fn own_ms(&self) -> u64 {
        let mut own = HashSet::from([Pid::from_u32(std::process::id())]);
        loop {
            let is_new = |(pid, process): &(&Pid, &sysinfo::Process)| {
                !own.contains(*pid) && process.parent().is_some_and(|parent| own.contains(&parent))
            };
            let new: Vec<Pid> = self.system.processes().iter().filter(is_new).map(|(pid, _)| *pid).collect();
            if new.is_empty() {
                break;
            }
            own.extend(new);
        }
        let of = |pid: &Pid| self.system.process(*pid).map_or(0, sysinfo::Process::accumulated_cpu_time);
        own.iter().map(of).sum()
    }

    /// What cannot be read is not taken for mains: the owner counts on it.
    fn power(&self) -> Power {
        let drained = || {
            let mut least = None;
            for battery in self.batteries.as_ref().map_err(String::clone)?.batteries().map_err(|e| e.to_string())? {
                let battery = battery.map_err(|error| error.to_string())?;
                if matches!(battery.state(), State::Discharging | State::Empty) {
                    let charge = battery.state_of_charge().get::<percent>().round() as u8;
                    least = Some(least.map_or(charge, |least: u8| least.min(charge)));
                }
            }
            Ok(least)
        };
        match drained() {
            Ok(None) => Power::Mains,
            Ok(Some(charge)) => Power::Battery(charge),
            Err(error) => Power::Unseen(error),
        }
    }

    fn temperature(&mut self) -> Option<f32> {
        self.components.refresh(true);
        let parts = self.components.iter().filter_map(|part| Some((part.label(), part.temperature()?)));
        hottest(&parts.collect::<Vec<_>>())
    }
}

impl Presence {
    /// The same, where something is watched.
    fn watching(self) -> Self {
        match self {
            Self::Somebody { since_input } if since_input < WATCHED_MAX => Self::Watches { since_input },
            other => other,
        }
    }
}

/// The hottest of the parts that compute, where these are known by their names; else of all. Chips that watch over a board have inputs
/// that nothing is connected to, and that say anything.
fn hottest(parts: &[(&str, f32)]) -> Option<f32> {
    const COMPUTE: [&str; 8] = ["core", "cpu", "package", "tctl", "tdie", "gpu", "edge", "junction"];
    let computes = |label: &str| COMPUTE.iter().any(|name| label.to_ascii_lowercase().contains(name));
    let is_plausible = |degrees: f32| (-40.0..=125.0).contains(&degrees);
    let plausible = parts.iter().filter(|(_, degrees)| is_plausible(*degrees));
    let (known, others): (Vec<&(&str, f32)>, Vec<_>) = plausible.partition(|(label, _)| computes(label));
    let those = if known.is_empty() { others } else { known };
    those.into_iter().map(|(_, degrees)| *degrees).max_by(f32::total_cmp)
}

/// `screen`: since when nobody has used the screen, where there is one; `terminals`: the same of terminals.
fn presence(screen: Option<Result<Duration, String>>, terminals: Option<Duration>, idle: Duration) -> Presence {
    match (screen, terminals) {
        (None, None) => Presence::Nobody,
        (Some(Err(error)), terminals) if terminals.is_none_or(|since| since >= idle) => Presence::Unseen(error),
        (screen, terminals) => {
            let since = screen.and_then(Result::ok).into_iter().chain(terminals).min();
            since.map_or(Presence::Nobody, |since_input| Presence::Somebody { since_input })
        }
    }
}

/// How long nobody has used the screen, where there is one.
fn screen() -> Option<Result<Duration, String>> {
    if !has_screen() {
        return None;
    }
    // X within Wayland sees what is typed into X programs alone.
    if cfg!(target_os = "linux") && has_wayland() && !is_session_of("wayland") {
        return Some(Err("the screen is Wayland's, and XDG_SESSION_TYPE does not say so".into()));
    }
    Some(system_idle_time::get_idle_time().map_err(|error| error.to_string()))
}

fn is_session_of(kind: &str) -> bool {
    env::var("XDG_SESSION_TYPE").is_ok_and(|session| session == kind)
}

/// Whether somebody may sit in front of a screen: also where this program was started without it.
fn has_screen() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    is_set("DISPLAY") || has_wayland() || has_socket(Path::new("/tmp/.X11-unix"), "X") || has_graphical_session()
}

fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty())
}

fn has_wayland() -> bool {
    let folder = env::var_os("XDG_RUNTIME_DIR");
    is_set("WAYLAND_DISPLAY") || folder.is_some_and(|folder| has_socket(Path::new(&folder), "wayland-"))
}

fn has_socket(folder: &Path, prefix: &str) -> bool {
    let names = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_str().is_some_and(|name| name.starts_with(prefix)))
}

/// Whether logind knows of somebody at a screen, whoever that is: a service of the system sees no other sign of it.
fn has_graphical_session() -> bool {
    let entries = Path::new("/run/systemd/sessions").read_dir().into_iter().flatten().flatten();
    let is_one = |text: String| {
        let has = |line: &str| text.lines().any(|other| other == line);
        has("CLASS=user") && ["TYPE=x11", "TYPE=wayland", "TYPE=mir"].into_iter().any(has)
    };
    entries.into_iter().any(|entry| std::fs::read_to_string(entry.path()).is_ok_and(is_one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Preset;

    const IDLE: Duration = Duration::from_secs(300);

    #[test]
    fn whoever_was_last_counts_at_a_screen_or_a_terminal() {
        let [short, long] = [10, 1_000].map(Duration::from_secs);
        let somebody = |since_input| Presence::Somebody { since_input };
        assert_eq!(presence(None, None, IDLE), Presence::Nobody);
        assert_eq!(presence(Some(Ok(long)), Some(short), IDLE), somebody(short));
        assert_eq!(presence(Some(Ok(short)), Some(long), IDLE), somebody(short));
        assert_eq!(presence(None, Some(long), IDLE), somebody(long));
        assert_eq!(presence(Some(Ok(long)), None, IDLE), somebody(long));
        // Who is seen at a terminal is there, whatever a screen tells; who is not may be.
        assert_eq!(presence(Some(Err("mute".into())), Some(short), IDLE), somebody(short));
        assert_eq!(presence(Some(Err("mute".into())), Some(long), IDLE), Presence::Unseen("mute".into()));
        assert_eq!(presence(Some(Err("mute".into())), None, IDLE), Presence::Unseen("mute".into()));
    }

    #[test]
    fn whoever_watches_something_is_there_for_as_long_as_a_film_may_take() {
        let somebody = |since_input| Presence::Somebody { since_input };
        assert_eq!(somebody(IDLE).watching(), Presence::Watches { since_input: IDLE });
        assert_eq!(somebody(WATCHED_MAX).watching(), somebody(WATCHED_MAX));
        assert_eq!(Presence::Nobody.watching(), Presence::Nobody);
        assert_eq!(Presence::Unseen("mute".into()).watching(), Presence::Unseen("mute".into()));
    }

    #[test]
    fn what_nobody_asked_for_is_not_looked_at() {
        let seen = Senses::default().look(&Terms::default());
        let asked = (seen.others_cpu, seen.power, seen.temperature);
        assert_eq!((seen.presence, asked), (Presence::Nobody, (None, Power::Mains, None)));
    }

    /// Hundredths of a second that this process has computed, all its threads together.
    fn own_ticks() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        [11, 12].map(|at: usize| fields[at].parse::<u64>().unwrap()).iter().sum()
    }

    #[test]
    fn the_parts_that_compute_are_the_ones_that_count() {
        let board =
            [("nct6775 AUXTIN0", 119.0), ("coretemp Core 0", 61.0), ("coretemp Package id 0", 64.0), ("nvme", 40.0)];
        assert_eq!(hottest(&board), Some(64.0));
        assert_eq!(hottest(&[("acpitz temp1", 51.0), ("iwlwifi", 200.0)]), Some(51.0));
        assert_eq!(hottest(&[("acpitz temp1", f32::NAN)]), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_this_program_computes_is_not_others() {
        let (mut senses, terms) = (Senses::default(), Preset::Gentle.terms(2));
        assert_eq!(senses.others_cpu(), None, "of a moment nothing is known");
        let (_, before) = senses.own.unwrap();
        let whole_before = own_ticks();
        let until = Instant::now() + 2 * sysinfo::MINIMUM_CPU_UPDATE_INTERVAL;
        let mut turns = 0_u64;
        while Instant::now() < until {
            turns = std::hint::black_box(turns + 1);
        }
        let others = senses.look(&terms).others_cpu.unwrap();
        assert!((0.0..=100.0).contains(&others), "{others} % after {turns} turns");
        // One processor was busy all the time, with this: what the system says of the whole process, no more and no less.
        let (_, own) = senses.own.unwrap();
        let (own, whole) = ((own - before) as f64, (own_ticks() - whole_before) as f64 * 10.0);
        assert!(whole > 0.0 && (own - whole).abs() <= 0.2 * whole + 40.0, "{own} ms of {whole}");
        // What is seen slowly is not looked at again at once, unless something else is asked for.
        assert_eq!(senses.look(&terms).others_cpu, Some(others));
        assert_eq!(senses.look(&Terms { others_cpu: None, ..terms }).others_cpu, None);
    }
}
