//! A model's words: tokenizer, chat template, the tokens that end an answer.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::gguf::Metadata;
use crate::template::{self, ChatTemplate, Conversation};
use crate::tokenizer::{Markup, Tokenizer};

/// Everything that turns text into tokens and back.
pub(super) struct Text {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

/// Which part of a model's words is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Error {
    /// The vocabulary.
    Tokenizer,
    /// The chat template.
    Template,
}

impl Text {
    /// Reads tokenizer and template from a model's metadata.
    ///
    /// # Errors
    ///
    /// What is wrong with one of them.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        let tokenizer = Tokenizer::from_metadata(metadata).map_err(|_| Error::Tokenizer)?;
        let template =
            ChatTemplate::from_metadata(metadata, &tokenizer).map_err(|_| Error::Template)?;
        Ok(Self { tokenizer, template })
    }

    /// Whether chats are rendered by the plain fallback.
    #[must_use]
    pub(super) fn has_no_template(&self) -> bool {
        self.template.is_fallback()
    }

    /// Tokens of a plain prompt; markup in it stays text.
    #[must_use]
    pub(super) fn prompt_tokens(&self, prompt: &str) -> Vec<u32> {
        self.tokenizer.encode(prompt, Markup::Plain)
    }

    /// Tokens of a chat; markup counts only where the template itself wrote it.
    ///
    /// # Errors
    ///
    /// What the template refuses, or which of its limits it passed.
    pub(super) fn chat_tokens(
        &self,
        messages: &Value,
        tools: &Value,
    ) -> Result<Vec<u32>, template::Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let fragments = self.template.render(&Conversation {
            messages,
            tools: tools.is_array().then_some(tools),
            add_generation_prompt: true,
            now_unix_s: now,
        })?;
        Ok(self.tokenizer.encode_fragments(&fragments))
    }

    /// Whether a token ends the answer.
    #[must_use]
    pub(super) fn ends_generation(&self, token: u32) -> bool {
        self.tokenizer.is_end_of_generation(token)
    }

    /// The bytes that a token stands for.
    #[must_use]
    pub(super) fn token_bytes(&self, token: u32) -> &[u8] {
        self.tokenizer.token_bytes(token)
    }
}
