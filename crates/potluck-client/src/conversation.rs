//! A conversation as people see it: who said what.

use crate::{ChatTemplate, Message, RenderOptions, Role, SpecialTokens, TemplateError};

/// Messages of one conversation. The next one is refused with `TooMany` when the prompt is made.
pub const MESSAGES_MAX: usize = 4_096;

/// Messages, and the template that makes a prompt of them.
#[derive(Debug, Clone)]
pub struct Conversation {
    template: ChatTemplate,
    special: SpecialTokens,
    messages: Vec<Message>,
}

impl Conversation {
    /// No message yet.
    pub fn new(template: ChatTemplate, special: SpecialTokens) -> Self {
        Self { template, special, messages: Vec::new() }
    }

    /// What was said so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Sets, replaces, or with an empty text removes what the model is told before anything else.
    pub fn system(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.messages.retain(|message| message.role != Role::System);
        if !text.is_empty() {
            self.messages.insert(0, Message { role: Role::System, content: text });
        }
    }

    /// The user said something.
    pub fn user(&mut self, text: impl Into<String>) {
        self.messages.push(Message { role: Role::User, content: text.into() });
    }

    /// The model answered.
    pub fn assistant(&mut self, text: impl Into<String>) {
        self.messages.push(Message { role: Role::Assistant, content: text.into() });
    }

    /// Takes back the last message, if it is not what the system was told: an answer to make again, a question that
    /// failed.
    pub fn undo(&mut self) -> Option<Message> {
        self.messages.pop_if(|message| message.role != Role::System)
    }

    /// Forgets everything but what the system was told.
    pub fn clear(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
    }

    /// Replaces everything, such as by what was saved.
    pub fn set_messages(&mut self, messages: Vec<Message>) {
        self.messages = messages;
    }

    /// The prompt for the next answer. Where the template refuses a system message, it is put before the first user's.
    ///
    /// # Errors
    /// See [`TemplateError`].
    pub fn prompt(&self, options: &RenderOptions) -> Result<String, TemplateError> {
        if self.messages.len() > MESSAGES_MAX {
            return Err(TemplateError::TooMany(self.messages.len()));
        }
        match self.template.render(&self.messages, &self.special, options) {
            Err(TemplateError::Refused(reason)) => match self.without_system() {
                Some(messages) => self.template.render(&messages, &self.special, options),
                None => Err(TemplateError::Refused(reason)),
            },
            result => result,
        }
    }

    fn without_system(&self) -> Option<Vec<Message>> {
        let (system, rest) = self.messages.split_first().filter(|(first, _)| first.role == Role::System)?;
        let mut rest = rest.to_vec();
        let first = rest.first_mut().filter(|message| message.role == Role::User)?;
        first.content = format!("{}\n\n{}", system.content, first.content);
        Some(rest)
    }
}
