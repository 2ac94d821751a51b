//! Messages as records and reasons: the words that stand in the log.

use std::time::Duration;

use ring::hmac;

use super::ledger::{Ledger, Principal, request_name};
use crate::audit::Event;
use crate::audit::principal_keys::hex;
use crate::audit::record::{EndFacts, EndedFacts, MissingCause, RefusalReason, bucket};
use crate::ipc::message::{Denial, EndReport, Endpoint, Outcome, RequestId};

/// The record of an end; the digests are keyed here.
pub(super) fn end_event(
    report: &EndReport,
    principal: &Principal,
    duration: Duration,
    ledger: &mut Ledger,
) -> Event {
    let name = request_name(report.request);
    let missing = Event::end_missing(name.clone(), MissingCause::KeyUnavailable);
    // What was refused was not processed: its digests would be a cheap way to fill the disk.
    let is_processed = report.outcome != Outcome::Refused;
    let processed = report.messages.iter().filter(|_| is_processed);
    let messages: Result<Vec<_>, _> =
        processed.map(|digest| ledger.keyed(principal, digest)).collect();
    let answer = ledger.keyed(principal, &report.answer);
    let parameters = ledger.keyed(principal, &report.parameters);
    let (Ok(messages), Ok(answer), Ok(parameters)) = (messages, answer, parameters) else {
        return missing;
    };
    Event::End {
        request: name,
        observed: EndedFacts { duration_s_max: bucket(duration.as_secs()) },
        declared: EndFacts {
            outcome: outcome_name(report.outcome).to_owned(),
            messages,
            answer,
            parameters,
            prompt_tokens_max: bucket(report.prompt_tokens.into()),
            completion_tokens_max: bucket(report.completion_tokens.into()),
        },
    }
}

/// Every source file of Cloister.
const SOURCES: &[&str] = include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// What a child says of its panic. A path that is none of ours is not repeated: a worker that was
/// taken over could write what it knows into it.
pub(super) fn panic_text(file: &str, line: u32) -> String {
    match SOURCES.binary_search(&file) {
        Ok(_) => format!("declared a panic at {file}:{line}"),
        Err(_) => "declared a panic outside of Cloister's own sources".to_owned(),
    }
}

/// The name in the log of a request that a worker alone has seen: the same for the same, and nothing that
/// the worker could choose.
pub(super) fn blind(key: &hmac::Key, request: RequestId) -> String {
    hex(&hmac::sign(key, &request.0).as_ref()[..request.0.len()])
}

/// Whether a child's label is printable ASCII, so that no record or line can be forged with it.
pub(super) fn is_plain(label: &str) -> bool {
    label.len() <= 256 && label.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

pub(super) fn endpoint_name(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "chat",
        Endpoint::Completion => "completion",
    }
}

pub(super) fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Stop => "stop",
        Outcome::Length => "length",
        Outcome::Cancelled => "cancelled",
        Outcome::Refused => "refused",
        Outcome::Failed => "failed",
    }
}

/// The reason in the log; `None` for a key that opens nothing, which has an event of its own.
pub(super) fn refusal_reason(denial: Denial) -> Option<RefusalReason> {
    Some(match denial {
        Denial::KeyInvalid => return None,
        Denial::ModelUnknown => RefusalReason::ModelUnknown,
        Denial::ModelUnavailable => RefusalReason::ModelUnavailable,
        Denial::LogUnavailable => RefusalReason::LogUnavailable,
        Denial::TooManyRequests => RefusalReason::TooManyRequests,
        Denial::Stopping => RefusalReason::Stopping,
    })
}
