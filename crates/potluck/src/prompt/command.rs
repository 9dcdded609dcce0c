//! The commands of a conversation: `/help` and its kin.

use std::{fs, path::Path};

use potluck_client::Message;
use serde::{Deserialize, Serialize};

use crate::{
    failure::{Failure, OrFail},
    home::write_private,
    screen::{Screen, size},
    talk::{Asked, Parked, Talk},
};

/// Bytes of a saved conversation. A larger file is not loaded.
const SAVED_BYTES_MAX: u64 = 64 << 20;

const HELP: &str = "\
/help                this list
/clear               forget the conversation, not the system's words
/system [TEXT]       what the model is told first; nothing takes it back
/set [NAME VALUE]    temperature, top_k, top_p, min_p, typical_p, repeat_penalty, presence_penalty,
                     frequency_penalty, seed, max_tokens; nothing shows them
/save FILE           keep the conversation
/park FILE           the same, and what the machines have computed for it, for up to 7 days
/load FILE           go on with one that was kept
/route               who answers, over which layers
/quit                leave (or Ctrl-D)
a \\ at the end of a line goes on with the next; so does everything between \"\"\" and \"\"\"";

/// What comes after a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The next turn.
    Stay,
    /// The end.
    Leave,
}

/// Does what a line that begins with `/` says.
pub(super) async fn obey(line: &str, screen: Screen, talk: &mut Talk, asked: &mut Asked) -> Result<Next, Failure> {
    let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let argument = argument.trim();
    match command {
        "/help" | "/?" => screen.note(HELP),
        "/clear" => talk.conversation.clear(),
        "/system" => talk.conversation.system(argument),
        "/set" => screen.note(set(argument, asked)?),
        "/save" => save(argument, talk.conversation.messages())?,
        "/park" => park(argument, screen, talk).await?,
        "/load" => go_on(load(named(argument, "/load")?)?, screen, talk).await?,
        "/route" => screen.note(talk.show_route()),
        "/quit" | "/exit" | "/bye" => return Ok(Next::Leave),
        _ => return Err(Failure::new("bad_request", format!("there is no command {command}"), "/help lists them")),
    }
    Ok(Next::Stay)
}

/// Changes a parameter; all of them, as they are now.
fn set(argument: &str, asked: &mut Asked) -> Result<String, Failure> {
    if let Some((name, value)) = argument.split_once(char::is_whitespace) {
        assign(asked, name, value.trim()).ok_or_else(|| {
            let message = format!("`{argument}` sets nothing");
            Failure::new("bad_request", message, "/help lists the names; a value is a number")
        })?;
    } else if !argument.is_empty() {
        return Err(Failure::new("bad_request", format!("{argument} needs a value"), format!("/set {argument} 0.5")));
    }
    let p = &asked.params;
    let max_tokens = asked.max_tokens.map_or("none".to_owned(), |n| n.to_string());
    Ok(format!(
        "temperature {} top_k {} top_p {} min_p {} typical_p {} repeat_penalty {} presence_penalty {} \
         frequency_penalty {} seed {} max_tokens {max_tokens}",
        p.temperature,
        p.top_k,
        p.top_p,
        p.min_p,
        p.typical_p,
        p.repeat_penalty,
        p.presence_penalty,
        p.frequency_penalty,
        p.seed,
    ))
}

fn assign(asked: &mut Asked, name: &str, value: &str) -> Option<()> {
    let params = &mut asked.params;
    let number = || value.parse::<f32>().ok();
    match name {
        "temperature" => params.temperature = number()?,
        "top_k" => params.top_k = value.parse().ok()?,
        "top_p" => params.top_p = number()?,
        "min_p" => params.min_p = number()?,
        "typical_p" => params.typical_p = number()?,
        "repeat_penalty" => params.repeat_penalty = number()?,
        "presence_penalty" => params.presence_penalty = number()?,
        "frequency_penalty" => params.frequency_penalty = number()?,
        "seed" => params.seed = value.parse().ok()?,
        "max_tokens" => asked.max_tokens = if value == "none" { None } else { Some(value.parse().ok()?) },
        _ => return None,
    }
    Some(())
}

