//! `cloister chat`: talk to a running Cloister, or any other server of the OpenAI API.

use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::http_client::{Client, Error};
use super::{Outcome, Verdict, print, tell};
use crate::secret::Secret;

/// Longest prompt that is read from standard input, in bytes.
const PROMPT_LEN_MAX_BYTES: u64 = 8 << 20;

/// Longest file of an API key, in bytes.
const KEY_LEN_MAX_BYTES: usize = 1 << 10;

/// Where the key is, when no file is named.
const KEY_VARIABLE: &str = "CLOISTER_API_KEY";

const PATH: &str = "/v1/chat/completions";

/// Arguments of `cloister chat`.
#[derive(Args, Debug)]
#[command(after_help = "Without PROMPT, a terminal starts a conversation (/reset forgets it, \
    /exit or Ctrl-D ends it); from a pipe, standard input is the prompt.\n\nExamples:\n  \
    cloister chat --api-key-file key.txt\n  \
    cloister chat --url https://llm.example:8443 --ca tls.crt \"Why is the sky blue?\"\n  \
    git diff | cloister chat --url unix:/run/cloister/api.sock --system \"Review this.\"\n  \
    cloister chat --json --max-tokens 20 \"Hello\"")]
pub struct Arguments {
    /// What to ask; without it, see below.
    prompt: Option<String>,
    /// The server: https://HOST:PORT, http://127.0.0.1:PORT or unix:PATH.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8443")]
    url: String,
    /// File that holds the API key [default: the environment variable `CLOISTER_API_KEY`].
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Certificates to trust (PEM), such as a self-signed one [default: the system's].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Model by name [default: the server's].
    #[arg(short, long, value_name = "NAME")]
    model: Option<String>,
    /// What the model should know before all else.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 always takes the likeliest token.
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    /// Same seed, same answer.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print the whole response as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister chat`.
///
/// # Errors
///
/// An address, file or server that is of no use.
pub fn run(arguments: &Arguments) -> Outcome {
    let client = Client::new(&arguments.url, read_key(arguments)?, arguments.ca.as_deref())?;
    let mut talk = Talk::new(arguments);
    let asked = match &arguments.prompt {
        Some(prompt) => Some(prompt.clone()),
        None if io::stdin().is_terminal() && !arguments.json => None,
        None => Some(read_prompt()?),
    };
    let Some(prompt) = asked else { return converse(&client, &mut talk) };
    let answered = if arguments.json {
        client.post(PATH, &talk.body(&prompt, false)).map(|answer| print(&answer.to_string()))
    } else {
        talk.ask(&client, &prompt)
    };
    match answered {
        Ok(()) => Ok(Verdict::Holds),
        Err(error @ Error::Refused { .. }) => {
            tell(&format!("cloister: {}", shown(&error.to_string())));
            Ok(Verdict::Refused)
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads lines and answers them, until the end of input.
fn converse(client: &Client, talk: &mut Talk) -> Outcome {
    let mut lines = io::stdin().lock().lines();
    loop {
        write(&mut io::stderr(), "> ")?;
        let Some(line) = lines.next() else {
            tell("");
            return Ok(Verdict::Holds);
        };
        match line?.trim() {
            "" => {}
            "/exit" => return Ok(Verdict::Holds),
            "/reset" => talk.reset(),
            prompt => {
                // A refusal does not end the conversation; what was asked is not part of it then.
                if let Err(error) = talk.ask(client, prompt) {
                    tell(&format!("cloister: {}", shown(&error.to_string())));
                }
            }
        }
    }
}

fn read_key(arguments: &Arguments) -> Result<Option<Secret>, Error> {
    let text = match &arguments.api_key_file {
        Some(path) => Some(read_key_file(path)?),
        None => std::env::var(KEY_VARIABLE).ok().map(Zeroizing::new),
    };
    Ok(text.map(|text| Secret::new(text.trim().as_bytes().to_vec())))
}

/// Reads the key from a file or a pipe.
fn read_key_file(path: &Path) -> Result<Zeroizing<String>, Error> {
    let at = |source| Error::Io { action: "read the API key's file", source };
    // It never grows, so that no copy is left behind.
    let mut text = Zeroizing::new(String::with_capacity(KEY_LEN_MAX_BYTES + 1));
    let mut file = File::open(path).map_err(at)?.take(KEY_LEN_MAX_BYTES as u64 + 1);
    file.read_to_string(&mut text).map_err(at)?;
    if text.len() > KEY_LEN_MAX_BYTES {
        let why = format!("{}: longer than {KEY_LEN_MAX_BYTES} bytes", path.display());
        return Err(at(io::Error::new(io::ErrorKind::InvalidData, why)));
    }
    Ok(text)
}

fn read_prompt() -> Result<String, Error> {
    let at = |source| Error::Io { action: "read standard input", source };
    let mut prompt = String::new();
    io::stdin().lock().take(PROMPT_LEN_MAX_BYTES + 1).read_to_string(&mut prompt).map_err(at)?;
    if prompt.len() as u64 > PROMPT_LEN_MAX_BYTES {
        return Err(Error::PromptTooLong { max_bytes: PROMPT_LEN_MAX_BYTES });
    }
    Ok(prompt)
}

/// A conversation so far.
struct Talk<'a> {
    arguments: &'a Arguments,
    messages: Vec<Value>,
}

impl<'a> Talk<'a> {
    fn new(arguments: &'a Arguments) -> Self {
        let mut talk = Self { arguments, messages: Vec::new() };
        talk.reset();
        talk
    }

    fn reset(&mut self) {
        self.messages.clear();
        if let Some(system) = &self.arguments.system {
            self.messages.push(json!({ "role": "system", "content": system }));
        }
    }

    /// The body of the next request.
    fn body(&self, prompt: &str, stream: bool) -> Value {
        let mut messages = self.messages.clone();
        messages.push(json!({ "role": "user", "content": prompt }));
        let mut body = json!({ "messages": messages, "stream": stream });
        let arguments = self.arguments;
        let options = [
            ("model", arguments.model.as_ref().map(|name| json!(name))),
            ("max_tokens", arguments.max_tokens.map(|count| json!(count))),
            ("temperature", arguments.temperature.map(|number| json!(number))),
            ("seed", arguments.seed.map(|number| json!(number))),
        ];
        for (name, value) in options {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        body
    }

    /// Asks, and prints the answer as it comes.
    fn ask(&mut self, client: &Client, prompt: &str) -> Result<(), Error> {
        let mut answer = String::new();
        let result = client.stream(PATH, &self.body(prompt, true), |event| {
            let text = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            answer.push_str(text);
            match write(&mut io::stdout(), &shown(text)) {
                Ok(()) => ControlFlow::Continue(()),
                // Whoever read the answer is gone.
                Err(_) => ControlFlow::Break(()),
            }
        });
        print("");
        result?;
        self.messages.push(json!({ "role": "user", "content": prompt }));
        self.messages.push(json!({ "role": "assistant", "content": answer }));
        Ok(())
    }
}

/// Text as a terminal may see it: control characters could move its cursor or change its title.
fn shown(text: &str) -> String {
    if !io::stdout().is_terminal() {
        return text.to_owned();
    }
    without_controls(text)
}

fn without_controls(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}

/// Writes at once, without waiting for the end of a line.
fn write(target: &mut impl io::Write, text: &str) -> io::Result<()> {
    target.write_all(text.as_bytes())?;
    target.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_sees_no_control_characters() {
        assert_eq!(without_controls("a\u{1b}[2J\u{7}b\tc\r\nd\u{9b}e"), "a[2Jb\tc\nde");
    }
}
