//! `cloister audit match`: whether the log holds a text, for who has the principals' keys.
//!
//! The text is hashed as the worker hashes it, and each keyed digest of the wanted records is tried
//! with each key. Neither text nor key is printed or kept; without the keys the log answers nobody. A key
//! that the log says was erased is not tried, should a copy of it have come back.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::super::status::read_config;
use super::super::{Outcome, Verdict, print, tell};
use super::filter::Filter;
use super::output::broken;
use super::recorded::Reading;
use super::rotate::KEY_LEN_MAX_BYTES;
use super::scan::forward;
use super::source::Log;
use super::text::time_text;
use crate::audit::record::KeyedDigest;
use crate::audit::{Event, PrincipalKeys, Snapshot, WrappingKey};
use crate::package::files::{read_small, read_small_open};

/// Longest file that is looked for, in bytes: a request body is at most half of it.
const BODY_LEN_MAX_BYTES: u64 = 16 << 20;

/// Arguments of `cloister audit match`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    filter: Filter,
    /// The text: a request body in JSON (each message, or the prompt, is looked for by itself), or any
    /// other text as it is.
    #[arg(long, value_name = "FILE")]
    body: PathBuf,
    /// Take the file as it is, even if it is JSON.
    #[arg(long)]
    plain: bool,
    /// The principals' keys [default: LOG/../principals].
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
    /// The key that they are wrapped under [default: the configuration's keys.wrapping].
    #[arg(long, value_name = "FILE")]
    wrapping: Option<PathBuf>,
    /// Print a JSON object a line.
    #[arg(long)]
    json: bool,
}

/// A text that is looked for, by its digest alone.
struct Wanted {
    name: String,
    digest: [u8; 32],
}

/// Runs `cloister audit match`.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let path = &arguments.body;
    // A pipe is as good as a file here.
    let body = fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let body = read_small_open(&body, path, "text", BODY_LEN_MAX_BYTES)?;
    let wanted = wanted(&body, arguments.plain);
    let mut keys = keys(arguments)?;
    let mut snapshot = arguments.log.open(Reading::Match, &arguments.filter)?;
    match erased(&mut snapshot) {
        Ok(pseudonyms) => keys.forbid(pseudonyms),
        Err(why) => {
            print(&broken(arguments.json, &why));
            return Ok(Verdict::Refused);
        }
    }
    for (pseudonym, path) in keys.returned()? {
        tell(&format!(
            "cloister: {} holds the key of {pseudonym}, which was erased: it came back from a copy and is \
             not used; destroy it and the copy, or have the service started, which does",
            path.display()
        ));
    }
    let keys = keys.all()?;
    let mut count = 0_u64;
    let scanned = forward(&mut snapshot, &arguments.filter, &mut |found| {
        for (place, keyed) in digests(&found.record.event) {
            for (want, key) in
                wanted.iter().flat_map(|want| keys.iter().map(move |key| (want, key)))
            {
                if key.matches(keyed, &want.digest) {
                    count += 1;
                    let request = found.record.event.request().unwrap_or_default();
                    let (time, who) = (time_text(found.record.time_s), key.pseudonym());
                    let text = &want.name;
                    print(&match arguments.json {
                        true => json!({ "text": text, "index": found.index, "time": time, "request": request,
                            "place": place, "principal": who }).to_string(),
                        false => format!("{text}: {place} of request {request} by {who} at {time} (#{})", found.index),
                    });
                }
            }
        }
        true
    });
    match scanned {
        Err(error) => {
            print(&broken(arguments.json, &error));
            return Ok(Verdict::Refused);
        }
        Ok(absent) => {
            absent.sentence().iter().for_each(|sentence| tell(&format!("cloister: {sentence}")));
        }
    }
    if count > 0 {
        return Ok(Verdict::Holds);
    }
    tell(&format!(
        "cloister: not found under any of {} principals' keys that are left",
        keys.len()
    ));
    Ok(Verdict::Refused)
}

/// The keyed digests of a record, and what each is of.
fn digests(event: &Event) -> Vec<(String, &KeyedDigest)> {
    let Event::End { declared, .. } = event else { return Vec::new() };
    let messages = declared.messages.iter().enumerate();
    let messages = messages.map(|(at, keyed)| (format!("message {}", at + 1), keyed));
    messages.chain([("answer".to_owned(), &declared.answer)]).collect()
}

