//! Chat templates: the messages of a request become the prompt of a model.
//!
//! A template is the model file's program over the client's text. It runs within limits, twice:
//! once as it is, and once with its own characters marked, which tells them from the client's in
//! what comes out. Only the template's own characters can become special tokens.

mod budget;
mod conversation;
mod environment;
mod error;
mod provenance;
mod python;
mod source;

use std::io;
use std::sync::Arc;

use minijinja::Value;
use serde_json::Value as Json;

use budget::Budget;
pub use error::{Error, Limit, Problem};
use source::Marking;

use crate::gguf::Metadata;
pub use crate::tokenizer::Fragment;
use crate::tokenizer::Tokenizer;

/// Longest template, in bytes.
pub const TEMPLATE_LEN_MAX_BYTES: usize = 128 << 10;
/// Longest text that the template adds, in bytes, beside four times the messages' length.
pub const OUTPUT_BASE_LEN_MAX_BYTES: usize = 1 << 20;
/// Instructions that every rendering may execute.
const FUEL_BASE: u64 = 200_000;
/// Instructions more for each byte of messages and tools.
const FUEL_PER_BYTE: u64 = 4;
/// Instructions more for each message.
const FUEL_PER_MESSAGE: u64 = 2_000;
/// How often the longest output may be copied while it is put together.
const COPIES_PER_OUTPUT: usize = 64;
const FIELD: &str = "tokenizer.chat_template";

/// What is used for models without a template: names and colons, no markup.
const PLAIN: &str = "{% for message in messages %}{{ message.role | capitalize }}: \
                     {{ message.content }}\n\n{% endfor %}\
                     {% if add_generation_prompt %}Assistant:{% endif %}";

/// What is rendered.
pub struct Conversation<'a> {
    /// A JSON array of messages.
    pub messages: &'a Json,
    /// A JSON array of tools.
    pub tools: Option<&'a Json>,
    /// Whether the prompt ends where the model's answer starts.
    pub add_generation_prompt: bool,
    /// The time that `strftime_now` shows, in seconds since 1970.
    pub now_unix_s: u64,
}

/// A model's chat template.
pub struct ChatTemplate {
    source: String,
    bos: String,
    eos: String,
    is_fallback: bool,
}

impl ChatTemplate {
    /// Reads the template of a model file, or takes the plain fallback when it has none.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] when it is too long, [`Error::Syntax`] when it does not compile.
    pub fn from_metadata(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Self, Error> {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        Self::new(metadata.string(FIELD)?, text(tokenizer.bos()), text(tokenizer.eos()))
    }

    /// Takes a template's source (the plain fallback when there is none) and the texts of
    /// `bos_token` and `eos_token`.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::from_metadata`].
    pub fn new(source: Option<&str>, bos: &str, eos: &str) -> Result<Self, Error> {
        let source_or_plain = source.unwrap_or(PLAIN);
        if source_or_plain.len() > TEMPLATE_LEN_MAX_BYTES {
            return Err(Error::Limit(Limit::TemplateLen));
        }
        if source::needs_other_templates(source_or_plain) {
            return Err(Error::OtherTemplates);
        }
        let template = Self {
            source: source_or_plain.to_owned(),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            is_fallback: source.is_none(),
        };
        let budget = Arc::new(Budget::new(0, 0));
        let env = environment::environment(&budget, 0, 0);
        for marking in [Marking::Nothing, Marking::Everything, Marking::Written] {
            let source = source::rewrite(&template.source, marking);
            env.template_from_str(&source).map_err(|error| compile_error(&error))?;
        }
        Ok(template)
    }

    /// Returns whether the model has no template of its own; the caller announces it.
    #[must_use]
    pub fn is_fallback(&self) -> bool {
        self.is_fallback
    }

    /// Renders the prompt, in stretches of trusted text (the template's) and other text.
    ///
    /// # Errors
    ///
    /// What is wrong with the messages, the limit that was passed, or how the template failed.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<Vec<Fragment>, Error> {
        let messages = conversation::messages(conversation.messages)?;
        let tools = conversation::tools(conversation.tools)?;
        let input_len = text_len(&messages) + tools.map_or(0, text_len);
        let job = Job { template: self, conversation, messages, tools, input_len };
        let exact = job.run(Marking::Nothing)?;
        for marking in [Marking::Everything, Marking::Written] {
            let marked = match job.run(marking) {
                Ok(marked) => marked,
                Err(Error::Raised | Error::Failed { .. }) => continue,
                Err(error) => return Err(error),
            };
            if provenance::unmark_text(&marked) == exact {
                return Ok(provenance::fragments(&marked));
            }
        }
        Err(Error::Provenance)
    }
}

