//! `Debug` of the messages that carry text or a key: names and lengths, never the content.

use std::fmt;

use super::message::{FromWorker, Generate, Prompt, ToOpener};

impl fmt::Debug for Generate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generate")
            .field("request", &self.request)
            .field("prompt", &self.prompt)
            .field("stop_count", &self.stop.len())
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chat { messages_json, messages_count, tools_json } => f
                .debug_struct("Chat")
                .field("messages_len_bytes", &messages_json.len())
                .field("messages_count", messages_count)
                .field("tools_len_bytes", &tools_json.len())
                .finish(),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
        }
    }
}

impl fmt::Debug for FromWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { request, prompt_tokens } => f
                .debug_struct("Started")
                .field("request", request)
                .field("prompt_tokens", prompt_tokens)
                .finish(),
            Self::Delta { request, text } => f
                .debug_struct("Delta")
                .field("request", request)
                .field("text_len_bytes", &text.len())
                .finish(),
            Self::Done { request, finish, prompt_tokens, completion_tokens, cached_tokens } => f
                .debug_struct("Done")
                .field("request", request)
                .field("finish", finish)
                .field("prompt_tokens", prompt_tokens)
                .field("completion_tokens", completion_tokens)
                .field("cached_tokens", cached_tokens)
                .finish(),
            Self::Failed { request, failure } => f
                .debug_struct("Failed")
                .field("request", request)
                .field("failure", failure)
                .finish(),
        }
    }
}

impl fmt::Debug for ToOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenAge => "OpenAge",
            Self::OpenPlain => "OpenPlain",
            Self::FileKey(_) => "FileKey(..)",
            Self::NoMatch => "NoMatch",
            Self::Taken => "Taken",
        })
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::super::message::{RequestId, Sampling, ToWorker};
    use super::*;

    const CANARY: &str = "canary-91be";

    #[test]
    fn no_text_and_no_key_is_shown() {
        let request = RequestId([0; 16]);
        let prompts = [
            Prompt::Text(CANARY.to_owned()),
            Prompt::Chat {
                messages_json: CANARY.to_owned(),
                messages_count: 1,
                tools_json: CANARY.to_owned(),
            },
        ];
        for prompt in prompts {
            let sampling = Sampling { temperature: 1.0, ..Sampling::greedy() };
            let stop = vec![CANARY.to_owned()];
            let work = Generate { request, prompt, sampling, stop, max_tokens: 1 };
            let shown = format!("{:?}", ToWorker::Generate(Box::new(work)));
            assert!(shown.contains("max_tokens") && !shown.contains(CANARY), "{shown}");
        }
        let shown = format!("{:?}", FromWorker::Delta { request, text: CANARY.to_owned() });
        assert!(shown.contains("11") && !shown.contains(CANARY), "{shown}");
        let shown = format!("{:?}", ToOpener::FileKey(Zeroizing::new([0xab; 16])));
        assert!(!shown.contains("171") && !shown.to_lowercase().contains("ab,"), "{shown}");
    }
}