/// The pseudonyms that the whole log says were erased, or why that cannot be known.
fn erased(snapshot: &mut Snapshot) -> Result<Vec<String>, String> {
    let filter = Filter { event: vec!["erased".to_owned()], whole: true, ..Filter::default() };
    let mut pseudonyms = Vec::new();
    let scanned = forward(snapshot, &filter, &mut |found| {
        pseudonyms.extend(found.record.event.principal().map(ToOwned::to_owned));
        true
    });
    match scanned {
        Err(error) => Err(error.to_string()),
        // What was pruned was older than any record that a key could still find.
        Ok(absent) if absent.is_oldest_alone() => Ok(pseudonyms),
        Ok(absent) => Err(format!(
            "{}; who was erased there is not known, so no text is looked for",
            absent.sentence().unwrap_or_default()
        )),
    }
}

fn keys(arguments: &Arguments) -> Result<PrincipalKeys, Box<dyn std::error::Error>> {
    let beside = || arguments.log.folder.parent().map(|parent| parent.join("principals"));
    let folder = arguments.keys.clone().or_else(beside).unwrap_or_default();
    let path = match &arguments.wrapping {
        Some(path) => path.clone(),
        None => read_config(&arguments.log.appliance.config)?.keys.wrapping,
    };
    let key = WrappingKey::parse(&read_small(&path, "wrapping key", KEY_LEN_MAX_BYTES)?)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(PrincipalKeys::look(&folder, key)?)
}

/// The texts of a request body, as the worker hashes them; otherwise the file, with and without the
/// line's end that an editor adds.
fn wanted(body: &[u8], is_plain: bool) -> Vec<Wanted> {
    let value = if is_plain { None } else { serde_json::from_slice::<Value>(body).ok() };
    let want = |name: String, parts: &[&str]| {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        Wanted { name, digest: hash.finalize().into() }
    };
    if let Some(messages) = value.as_ref().and_then(|value| value["messages"].as_array()) {
        let text = |message: &Value| match &message["content"] {
            Value::String(text) => vec![text.clone()],
            Value::Array(parts) => parts
                .iter()
                .map(|part| part["text"].as_str().unwrap_or_default().to_owned())
                .collect(),
            _ => Vec::new(),
        };
        let texts = messages.iter().map(text).enumerate();
        let texts = texts.filter(|(_, parts)| parts.iter().any(|part| !part.is_empty()));
        return texts
            .map(|(at, parts)| {
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                want(format!("message {} of the file", at + 1), &parts)
            })
            .collect();
    }
    if let Some(prompt) = value.as_ref().and_then(|value| value["prompt"].as_str()) {
        return vec![want("the file's prompt".to_owned(), &[prompt])];
    }
    let whole = Wanted { name: "the file".to_owned(), digest: Sha256::digest(body).into() };
    let bare = body.strip_suffix(b"\n").map(|text| text.strip_suffix(b"\r").unwrap_or(text));
    let bare = bare.map(|text| Wanted {
        name: "the file without its last line's end".to_owned(),
        digest: Sha256::digest(text).into(),
    });
    std::iter::once(whole).chain(bare).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(body: &str, is_plain: bool) -> Vec<[u8; 32]> {
        wanted(body.as_bytes(), is_plain).into_iter().map(|one| one.digest).collect()
    }

    #[test]
    fn texts_are_hashed_as_the_worker_hashes_them() {
        let of = |text: &str| <[u8; 32]>::from(Sha256::digest(text));
        let body = r#"{"messages":[{"role":"system","content":""},{"role":"user","content":"ab"},
            {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"c"}]}]}"#;
        assert_eq!(digests(body, false), [of("ab"), of("ac")]);
        assert_eq!(digests(body, true), [of(body)]);
        assert_eq!(digests(r#"{"prompt":"x"}"#, false), [of("x")]);
        assert_eq!(digests("x\r\n", false), [of("x\r\n"), of("x")]);
        assert_eq!(digests("x", false), [of("x")]);
    }
}