/// Returns the fragments' joined text: exactly what the template renders.
#[must_use]
pub fn joined_text(fragments: &[Fragment]) -> String {
    fragments.iter().map(|fragment| fragment.text.as_str()).collect()
}

struct Job<'a> {
    template: &'a ChatTemplate,
    conversation: &'a Conversation<'a>,
    messages: Json,
    tools: Option<&'a Json>,
    input_len: usize,
}

impl Job<'_> {
    fn run(&self, marking: Marking) -> Result<String, Error> {
        // Marked characters are four bytes long.
        let output_len_max = (OUTPUT_BASE_LEN_MAX_BYTES + self.input_len.saturating_mul(4)) * 4;
        let copies_max = output_len_max.saturating_mul(COPIES_PER_OUTPUT);
        let budget = Arc::new(Budget::new(output_len_max, copies_max));
        let message_count = self.messages.as_array().map_or(0, Vec::len) as u64;
        let fuel = FUEL_BASE
            + (self.input_len as u64).saturating_mul(FUEL_PER_BYTE)
            + message_count * FUEL_PER_MESSAGE;
        let env = environment::environment(&budget, fuel, self.conversation.now_unix_s);
        let source = source::rewrite(&self.template.source, marking);
        let template = env.template_from_str(&source).map_err(|error| compile_error(&error))?;
        let mut output = Output { bytes: Vec::new(), len_max: output_len_max };
        template
            .render_captured_to(self.context(marking), &mut output)
            .map_err(|error| render_error(&budget, &error))?;
        String::from_utf8(output.bytes).map_err(|_| Error::Provenance)
    }

    fn context(&self, marking: Marking) -> Value {
        let own = |text: &str| -> String {
            match marking {
                Marking::Nothing => text.to_owned(),
                _ => text.chars().map(provenance::mark).collect(),
            }
        };
        Value::from_iter([
            ("messages", Value::from_serialize(&self.messages)),
            ("tools", self.tools.map_or(Value::from(()), Value::from_serialize)),
            ("documents", Value::from(())),
            ("add_generation_prompt", self.conversation.add_generation_prompt.into()),
            ("bos_token", own(&self.template.bos).into()),
            ("eos_token", own(&self.template.eos).into()),
        ])
    }
}

/// A text in memory that refuses to grow beyond its limit.
struct Output {
    bytes: Vec<u8>,
    len_max: usize,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.len_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn compile_error(error: &minijinja::Error) -> Error {
    match environment::limit_of(error) {
        Some(limit) => Error::Limit(limit),
        None => Error::Syntax { line: error.line().unwrap_or(0) },
    }
}

fn render_error(budget: &Budget, error: &minijinja::Error) -> Error {
    if budget.raised() {
        return Error::Raised;
    }
    match budget.exceeded().or_else(|| environment::limit_of(error)) {
        Some(limit) => Error::Limit(limit),
        None => Error::Failed { kind: error.kind(), line: error.line().unwrap_or(0) },
    }
}

/// Returns the bytes of all strings in `value`.
fn text_len(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(values) => values.iter().map(text_len).sum(),
        Json::Object(entries) => {
            entries.iter().map(|(key, value)| key.len() + text_len(value)).sum()
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    }
}
