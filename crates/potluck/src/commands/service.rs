//! `potluck serve --install`: the system's own service manager keeps it running.
//!
//! What the service is started with is on its command line for all to see, and nothing there is secret: keys, grants and the
//! invitation that was used up lie in the home, in files of mode 600.

use std::{ffi::OsString, path::Path};

use clap::ValueEnum;
use serde_json::json;
use service_manager::{
    RestartPolicy, ServiceInstallCtx, ServiceLabel, ServiceLevel, ServiceManager, ServiceStartCtx, ServiceStopCtx,
    ServiceUninstallCtx,
};

use crate::{
    failure::Failure,
    home::{Home, Membership},
    screen::Screen,
};

/// What the service is called.
const NAME: &str = "potluck";

const NO_MDNS: &str = "--no-mdns";

const DISCOVERY: &str = "--discovery";

const RELAY: &str = "--relay";

/// Seconds before a service that has failed is started again.
const RESTART_SECONDS: u32 = 5;

/// Whose service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// The user's own: it runs while the user is logged in, or always with `loginctl enable-linger`
    User,
    /// The machine's: it needs root
    System,
}

/// Installs `potluck serve` with these arguments, and starts it.
pub(crate) fn install(home: &Home, screen: Screen, level: Level, mut args: Vec<OsString>) -> Result<(), Failure> {
    // What could not serve is not installed.
    Membership::open(home)?;
    // A service has an environment of its own.
    if home.reach.no_mdns && !args.iter().any(|arg| arg == NO_MDNS) {
        args.push(NO_MDNS.into());
    }
    if !args.iter().any(|arg| arg.to_string_lossy().starts_with(RELAY)) {
        let chosen = home.reach.relay.iter().flat_map(|choice| [RELAY.into(), choice.word().into()]);
        args.extend(chosen);
    }
    if let Some(at) = &home.reach.discovery
        && !args.iter().any(|arg| arg.to_string_lossy().starts_with(DISCOVERY))
    {
        args.extend([DISCOVERY.into(), at.to_string().into()]);
    }
    let manager = manager(level)?;
    let program = std::env::current_exe().map_err(|error| Failure::io("finding this program", &error))?;
    let folder = std::path::absolute(home.path("")).map_err(|error| Failure::io("finding the home", &error))?;
    let contents = cfg!(target_os = "linux").then(|| unit(level, &program, &args, &folder));
    let label = label();
    manager
        .install(ServiceInstallCtx {
            label: label.clone(),
            program,
            args,
            contents,
            username: None,
            working_directory: None,
            environment: Some(vec![("POTLUCK_HOME".into(), folder.display().to_string())]),
            autostart: true,
            restart_policy: RestartPolicy::OnFailure {
                delay_secs: Some(RESTART_SECONDS),
                max_retries: None,
                reset_after_secs: None,
            },
        })
        .map_err(|error| refused("installing the service", level, &error))?;
    manager.start(ServiceStartCtx { label }).map_err(|error| refused("starting the service", level, &error))?;
    if screen.json {
        return screen.object(&json!({ "installed": NAME }));
    }
    let user = if level == Level::User { " --user" } else { "" };
    screen.text(&format!("installed and started the service {NAME}\n"))?;
    screen.note(format!("its log: journalctl{user} -u {NAME} -f\ntake it away: potluck serve --uninstall"));
    Ok(())
}

/// Stops the service and takes it away. The home stays.
pub(crate) fn uninstall(screen: Screen, level: Level) -> Result<(), Failure> {
    let manager = manager(level)?;
    // One that does not run is taken away all the same.
    let _ = manager.stop(ServiceStopCtx { label: label() });
    let removed = manager.uninstall(ServiceUninstallCtx { label: label() });
    removed.map_err(|error| refused("taking the service away", level, &error))?;
    if screen.json {
        return screen.object(&json!({ "uninstalled": NAME }));
    }
    screen.text(&format!("took away the service {NAME}; keys and models stay\n"))
}

