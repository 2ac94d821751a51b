//! Why messages did not become a prompt; no word of theirs is in any error.

use std::fmt;

use minijinja::ErrorKind;

use crate::gguf;

/// A limit that a template ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The template's own length.
    TemplateLen,
    /// Instructions executed.
    Fuel,
    /// Bytes written.
    OutputLen,
    /// The length of one string or list.
    ValueLen,
    /// Bytes copied while joining strings.
    Copies,
    /// Calls and loops within each other.
    Depth,
}

/// What is wrong with a message or a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Not an array of objects.
    NotAnObject,
    /// No role, or not one of the known.
    Role,
    /// The content is neither a string nor an array of text parts.
    Content,
    /// A field has the wrong type.
    FieldType,
    /// A field that no message has.
    UnknownField,
    /// Nested too deeply.
    Depth,
    /// A code point of planes 4 to 7, where Unicode has no characters.
    UnassignedCodePoint,
}

/// Why there is no prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The metadata entry is broken.
    Metadata(gguf::Error),
    /// The template is not one that can be compiled.
    Syntax {
        /// Where, in lines from 1.
        line: usize,
    },
    /// The template uses other templates (`include`, `import`, `from`, `extends`, `block`).
    OtherTemplates,
    /// The template ran into a limit.
    Limit(Limit),
    /// The template itself refused the messages (`raise_exception`).
    Raised,
    /// The template failed on the messages.
    Failed {
        /// What kind of fault.
        kind: ErrorKind,
        /// Where, in lines from 1.
        line: usize,
    },
    /// There are no messages, or too many.
    MessageCount {
        /// How many.
        count: usize,
    },
    /// A message is not one.
    Message {
        /// Which.
        index: usize,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The tools are not an array of objects.
    Tools {
        /// What is wrong with them.
        problem: Problem,
    },
    /// The template mixes the messages' text with its own so that the two cannot be told apart.
    Provenance,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TemplateLen => "its own length",
            Self::Fuel => "instructions",
            Self::OutputLen => "output length",
            Self::ValueLen => "the length of a value",
            Self::Copies => "bytes copied",
            Self::Depth => "nesting depth",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnObject => "it is not an object",
            Self::Role => "its role is missing or unknown",
            Self::Content => "its content is neither a string nor an array of text parts",
            Self::FieldType => "a field has the wrong type",
            Self::UnknownField => "it has a field that is not known",
            Self::Depth => "it is nested too deeply",
            Self::UnassignedCodePoint => "it holds a code point without a character",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metadata(error) => write!(f, "{error}"),
            Self::Syntax { line } => {
                write!(f, "`tokenizer.chat_template` does not compile (line {line})")
            }
            Self::OtherTemplates => write!(
                f,
                "`tokenizer.chat_template` uses `include`, `import`, `from`, `extends` or `block`"
            ),
            Self::Limit(limit) => {
                write!(f, "the chat template is above its limit: {limit}")
            }
            Self::Raised => write!(f, "the chat template refuses these messages"),
            Self::Failed { kind, line } => {
                write!(f, "the chat template failed on these messages: {kind} (line {line})")
            }
            Self::MessageCount { count } => write!(f, "there are {count} messages"),
            Self::Message { index, problem } => write!(f, "message {index}: {problem}"),
            Self::Tools { problem } => write!(f, "tools: {problem}"),
            Self::Provenance => {
                write!(f, "the chat template mixes its own text with that of these messages")
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<gguf::Error> for Error {
    fn from(error: gguf::Error) -> Self {
        Self::Metadata(error)
    }
}
