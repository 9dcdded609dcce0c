//! Chat templates: from messages to the text that a model was trained on.

mod functions;
mod json;
mod special;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use minijinja::{Environment, ErrorKind, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use potluck_core::Manifest;
use potluck_model::facts;
use serde::{Deserialize, Serialize};

pub use special::SpecialTokens;

/// Bytes of a template. A longer one is refused with `TooLong`.
pub const TEMPLATE_BYTES_MAX: usize = 256 << 10;

/// What a template may cost: instructions, and one for each 64 bytes that it makes. Beyond it, `Fuel`.
pub const TEMPLATE_FUEL: u64 = 4 << 20;

/// Bytes of a rendered prompt. Beyond it, `PromptTooLong`.
pub const PROMPT_BYTES_MAX: usize = 16 << 20;

/// How long rendering may take. Fuel ends what it can see; some of minijinja's work (joining lists that were joined
/// lists, comparing lists of lists) costs no fuel. Beyond it, `TimedOut`, and the template is not run again. Its thread
/// cannot be stopped and may take more and more memory: a process that goes on should end soon, or have rendered elsewhere.
pub const TEMPLATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls and blocks within each other.
const TEMPLATE_DEPTH_MAX: usize = 64;

const _: () = assert!(PROMPT_BYTES_MAX as u64 / 64 <= TEMPLATE_FUEL / 4, "fuel lets the longest prompt through");

/// What is used where a model brings no template: the most common one.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What the model is told before anything else.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
}

/// What a template is rendered with, beside the messages.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderOptions {
    /// End with the beginning of the model's answer.
    pub add_generation_prompt: bool,
    /// UTC seconds, for templates that state the date.
    pub now: i64,
    /// Further variables, such as `enable_thinking`; those that templates always get win.
    pub variables: Variables,
}

/// Variables of a template.
type Variables = serde_json::Map<String, serde_json::Value>;

impl RenderOptions {
    /// A prompt for the next answer, at the time of the system's clock.
    pub fn now() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self::at(now.map_or(0, |since| since.as_secs() as i64))
    }

    /// A prompt for the next answer, at a given time in UTC seconds.
    pub fn at(now: i64) -> Self {
        Self { add_generation_prompt: true, now, variables: Variables::new() }
    }
}

/// Why there is no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// Whoever supplied the model: its template is too long.
    #[error("a chat template of {bytes} bytes; the limit is {TEMPLATE_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Whoever supplied the model: the template is not Jinja that we know. Hint: `--raw`.
    #[error("the model's chat template cannot be read: {0}")]
    Syntax(String),
    /// The user: the template refuses these messages, in its own words.
    #[error("the model's chat template refuses the conversation: {0}")]
    Refused(String),
    /// Whoever supplied the model: the template fails. Hint: `--raw`.
    #[error("the model's chat template fails: {0}")]
    Failed(String),
    /// Whoever supplied the model: the template runs, or grows, without end. Hint: `--raw`.
    #[error("the model's chat template was stopped after {TEMPLATE_FUEL} units of work")]
    Fuel,
    /// Whoever supplied the model: the template took too long, now or before. Hint: `--raw`.
    #[error("the model's chat template did not end within {} s", TEMPLATE_TIMEOUT.as_secs())]
    TimedOut,
    /// The user: more than a prompt can be.
    #[error("the prompt is longer than {PROMPT_BYTES_MAX} bytes")]
    PromptTooLong,
    /// The user: more messages than a conversation can have. Hint: `/clear`.
    #[error("{0} messages; the limit is {max}", max = crate::MESSAGES_MAX)]
    TooMany(usize),
}

impl TemplateError {
    /// A short code for machines: the `code` of an error object.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(_) => "template_refused",
            Self::PromptTooLong | Self::TooMany(_) => "context_full",
            Self::TimedOut => "template_timeout",
            _ => "bad_template",
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused(_) => "change the messages, such as by leaving the system message out",
            Self::PromptTooLong | Self::TooMany(_) => "shorten the conversation",
            _ => "send the prompt without the template: --raw",
        }
    }
}

