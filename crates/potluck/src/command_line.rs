//! The `potluck` command: arguments, and the command that they name.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{
    CommandFactory, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};

use potluck_engine::memory;

use crate::{
    args::Reach,
    commands as c,
    failure::Failure,
    home::Home,
    screen::Screen,
    telemetry::{Telemetry, log_tasks},
};

/// One private AI out of the devices that people already own
#[derive(Debug, Parser)]
#[command(name = "potluck", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// Machine-readable output: one JSON object on stdout, errors included
    #[arg(long, global = true)]
    json: bool,
    /// Where keys, the swarm and the models are kept [default: the platform's data directory]
    #[arg(long, global = true, env = "POTLUCK_HOME", value_name = "DIR", hide_env_values = true)]
    home: Option<PathBuf>,
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer one prompt
    Run(c::run::Run),
    /// Talk with a model
    Chat(c::chat::Chat),
    /// Start peers on this machine and keep them
    Up(c::up::Up),
    /// Serve the APIs that clients already speak: OpenAI's, Anthropic's, Ollama's
    Gateway(c::gateway::Gateway),
    /// Lend this machine to a swarm
    Serve(c::serve::Serve),
    /// Join a swarm with the line that its owner passed on, and lend this machine to it
    Join(c::join::Join),
    /// On which terms this machine is lent, and what is lent to whom
    Terms(c::terms::TermsCommand),
    /// Take this machine back: sessions go on at others, and its memory is free within a second
    Pause(c::terms::PauseCommand),
    /// Lend this machine again
    Resume(c::terms::ResumeCommand),
    /// Make a swarm, invite machines to it, join one
    #[command(subcommand)]
    Swarm(c::swarm::Swarm),
    /// Add, list, show, plan and remove models
    #[command(subcommand)]
    Model(c::model::Model),
    /// Who is there, and what they offer
    Peers(c::peers::Peers),
    /// Help the machines of a swarm that do not reach each other: pass on what they alone can read
    Relay(c::relay::Relay),
    /// Reach a service of a peer by its key, or let members reach some of this machine
    Tunnel(c::tunnel::Tunnel),
    /// Open a door to a peer's network: a SOCKS proxy, or ranges of addresses
    Connect(c::connect::Connect),
    /// Measure this machine, the links of a route, and where the time of a token goes
    Bench(c::bench::Bench),
    /// What works here, what does not, and what to do about it
    Doctor(c::doctor::Doctor),
    /// Print what another program needs to ask a gateway: an editor, an agent, a script
    Use(c::tools::Use),
    /// Print what a shell needs to complete commands: source <(potluck completions bash)
    Completions(c::shell::Completions),
    /// Write the manual's pages
    Man(c::shell::Man),
    /// The engine's process: started by peers
    #[command(hide = true)]
    Engine,
}

/// Does what this process's arguments say.
pub(crate) fn run_command_line() -> ExitCode {
    memory::forbid_dumps();
    // A file that a pipe's reader closed is an error like any other, not a signal: Rust's default.
    let args: Vec<OsString> = std::env::args_os().collect();
    let wants_json = args.iter().any(|arg| arg == "--json");
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &args, wants_json),
    };
    if matches!(cli.command, Command::Engine) {
        // Before any thread: the sandbox binds the calling thread and its children only.
        potluck_engine::child_main();
    }
    let telemetry = Telemetry::start();
    let screen = Screen::new(cli.json);
    let done = match cli.command {
        // Neither needs a home.
        Command::Completions(command) => command.run(Cli::command(), screen),
        Command::Man(command) => command.run(Cli::command(), screen),
        command => Home::open(cli.home, cli.reach).and_then(|home| run(&home, command, screen)),
    };
    drop(telemetry);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(screen.json);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// One thread: each hand-over between threads costs a token 30 to 50 microseconds.
fn run(home: &Home, command: Command, screen: Screen) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("starting the runtime", &error))?;
    runtime.spawn(log_tasks());
    runtime.block_on(async {
        match command {
            Command::Run(command) => command.run(home, screen).await,
            Command::Chat(command) => command.run(home, screen).await,
            Command::Up(command) => command.run(home, screen).await,
            Command::Gateway(command) => command.run(home, screen).await,
            Command::Serve(command) => command.run(home, screen).await,
            Command::Join(command) => command.run(home, screen).await,
            Command::Terms(command) => command.run(home, screen),
            Command::Pause(command) => command.run(home, screen).await,
            Command::Resume(command) => command.run(home, screen).await,
            Command::Swarm(command) => command.run(home, screen).await,
            Command::Model(command) => command.run(home, screen).await,
            Command::Bench(command) => command.run(home, screen).await,
            Command::Peers(command) => command.run(home, screen).await,
            Command::Relay(command) => command.run(home, screen).await,
            Command::Tunnel(command) => command.run(home, screen).await,
            Command::Connect(command) => command.run(home, screen).await,
            Command::Doctor(command) => command.run(home, screen).await,
            Command::Use(command) => command.run(home, screen),
            Command::Completions(_) | Command::Man(_) | Command::Engine => Ok(()),
        }
    })
}

fn usage(error: &clap::Error, args: &[OsString], json: bool) -> ExitCode {
    let meant = meant(error, args);
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) || !json {
        // `potluck` alone: what there is.
        match args.len() {
            0 | 1 => eprint!("{}", Cli::command().render_help()),
            _ => drop(error.print()),
        }
        if let Some(command) = meant {
            eprintln!("hint: {command}");
        }
        return ExitCode::from(error.exit_code() as u8);
    }
    let text = error.render().to_string();
    // What comes after the first empty line is the usage, and tips for people.
    let lines: Vec<_> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let message = lines.join(" ");
    let message = message.trim_start_matches("error: ");
    let failure = Failure::usage(message, meant.as_deref().unwrap_or("potluck --help"));
    failure.print(true);
    ExitCode::from(failure.exit_code())
}

/// Which command was meant by a word that is none here: one of a group's, such as `model pull`, or what neighbours call it.
fn meant(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let ContextValue::String(word) = error.get(ContextKind::InvalidSubcommand)? else { return None };
    // Within a group other words are meant than here.
    args.get(1).filter(|first| *first == word.as_str())?;
    let neighbours = [
        ("ps", "peers"),
        ("status", "peers"),
        ("nodes", "peers"),
        ("ls", "model list"),
        ("launch", "use"),
        ("start", "serve"),
        ("node", "serve"),
    ];
    if let Some((_, command)) = neighbours.iter().find(|(theirs, _)| theirs == word) {
        return Some(format!("potluck {command}"));
    }
    let groups = Cli::command();
    let mut groups = groups.get_subcommands();
    groups.find_map(|group| {
        let command = group.find_subcommand(word)?;
        Some(format!("potluck {} {}", group.get_name(), command.get_name()))
    })
}
