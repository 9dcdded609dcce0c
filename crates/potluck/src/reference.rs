//! `docs/configuration.md`, made from the commands themselves: what is written there is what the program does.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};

use crate::command_line::Cli;

const HEAD: &str = "# Configuration\n\n\
    Every option of every command; this page is made from the program (`make snapshots`). `--json`, `--home`, `--no-mdns`, `--relay`,\n\
    `--discovery` and `--help` are options of all of them.\n\n\
    | variable | what |\n| --- | --- |\n\
    | `POTLUCK_HOME` | where keys, the swarm and the models are kept, as `--home` |\n\
    | `POTLUCK_DISK` | disk that fetched models may take, as `--disk` |\n\
    | `POTLUCK_OVERFLOW` | what becomes of a prompt that is too long, as `--overflow` |\n\
    | `POTLUCK_NO_MDNS` | `1`: as `--no-mdns` |\n\
    | `POTLUCK_RELAY` | the relay that helps where machines do not reach each other, or `none`, as `--relay` |\n\
    | `POTLUCK_DISCOVERY` | where peers are looked up in public: `dht`, `dht:HOST:PORT`, or the URL of a pkarr relay, as `--discovery` |\n\
    | `POTLUCK_ROOT`, `POTLUCK_ROOT_PASSPHRASE_FILE` | the swarm's root key where it lies elsewhere, and a file whose first line is its passphrase, as `--root` and `--passphrase-file` |\n\
    | `POTLUCK_INVITATION` | the line of `potluck join`, where no list of processes shows it |\n\
    | `POTLUCK_API_KEY` | the key that `potluck use` writes for other programs |\n\
    | `POTLUCK_UPSTREAM_KEY_FILE` | a file, as `--upstream-key-file` |\n\
    | `RUST_LOG` | what is logged, to stderr: `info`, `debug`, `potluck_net=debug` |\n\
    | `POTLUCK_LOG` | `json`: an object a line |\n\
    | `OTEL_EXPORTER_OTLP_ENDPOINT` | where traces go (OTLP over HTTP), such as `http://localhost:4318`; none are made without it. `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*`, `OTEL_SDK_DISABLED` and `OTEL_TRACES_EXPORTER=none` hold, too; no other protocol than `http/protobuf` is spoken |\n\
    | `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME` | Hugging Face's own: a token, another host, fetch nothing, where its cache is |\n\
    | `OLLAMA_MODELS` | Ollama's own: where its store is |\n";

fn page() -> String {
    let mut page = HEAD.to_owned();
    let mut command = Cli::command();
    command.build();
    command.get_subcommands().for_each(|command| section(&mut page, "potluck", command));
    page
}

fn section(page: &mut String, parents: &str, command: &Command) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{parents} {}", command.get_name());
    let children: Vec<_> = command.get_subcommands().filter(|child| !child.is_hide_set()).collect();
    if !children.is_empty() {
        return children.into_iter().for_each(|child| section(page, &name, child));
    }
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = write!(page, "\n## {name}\n\n{about}.\n");
    let common = ["json", "home", "no_mdns", "relay", "discovery", "help", "version"];
    let options = command.get_arguments().filter(|arg| !arg.is_hide_set() && !common.contains(&arg.get_id().as_str()));
    let rows: Vec<_> = options.map(row).collect();
    if !rows.is_empty() {
        let _ = write!(page, "\n| option | what | default |\n| --- | --- | --- |\n{}", rows.concat());
    }
}

fn row(arg: &Arg) -> String {
    let values: Vec<_> = arg.get_value_names().into_iter().flatten().map(ToString::to_string).collect();
    let value = if arg.get_action().takes_values() { values.join(" ") } else { String::new() };
    let name = match (arg.get_long(), arg.get_short()) {
        (Some(long), Some(short)) => format!("--{long}, -{short} {value}"),
        (Some(long), None) => format!("--{long} {value}"),
        _ => value.clone(),
    };
    let mut what = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
    let choices: Vec<_> = arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !choices.is_empty() && arg.get_action().takes_values() {
        let _ = write!(what, ": {}", choices.join(", "));
    }
    let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = if arg.get_action().takes_values() { default.join(", ") } else { String::new() };
    format!("| `{}` | {what} | {default} |\n", name.trim())
}

#[test]
fn the_reference_says_what_the_program_does() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    if std::env::var_os("TRYCMD").is_some_and(|value| value == "overwrite") {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page(), "docs/configuration.md is not what the program does: make snapshots");
}