/// A chat template that has been read. Rendering it has no effect but its text, and bounded cost.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    fallback: bool,
    /// Set for good when a rendering did not end: its thread cannot be stopped, and one is enough.
    stuck: Arc<AtomicBool>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Reads a template in the Jinja that Hugging Face's `transformers` runs.
    ///
    /// # Errors
    /// `TooLong`, `Syntax`.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLong { bytes: source.len() });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax(describe(&error)))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(TEMPLATE_FUEL));
        environment.set_recursion_limit(TEMPLATE_DEPTH_MAX);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        functions::add_to(&mut environment);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TemplateError::Syntax(describe(&error)))?;
        Ok(Self { environment: Arc::new(environment), fallback: false, stuck: Arc::default() })
    }

    /// The template that the model brings; ChatML where it brings none.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn of(manifest: &Manifest) -> Result<Self, TemplateError> {
        match facts::chat_template(manifest) {
            Some(source) => Self::new(source),
            None => Ok(Self { fallback: true, ..Self::new(CHATML)? }),
        }
    }

    /// True if the model brings no template of its own: its answers may ramble.
    pub fn is_fallback(&self) -> bool {
        self.fallback
    }

    /// True if the template reads this variable, such as `tools`.
    pub fn reads(&self, variable: &str) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(variable))
    }

    /// The prompt for `messages`.
    ///
    /// # Errors
    /// `Refused` where the template calls `raise_exception`; `Fuel`, `TimedOut` and `PromptTooLong` at the bounds; else
    /// `Failed`.
    pub fn render(
        &self,
        messages: &[Message],
        special: &SpecialTokens,
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        let messages = messages.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>();
        self.render_all(&messages.map_err(|error| TemplateError::Failed(error.to_string()))?, special, options)
    }

    /// The prompt for messages that have more than a role and a content, such as calls of tools.
    ///
    /// # Errors
    /// As for [`render`](Self::render), and `TooMany`.
    pub fn render_all(
        &self,
        messages: &[serde_json::Value],
        special: &SpecialTokens,
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        if messages.len() > crate::MESSAGES_MAX {
            return Err(TemplateError::TooMany(messages.len()));
        }
        let mut variables = options.variables.clone();
        let mut set = |name: &str, value: serde_json::Value| variables.insert(name.to_owned(), value);
        set("messages", messages.into());
        set("bos_token", special.begin.clone().into());
        set("eos_token", special.end.clone().into());
        set("add_generation_prompt", options.add_generation_prompt.into());
        set(functions::NOW, options.now.into());
        self.render_in_time(variables)
    }

    /// Renders on a thread of its own, which is left behind where it does not end.
    fn render_in_time(&self, variables: Variables) -> Result<String, TemplateError> {
        if self.stuck.load(Ordering::Relaxed) {
            return Err(TemplateError::TimedOut);
        }
        let environment = self.environment.clone();
        let (send, result) = mpsc::sync_channel(1);
        let render = move || {
            // Nobody waits any more after the timeout.
            let _ = send.send(render(&environment, &variables));
        };
        let thread = thread::Builder::new().name("template".into()).spawn(render);
        thread.map_err(|error| TemplateError::Failed(error.to_string()))?;
        result.recv_timeout(TEMPLATE_TIMEOUT).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => {
                self.stuck.store(true, Ordering::Relaxed);
                Err(TemplateError::TimedOut)
            }
            RecvTimeoutError::Disconnected => Err(TemplateError::Failed("its thread panicked".into())),
        })
    }
}

fn render(environment: &Environment<'_>, variables: &Variables) -> Result<String, TemplateError> {
    let template = environment.get_template(NAME).map_err(|error| classify(&error))?;
    let mut prompt = Bounded(Vec::new());
    template.render_captured_to(Serde(variables), &mut prompt).map_err(|error| match prompt_is_full(&error) {
        true => TemplateError::PromptTooLong,
        false => classify(&error),
    })?;
    String::from_utf8(prompt.0).map_err(|error| TemplateError::Failed(error.to_string()))
}

/// A prompt that refuses to grow beyond its bound.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > PROMPT_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn prompt_is_full(error: &minijinja::Error) -> bool {
    error.kind() == ErrorKind::WriteFailure
}

fn classify(error: &minijinja::Error) -> TemplateError {
    match (error.kind(), functions::raised(error)) {
        (_, Some(words)) => TemplateError::Refused(words),
        (ErrorKind::OutOfFuel, None) => TemplateError::Fuel,
        _ => TemplateError::Failed(describe(error)),
    }
}

/// What went wrong and in which line; never the variables, which hold the conversation.
fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
    // What a syntax error says of itself is the template's text alone.
    let detail = error.detail().filter(|_| error.kind() == ErrorKind::SyntaxError);
    let detail = detail.map(|detail| format!(" ({detail})")).unwrap_or_default();
    format!("{}{detail}{line}", error.kind())
}
