//! `potluck use`: what a program that people already have needs to ask a gateway of ours.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    home::Home,
    models::Models,
    screen::{Screen, table},
};

#[derive(Debug, Args)]
pub(crate) struct Use {
    /// Which; without one, all are listed
    #[arg(value_enum)]
    tool: Option<Tool>,
    /// Where the gateway answers
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7575")]
    url: String,
    /// What the gateway calls its model [default: the only model that this machine knows]
    #[arg(long, short, value_name = "M")]
    model: Option<String>,
    /// Write the tool's own file, where it has none yet, instead of printing it
    #[arg(long, requires = "tool")]
    write: bool,
}

/// A program that can ask a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tool {
    Aider,
    ClaudeCode,
    Codex,
    Continue,
    Curl,
    Js,
    Langchain,
    OpenWebui,
    Opencode,
    Python,
}

/// What a tool needs.
struct Setup {
    /// Below the user's home, where it is a file of the tool's.
    file: Option<&'static str>,
    text: String,
}

/// What is written where a key is expected and none is set.
const NO_KEY: &str = "unused";

impl Use {
    pub(crate) fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let Some(tool) = self.tool else { return list(screen) };
        let model = match self.model {
            Some(model) => model,
            None => Models::open(home)?.find_or_only(None, screen)?.name,
        };
        let url = self.url.trim_end_matches('/');
        let key = std::env::var("POTLUCK_API_KEY").unwrap_or_else(|_| NO_KEY.into());
        let Setup { file, text } = tool.setup(url, &model, &key);
        let path = file.and_then(|file| Some(std::env::home_dir()?.join(file)));
        if self.write {
            return write(screen, tool, path, &text);
        }
        if screen.json {
            return screen.object(&json!({ "tool": tool.name(), "file": path, "text": text }));
        }
        if let Some(path) = path {
            screen.note(format!("in {}, or let `potluck use {} --write` write it:", path.display(), tool.name()));
        }
        screen.text(&text)
    }
}

fn list(screen: Screen) -> Result<(), Failure> {
    let tools = Tool::value_variants();
    if screen.json {
        return screen.object(&json!({ "tools": tools.iter().map(|tool| tool.name()).collect::<Vec<_>>() }));
    }
    let rows = tools.iter().map(|tool| vec![format!("potluck use {}", tool.name()), tool.what().to_owned()]);
    screen.text(&table(&rows.collect::<Vec<_>>()))
}

/// Never over a file that is there: it is the user's.
fn write(screen: Screen, tool: Tool, path: Option<PathBuf>, text: &str) -> Result<(), Failure> {
    use std::{fs, io::Write as _};
    let Some(path) = path else {
        let message = format!("{} reads no file of its own", tool.name());
        return Err(Failure::usage(message, format!("potluck use {}", tool.name())));
    };
    let io = |error| Failure::io(path.display(), &error);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(&path) {
        Ok(mut file) => file.write_all(text.as_bytes()).map_err(io)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let hint = format!("add to it what `potluck use {}` prints", tool.name());
            return Err(Failure::new("exists", format!("{} is there already", path.display()), hint));
        }
        Err(error) => return Err(io(error)),
    }
    if screen.json {
        return screen.object(&json!({ "tool": tool.name(), "file": path }));
    }
    screen.note(format!("wrote {}", path.display()));
    Ok(())
}