fn save(path: &str, messages: &[Message]) -> Result<(), Failure> {
    let path = named(path, "/save")?;
    let text = serde_json::to_string_pretty(messages).or_fail("internal", "report this")?;
    fs::write(path, text + "\n").map_err(|error| Failure::io(path.display(), &error))
}

/// What a file of a conversation holds.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Kept<P = Parked> {
    /// As `/save` writes it.
    Words(Vec<Message>),
    /// As `/park` does.
    Parked { messages: Vec<Message>, parked: P },
}

/// Keeps the conversation, and has the machines keep what they hold of it.
async fn park(argument: &str, screen: Screen, talk: &mut Talk) -> Result<(), Failure> {
    let path = named(argument, "/park")?;
    let write = |kept: &Kept| {
        let text = serde_json::to_string_pretty(kept).or_fail("internal", "report this")?;
        // What is in it may open what the machines keep.
        write_private(path, &(text + "\n"))
    };
    let messages = talk.conversation.messages().to_vec();
    // The words first: they are there, whatever becomes of the rest.
    write(&Kept::Words(messages.clone()))?;
    let Some(parked) = talk.park().await? else {
        screen.note(
            "the words are kept; what was computed for them is not: no machine of a swarm has it, one keeps nothing, \
             or it was kept a moment ago",
        );
        return Ok(());
    };
    let (positions, machines, bytes) = (parked.positions(), parked.machines(), size(parked.bytes));
    write(&Kept::Parked { messages, parked })?;
    screen.note(format!(
        "{positions} tokens are kept by {machines} machines, {bytes}, encrypted, for up to 7 days; the key is in {}",
        path.display()
    ));
    Ok(())
}

/// Goes on with a conversation that was kept.
pub(crate) async fn go_on(kept: Kept, screen: Screen, talk: &mut Talk) -> Result<(), Failure> {
    match kept {
        Kept::Words(messages) => talk.conversation.set_messages(messages),
        Kept::Parked { messages, parked } => {
            talk.conversation.set_messages(messages);
            let (held, all) = (talk.take_up(&parked).await?, parked.positions());
            screen.note(match held {
                0 => format!("what was computed of it is not there any more: its {all} tokens are evaluated again"),
                held => format!("{held} of its {all} tokens need not be evaluated again"),
            });
        }
    }
    Ok(())
}

/// What such a file holds.
pub(crate) fn load(path: &Path) -> Result<Kept, Failure> {
    let unreadable = |error| Failure::io(path.display(), &error);
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > SAVED_BYTES_MAX {
        let message = format!("{} has {bytes} bytes; the limit is {SAVED_BYTES_MAX}", path.display());
        return Err(Failure::new("bad_request", message, "load a smaller one"));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    serde_json::from_str(&text).or_fail("bad_request", "load what /save or /park wrote")
}

fn named<'a>(path: &'a str, command: &str) -> Result<&'a Path, Failure> {
    match path {
        "" => Err(Failure::new("bad_request", format!("{command} needs a file"), format!("{command} talk.json"))),
        path => Ok(Path::new(path)),
    }
}

#[cfg(test)]
mod tests {
    use potluck_chain::sample::SamplingParams;

    use super::*;

    #[test]
    fn parameters_are_set_by_name_and_nonsense_is_refused() {
        let mut asked = Asked::of(SamplingParams::default());
        assert!(set("temperature 0.25", &mut asked).unwrap().starts_with("temperature 0.25 "));
        set("max_tokens 7", &mut asked).unwrap();
        assert_eq!(asked.max_tokens, Some(7));
        set("max_tokens none", &mut asked).unwrap();
        assert_eq!(asked.max_tokens, None);
        for line in ["temperature", "temperature hot", "colour 3"] {
            assert_eq!(set(line, &mut asked).unwrap_err().code, "bad_request", "{line}");
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.json").display().to_string();
        let messages = vec![Message { role: potluck_client::Role::User, content: "hi\n".into() }];
        save(&path, &messages).unwrap();
        let file = Path::new(&path);
        assert!(matches!(load(file), Ok(Kept::Words(kept)) if kept == messages));
        fs::write(&path, "[{}]").unwrap();
        assert_eq!(load(file).unwrap_err().hint, "load what /save or /park wrote");
        assert!(named("", "/load").is_err());
    }
}
