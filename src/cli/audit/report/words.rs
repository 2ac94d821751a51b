//! The log's words as a reader of the report knows them; the log's own stand beside them, for a search.
//!
//! A closed set of the schema has a row for each of its words, which a test holds against it.

/// Which set of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// How requests ended, or why no end was reported.
    Ends,
    /// Why requests were refused.
    Refusals,
    /// Why keys opened nothing.
    Failures,
    /// Which key.
    Keys,
    /// How the log was read.
    Readings,
    /// Whether files were taken.
    Reloads,
    /// Which way the clock went.
    Directions,
    /// What has changed since the last start.
    Parts,
    /// A setting that weakens a protection.
    Settings,
    /// Names, numbers and sentences, which stand as they are.
    Plain,
}

impl Set {
    /// The set of a member of an event.
    pub(super) fn of(event: &str, member: &str) -> Self {
        match (event, member) {
            ("end", "outcome") | ("end_missing", "cause") => Self::Ends,
            ("refused", "reason") => Self::Refusals,
            ("authentication_failed", "cause") => Self::Failures,
            ("reloaded", "outcome") => Self::Reloads,
            ("log_read", "action") => Self::Readings,
            ("clock_jump", "direction") => Self::Directions,
            ("config_changed", "part") => Self::Parts,
            ("override", "setting") => Self::Settings,
            (_, "key") => Self::Keys,
            _ => Self::Plain,
        }
    }

    /// Its words, as the log has them and as they are said.
    const fn rows(self) -> Rows {
        match self {
            Self::Ends => ENDS,
            Self::Refusals => REFUSALS,
            Self::Failures => FAILURES,
            Self::Keys => KEYS,
            Self::Readings => READINGS,
            Self::Reloads => &[("taken", "taken"), ("refused", "refused: what was in force stays")],
            Self::Directions => &[("forward", "forward"), ("back", "back")],
            Self::Parts => &[
                ("configuration", "the configuration"),
                ("policy", "the compiled policy"),
                ("build", "the programs"),
            ],
            Self::Settings => SETTINGS,
            Self::Plain => &[],
        }
    }

    /// What a word of the log means; itself where it is none of the set.
    pub(super) fn say(self, word: &str) -> &str {
        find(self.rows(), word).unwrap_or(word)
    }
}

type Rows = &'static [(&'static str, &'static str)];

const ENDS: Rows = &[
    ("stop", "answered in full"),
    ("length", "cut at the longest answer allowed"),
    ("cancelled", "given up by the client"),
    ("refused", "refused by the worker"),
    ("failed", "failed"),
    ("worker_gone", "no end: the worker was gone"),
    ("gateway_gone", "no end: the gateway was gone"),
    ("supervisor_gone", "no end: the supervisor was gone"),
    ("deadline", "no end: its time was up"),
    ("abandoned", "no end: given up before a worker had it"),
    ("revoked", "no end: its token was revoked while it waited"),
    ("log_unavailable", "denied: the log failed as it began"),
    ("key_unavailable", "no end: its principal's key was gone"),
];

const REFUSALS: Rows = &[
    ("model_unknown", "no such model"),
    ("model_unavailable", "the model was not serving"),
    ("log_unavailable", "the log could not be written"),
    ("too_many_requests", "too many requests at once"),
    ("stopping", "the service was stopping"),
];

const FAILURES: Rows = &[
    ("unknown", "no token has this key"),
    ("expired", "the token had expired"),
    ("revoked", "the token was revoked"),
    ("malformed", "no key, or what cannot be one"),
];

const KEYS: Rows = &[
    ("model_identity", "the identity that opens models"),
    ("tls", "the TLS key"),
    ("audit", "the key that signs the log"),
    ("wrapping", "the key that wraps principals' keys"),
    ("principal", "a principal's key"),
];

const READINGS: Rows = &[
    ("verify", "checked it"),
    ("list", "listed or searched records"),
    ("show", "showed a record"),
    ("match", "looked for a text"),
    ("stats", "counted"),
    ("export", "exported"),
    ("report", "made a report"),
    ("follow", "followed it"),
    ("browse", "browsed it"),
];

const SETTINGS: Rows = &[
    ("allow_unsigned", "a model without a trusted signature is served"),
    ("evaluation_profile", "all parts run as one user, without root"),
    ("swap", "memory may be written to a swap device"),
    ("guess_tokens", "an answer's timing shows where it repeats itself"),
    ("gpu_layers", "a card computes layers; its driver is in the worker's process"),
];