impl Tool {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn what(self) -> &'static str {
        match self {
            Self::Aider => "pair programming in the terminal: three variables",
            Self::ClaudeCode => "Anthropic's coding agent: ~/.claude/settings.json",
            Self::Codex => "OpenAI's coding agent: ~/.codex/config.toml",
            Self::Continue => "the editors' assistant: ~/.continue/config.yaml",
            Self::Curl => "a request by hand",
            Self::Js => "JavaScript: the package openai",
            Self::Langchain => "Python: LangChain's ChatOpenAI",
            Self::OpenWebui => "a chat in the browser: two variables",
            Self::Opencode => "a coding agent: ~/.config/opencode/opencode.json",
            Self::Python => "Python: the package openai",
        }
    }

    fn setup(self, url: &str, model: &str, key: &str) -> Setup {
        // A name may hold what a language takes for its own: all that is quoted below is quoted by JSON's rules.
        let [quoted_url, quoted_model, quoted_key] = [&format!("{url}/v1"), model, key].map(|text| json!(text));
        let ask = "Why is the sky blue?";
        let pretty = |value: Value| format!("{value:#}\n");
        let printed = |text: String| Setup { file: None, text };
        match self {
            Self::Curl => {
                let body = json!({ "model": model, "messages": [{ "role": "user", "content": ask }] }).to_string();
                let key = if key == NO_KEY {
                    String::new()
                } else {
                    format!(" -H {}", shell(&format!("Authorization: Bearer {key}")))
                };
                printed(format!("curl {}{key} -d {}\n", shell(&format!("{url}/v1/chat/completions")), shell(&body)))
            }
            Self::Python => printed(format!(
                "from openai import OpenAI\n\n\
                 client = OpenAI(base_url={quoted_url}, api_key={quoted_key})\n\
                 stream = client.chat.completions.create(\n    model={quoted_model},\n    \
                 messages=[{{\"role\": \"user\", \"content\": \"{ask}\"}}],\n    stream=True,\n)\n\
                 for chunk in stream:\n    print(chunk.choices[0].delta.content or \"\", end=\"\", flush=True)\nprint()\n"
            )),
            Self::Langchain => printed(format!(
                "from langchain_openai import ChatOpenAI\n\n\
                 model = ChatOpenAI(base_url={quoted_url}, api_key={quoted_key}, model={quoted_model})\n\
                 for chunk in model.stream(\"{ask}\"):\n    print(chunk.content, end=\"\", flush=True)\nprint()\n"
            )),
            Self::Js => printed(format!(
                "import OpenAI from \"openai\";\n\n\
                 const client = new OpenAI({{ baseURL: {quoted_url}, apiKey: {quoted_key} }});\n\
                 const stream = await client.chat.completions.create({{\n  model: {quoted_model},\n  \
                 messages: [{{ role: \"user\", content: \"{ask}\" }}],\n  stream: true,\n}});\n\
                 for await (const chunk of stream) process.stdout.write(chunk.choices[0].delta.content ?? \"\");\n\
                 console.log();\n"
            )),
            Self::OpenWebui => printed(format!(
                "export OPENAI_API_BASE_URL={}\nexport OPENAI_API_KEY={}\nopen-webui serve\n",
                shell(&format!("{url}/v1")),
                shell(key)
            )),
            Self::Aider => printed(format!(
                "export OPENAI_API_BASE={}\nexport OPENAI_API_KEY={}\naider --model {}\n",
                shell(&format!("{url}/v1")),
                shell(key),
                shell(&format!("openai/{model}"))
            )),
            Self::ClaudeCode => Setup {
                file: Some(".claude/settings.json"),
                text: pretty(json!({ "env": {
                    "ANTHROPIC_BASE_URL": url,
                    "ANTHROPIC_AUTH_TOKEN": key,
                    "ANTHROPIC_MODEL": model,
                    "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
                    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                } })),
            },
            Self::Codex => Setup {
                file: Some(".codex/config.toml"),
                text: format!(
                    "model = {quoted_model}\nmodel_provider = \"potluck\"\nweb_search = \"disabled\"\n\n\
                     [model_providers.potluck]\nname = \"Potluck\"\nbase_url = {quoted_url}\nwire_api = \"responses\"\n{}",
                    // Codex reads keys from the environment only.
                    if key == NO_KEY { "" } else { "env_key = \"POTLUCK_API_KEY\"\n" }
                ),
            },
            Self::Continue => Setup {
                file: Some(".continue/config.yaml"),
                text: format!(
                    "name: potluck\nversion: 0.0.1\nschema: v1\nmodels:\n  - name: potluck\n    provider: openai\n    \
                     model: {quoted_model}\n    apiBase: {quoted_url}\n    apiKey: {quoted_key}\n    roles: [chat, edit, apply]\n"
                ),
            },
            Self::Opencode => Setup {
                file: Some(".config/opencode/opencode.json"),
                text: pretty(json!({
                    "$schema": "https://opencode.ai/config.json",
                    "provider": { "potluck": {
                        "npm": "@ai-sdk/openai-compatible",
                        "name": "Potluck",
                        "options": { "baseURL": format!("{url}/v1"), "apiKey": key },
                        "models": { model: { "name": model } },
                    } },
                    "model": format!("potluck/{model}"),
                })),
            },
        }
    }
}

/// A word for a shell.
fn shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        let name = "it's \"mine\"\n$(x)";
        let quoted = json!(name).to_string();
        for tool in Tool::value_variants() {
            let text = tool.setup("http://127.0.0.1:7575", name, "k").text;
            let safe = match tool {
                Tool::Aider => text.contains(&shell(&format!("openai/{name}"))),
                // The whole body is one word of the shell.
                Tool::Curl => text.contains(r"it'\''s \"),
                // It asks the gateway for names.
                Tool::OpenWebui => !text.contains("mine"),
                Tool::Opencode => text.contains(&json!(format!("potluck/{name}")).to_string()),
                _ => text.contains(&quoted),
            };
            assert!(safe, "{text}");
        }
        assert_eq!(shell("a'b"), r"'a'\''b'");
    }
}