/// The arguments of this very command, without those that are for installing only.
pub(crate) fn own_arguments(all: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let (mut kept, mut all) = (Vec::new(), all.skip(1));
    while let Some(arg) = all.next() {
        let text = arg.to_string_lossy();
        match text.as_ref() {
            // Their values follow.
            "--join" | "--home" => drop(all.next()),
            "--json" => {}
            _ if ["--install", "--join=", "--home="].iter().any(|prefix| text.starts_with(prefix)) => {}
            _ => kept.push(arg),
        }
    }
    kept
}

fn manager(level: Level) -> Result<Box<dyn ServiceManager>, Failure> {
    let mut manager =
        <dyn ServiceManager>::native().map_err(|error| refused("finding a service manager", level, &error))?;
    let wanted = match level {
        Level::User => ServiceLevel::User,
        Level::System => ServiceLevel::System,
    };
    manager.set_level(wanted).map_err(|error| refused("choosing whose service it is", level, &error))?;
    Ok(manager)
}

fn label() -> ServiceLabel {
    ServiceLabel { qualifier: None, organization: None, application: NAME.into() }
}

fn refused(what: &str, level: Level, error: &std::io::Error) -> Failure {
    let hint = match level {
        Level::User => {
            "this needs systemd, launchd or Windows' own services, and a session of the user's: else `potluck serve` runs by itself"
        }
        Level::System => "run it as root, or leave out `=system`",
    };
    Failure::new("service", format!("{what}: {error}"), hint)
}

/// The unit of systemd: as any daemon's, without new privileges.
fn unit(level: Level, program: &Path, args: &[OsString], home: &Path) -> String {
    let words: Vec<_> =
        [program.as_os_str()].into_iter().chain(args.iter().map(OsString::as_os_str)).map(word).collect();
    let target = if level == Level::User { "default.target" } else { "multi-user.target" };
    let home = word(format!("POTLUCK_HOME={}", home.display()).as_ref());
    format!(
        "[Unit]\nDescription=Potluck: layers of a model, lent to a swarm\nAfter=network-online.target\nWants=network-online.target\n\n\
         [Service]\nExecStart={}\nEnvironment={home}\nRestart=on-failure\nRestartSec={RESTART_SECONDS}\nNoNewPrivileges=true\n\n\
         [Install]\nWantedBy={target}\n",
        words.join(" ")
    )
}

/// A word as systemd quotes it; see systemd.service(5), "Command lines".
fn word(text: &std::ffi::OsStr) -> String {
    let text = text.to_string_lossy();
    let escaped =
        text.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_started_with_what_was_typed_and_no_secret() {
        let typed = [
            "potluck",
            "--json",
            "serve",
            "--install=user",
            "--join",
            "ptl1secret",
            "--auto",
            "--home",
            "/x",
            "--memory",
            "4GB",
        ];
        let kept = own_arguments(typed.into_iter().map(OsString::from));
        assert_eq!(kept, ["serve", "--auto", "--memory", "4GB"]);
        let other = ["potluck", "serve", "--join=ptl1secret", "--install"];
        assert_eq!(own_arguments(other.into_iter().map(OsString::from)), ["serve"]);
    }

    #[test]
    fn words_cannot_leave_their_quotes() {
        assert_eq!(word("a b\"$HOME%i\\\n".as_ref()), r#""a b\"$$HOME%%i\\\n""#);
        let args = ["serve".into(), "--model".into(), "my model".into()];
        let unit = unit(Level::User, Path::new("/opt/my tools/potluck"), &args, Path::new("/home/me"));
        assert!(unit.contains("ExecStart=\"/opt/my tools/potluck\" \"serve\" \"--model\" \"my model\"\n"), "{unit}");
        assert!(unit.contains("WantedBy=default.target\n"), "{unit}");
    }
}