const EVENTS: Rows = &[
    ("start", "started"),
    ("stop", "stopped in order"),
    ("recovered", "started after an end that was not in order"),
    ("events_dropped", "events dropped while the log could not be written"),
    ("config_changed", "changed since the last start"),
    ("override", "a protection is weakened"),
    ("model_opened", "model opened"),
    ("model_refused", "model refused"),
    ("begin", "request began"),
    ("end", "request ended"),
    ("end_missing", "request without an end"),
    ("refused", "requests refused"),
    ("authentication_failed", "keys that opened nothing"),
    ("ticket_missing", "request without a ticket"),
    ("key_created", "key made"),
    ("key_used", "key used"),
    ("key_rotated", "key replaced"),
    ("key_destroyed", "key destroyed"),
    ("tokens_loaded", "token table read"),
    ("certificate_loaded", "certificate taken"),
    ("reloaded", "reload"),
    ("child_started", "part started"),
    ("child_died", "part died"),
    ("worker_ended", "worker ended after its request"),
    ("sandbox_violation", "part killed by its sandbox"),
    ("clock_jump", "clock set"),
    ("log_read", "log read"),
    ("retention_run", "old records removed"),
    ("erasure_asked", "erasure asked for"),
    ("erased", "principal erased"),
];

/// Members whose names say too little by themselves.
const MEMBERS: Rows = &[
    ("by_s_max", "seconds, at most"),
    ("records_max", "records, at most"),
    ("dropped_bytes", "bytes dropped"),
    ("landlock_abi", "landlock version"),
    ("uid", "user id"),
    ("by", "user ids"),
    ("count", "how many"),
    ("before", "before"),
    ("older_than_s", "older than"),
    ("min_s", "kept at least"),
    ("max_s", "kept at most"),
    ("admitted_s", "admitted at"),
    ("from_s", "from"),
    ("to_s", "to"),
    ("tpm_counter", "TPM's counter"),
    ("check", "why"),
    ("cause", "why"),
    ("reason", "why"),
    ("id", "name"),
    ("size", "records under the old key"),
];

fn find(rows: Rows, word: &str) -> Option<&'static str> {
    rows.iter().find(|(raw, _)| *raw == word).map(|(_, said)| *said)
}

/// What an event is called.
pub(super) fn event(name: &str) -> String {
    find(EVENTS, name).map_or_else(|| name.replace('_', " "), ToOwned::to_owned)
}

/// What a member is called: the last part of the way to it.
pub(super) fn member(name: &str) -> String {
    find(MEMBERS, name).map_or_else(|| name.replace('_', " "), ToOwned::to_owned)
}

/// A reading's name in the summary, `uid 0, export`, in words.
pub(super) fn reader(name: &str) -> String {
    match name.split_once(", ") {
        Some((uid, action)) => {
            format!("{}: {}", uid.replace("uid", "user"), Set::Readings.say(action))
        }
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Event;
    use crate::audit::record::samples::names;
    use crate::audit::record::{
        AuthenticationCause, ClockDirection, ConfigPart, KeyRole, LogAction, MissingCause,
        RefusalReason, ReloadOutcome, SCHEMA, UnaskedCause, WeakSetting,
    };

    #[test]
    fn every_word_of_the_schema_is_said_in_words() {
        let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
        let outcomes = &schema["$defs"]["end_facts"]["properties"]["outcome"]["enum"];
        let outcomes: Vec<String> = serde_json::from_value(outcomes.clone()).unwrap();
        for (rows, words) in [
            (EVENTS, names::<Event>()),
            (Set::Ends.rows(), [outcomes, names::<MissingCause>()].concat()),
            (Set::Refusals.rows(), names::<RefusalReason>()),
            (
                Set::Failures.rows(),
                [names::<AuthenticationCause>(), names::<UnaskedCause>()].concat(),
            ),
            (Set::Keys.rows(), names::<KeyRole>()),
            (Set::Readings.rows(), names::<LogAction>()),
            (Set::Reloads.rows(), names::<ReloadOutcome>()),
            (Set::Directions.rows(), names::<ClockDirection>()),
            (Set::Parts.rows(), names::<ConfigPart>()),
            (Set::Settings.rows(), names::<WeakSetting>()),
        ] {
            let known: Vec<&str> = rows.iter().map(|(raw, _)| *raw).collect();
            assert_eq!(words, known);
            assert!(rows.iter().all(|(_, said)| !said.contains('_')), "{rows:?}");
        }
        assert_eq!(Set::Refusals.say("of a later version"), "of a later version");
        assert_eq!(reader("uid 0, export"), "user 0: exported");
        assert_eq!(reader("(others)"), "(others)");
    }
}
