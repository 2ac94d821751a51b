//! What can go wrong in the gateway, and its HTTP status, in one match.
//!
//! No variant can hold a word of a client: fixed names, indices and numbers only.

use std::fmt;

use hyper::StatusCode;
use serde_json::json;

use super::param::Param;
use crate::ipc::message::{Denial, Failure};

/// Why the gateway cannot start or go on.
#[derive(Debug)]
pub enum Error {
    /// The control channel to the supervisor failed or closed.
    Control(crate::ipc::Error),
    /// The supervisor closed the control channel.
    SupervisorGone,
    /// The first message is not the configuration, or another comes that has no place.
    Protocol(&'static str),
    /// Listeners and descriptors do not match.
    ListenersMismatch {
        /// Listeners named in the configuration.
        named: usize,
        /// Descriptors that came with it.
        received: usize,
    },
    /// The certificate chain or the key's scheme cannot be used.
    Tls(&'static str),
    /// The sandbox was not entered.
    Sandbox(crate::sandbox::Error),
    /// A system call failed.
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(_) => write!(f, "control channel failed"),
            Self::SupervisorGone => write!(f, "supervisor closed the control channel"),
            Self::Protocol(what) => write!(f, "supervisor broke protocol: {what}"),
            Self::ListenersMismatch { named, received } => {
                write!(f, "configuration names {named} listeners, {received} descriptors came")
            }
            Self::Tls(what) => write!(f, "TLS configuration: {what}"),
            Self::Sandbox(source) => write!(f, "{source}"),
            Self::Io { action, .. } => write!(f, "{action}"),
        }
    }
}

impl Error {
    /// The process's exit code: without files, a terminal and a channel, a number is all that can
    /// be said of a start that failed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Control(_) => 10,
            Self::SupervisorGone => 11,
            Self::Protocol(_) => 12,
            Self::ListenersMismatch { .. } => 13,
            Self::Tls(_) => 14,
            Self::Sandbox(_) => 15,
            Self::Io { .. } => 16,
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Control(source) => Some(source),
            Self::Sandbox(source) => Some(source),
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Why a field of a body is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// It must be there.
    Missing,
    /// It has another type.
    WrongType(&'static str),
    /// A number outside its range.
    OutOfRange(&'static str),
    /// A choice that does not exist.
    NotOneOf(&'static str),
    /// More bytes than allowed.
    TooLong {
        /// The limit.
        max_bytes: usize,
    },
    /// More elements than allowed.
    TooMany {
        /// The limit.
        max: usize,
    },
    /// Empty where something is needed.
    Empty,
    /// Its value is not valid JSON (`NaN` is not).
    NotJson,
    /// Known, but this server cannot do it; ignoring it would change the answer.
    Unsupported(&'static str),
    /// Contradicts another field.
    Conflicts(&'static str),
    /// An object holds a field that is not known; its place in the object, from 1.
    UnknownField(usize),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "is required"),
            Self::WrongType(want) => write!(f, "must be {want}"),
            Self::OutOfRange(range) => write!(f, "must be {range}"),
            Self::NotOneOf(choices) => write!(f, "must be one of {choices}"),
            Self::TooLong { max_bytes } => write!(f, "is longer than {max_bytes} bytes"),
            Self::TooMany { max } => write!(f, "has more than {max} elements"),
            Self::Empty => write!(f, "must not be empty"),
            Self::NotJson => write!(f, "is not valid JSON"),
            Self::Unsupported(what) => write!(f, "is not supported: {what}"),
            Self::Conflicts(other) => write!(f, "contradicts `{other}`"),
            Self::UnknownField(place) => {
                write!(f, "holds a field that is not known (number {place} of the object)")
            }
        }
    }
}

/// Why a body is no JSON object that can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JsonFault {
    /// Not JSON.
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Not an object.
    NotAnObject,
    /// Objects and arrays nested too deeply.
    TooDeep,
    /// Too many values.
    TooManyValues,
    /// An object names a field twice.
    DuplicateField,
}

/// Why a request has no answer; each is one HTTP status and one OpenAI error body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApiError {
    /// The body is not readable JSON.
    Json(JsonFault),
    /// A field is refused.
    Field(Param, Rule),
    /// The body itself is refused.
    Body(Rule),
    /// No readable `Authorization: Bearer` header.
    KeyMissing,
    /// The supervisor grants no work.
    Denied(Denial),
    /// No such path.
    NotFound,
    /// The path has other methods.
    MethodNotAllowed(&'static str),
    /// Head or body did not arrive in time.
    RequestTimeout,
    /// The body is too long.
    BodyTooLong {
        /// The limit.
        max_bytes: usize,
    },
    /// The body is not `application/json`.
    MediaType,
    /// Too many header fields, or too long.
    HeadersTooLong,
    /// Too many requests at once.
    TooManyRequests,
    /// The worker is gone, or not up.
    WorkerUnavailable,
    /// The worker's answer did not come in time.
    WorkerTimeout,
    /// The worker gives no answer.
    Failed(Failure),
    /// The answer was cancelled by the operator's side.
    Cancelled,
    /// The client reads too slowly for its answer.
    ClientTooSlow,
    /// Not ready.
    NotReady,
    /// A fault of the gateway.
    Internal,
}

/// What a client sees of an error, beside its message.
struct Shape {
    status: u16,
    kind: &'static str,
    code: Option<&'static str>,
    retry: Retry,
}

/// What a client should do next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// The status says it.
    Unsaid,
    /// Not again: it will not help.
    No,
    /// Again after so many seconds.
    After(u16),
}

const fn shape(status: u16, kind: &'static str, code: Option<&'static str>, retry: Retry) -> Shape {
    Shape { status, kind, code, retry }
}

impl ApiError {
    fn shape(&self) -> Shape {
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        const LIMIT: &str = "rate_limit_error";
        match self {
            Self::Json(_) | Self::Body(_) => shape(400, INVALID, None, Retry::Unsaid),
            Self::Field(_, Rule::Unsupported(_)) => {
                shape(400, INVALID, Some("unsupported_parameter"), Retry::Unsaid)
            }
            Self::Field(..) => shape(400, INVALID, Some("invalid_value"), Retry::Unsaid),
            Self::KeyMissing | Self::Denied(Denial::KeyInvalid) => {
                shape(401, INVALID, Some("invalid_api_key"), Retry::Unsaid)
            }
            Self::Denied(Denial::ModelUnknown) => {
                shape(404, INVALID, Some("model_not_found"), Retry::Unsaid)
            }
            Self::NotFound => shape(404, INVALID, Some("unknown_url"), Retry::Unsaid),
            Self::MethodNotAllowed(_) => {
                shape(405, INVALID, Some("method_not_allowed"), Retry::Unsaid)
            }
            Self::RequestTimeout => shape(408, INVALID, Some("request_timeout"), Retry::Unsaid),
            Self::BodyTooLong { .. } => {
                shape(413, INVALID, Some("request_too_large"), Retry::Unsaid)
            }
            Self::MediaType => shape(415, INVALID, Some("unsupported_media_type"), Retry::Unsaid),
            Self::HeadersTooLong => shape(431, INVALID, Some("headers_too_large"), Retry::Unsaid),
            Self::Failed(Failure::ContextTooLong { .. }) => {
                shape(400, INVALID, Some("context_length_exceeded"), Retry::Unsaid)
            }
            Self::Failed(Failure::TemplateRefused | Failure::RequestInvalid) => {
                shape(400, INVALID, Some("invalid_value"), Retry::Unsaid)
            }
            Self::Denied(Denial::TooManyRequests) => {
                shape(429, LIMIT, Some("rate_limit_exceeded"), Retry::After(2))
            }
            Self::TooManyRequests | Self::Failed(Failure::Busy) => {
                shape(429, LIMIT, Some("rate_limit_exceeded"), Retry::After(1))
            }
            Self::Denied(Denial::ModelUnavailable) | Self::WorkerUnavailable | Self::NotReady => {
                shape(503, SERVER, Some("model_unavailable"), Retry::After(5))
            }
            Self::Denied(Denial::Stopping) => shape(503, SERVER, Some("stopping"), Retry::After(5)),
            Self::Denied(Denial::LogUnavailable) => {
                shape(503, SERVER, Some("audit_log_unavailable"), Retry::No)
            }
            Self::WorkerTimeout => shape(503, SERVER, Some("worker_timeout"), Retry::No),
            Self::Cancelled => shape(503, SERVER, Some("cancelled"), Retry::No),
            Self::ClientTooSlow => shape(408, SERVER, Some("client_too_slow"), Retry::No),
            Self::Failed(Failure::NoTicket | Failure::Internal) | Self::Internal => {
                shape(500, SERVER, Some("internal_error"), Retry::No)
            }
        }
    }

    /// Its HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.shape().status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The header fields that go with it.
    #[must_use]
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let shape = self.shape();
        let mut headers = Vec::new();
        match shape.retry {
            Retry::Unsaid => {}
            Retry::No => headers.push(("x-should-retry", "false".to_owned())),
            Retry::After(seconds) => {
                headers.push(("retry-after", seconds.to_string()));
                headers.push(("x-should-retry", "true".to_owned()));
            }
        }
        if shape.status == 401 {
            headers.push(("www-authenticate", "Bearer realm=\"cloister\"".to_owned()));
        }
        if let Self::MethodNotAllowed(allowed) = self {
            headers.push(("allow", (*allowed).to_owned()));
        }
        headers
    }

    /// The field that is at fault.
    fn param(&self) -> Option<String> {
        match self {
            Self::Field(param, _) => Some(param.to_string()),
            Self::Denied(Denial::ModelUnknown) => Some("model".to_owned()),
            _ => None,
        }
    }

    /// The error object of OpenAI's API: message, type, param and code, always all four.
    #[must_use]
    pub fn body(&self) -> serde_json::Value {
        let shape = self.shape();
        json!({ "error": {
            "message": self.to_string(),
            "type": shape.kind,
            "param": self.param(),
            "code": shape.code,
        }})
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(fault) => write!(f, "{fault}"),
            Self::Field(param, rule) => write!(f, "`{param}` {rule}"),
            Self::Body(rule) => write!(f, "the body {rule}"),
            Self::KeyMissing => write!(
                f,
                "no API key: send it as `Authorization: Bearer KEY`; `cloister token add` makes one"
            ),
            Self::Denied(denial) => write!(f, "{}", denial_text(*denial)),
            Self::NotFound => write!(f, "no such path; the API is under /v1"),
            Self::MethodNotAllowed(allowed) => write!(f, "this path takes {allowed} only"),
            Self::RequestTimeout => write!(f, "the request did not arrive in time"),
            Self::BodyTooLong { max_bytes } => {
                write!(f, "the body is longer than {max_bytes} bytes")
            }
            Self::MediaType => {
                write!(f, "send the body as `Content-Type: application/json`, uncompressed")
            }
            Self::HeadersTooLong => write!(f, "too many header fields, or too long"),
            Self::TooManyRequests => write!(f, "too many requests at once; try again"),
            Self::WorkerUnavailable => write!(f, "the model is not available; try again"),
            Self::WorkerTimeout => write!(f, "the model did not answer in time"),
            Self::Failed(failure) => write_failure(f, *failure),
            Self::Cancelled => write!(f, "the answer was cancelled by the server"),
            Self::ClientTooSlow => write!(f, "the answer was left unread for too long"),
            Self::NotReady => write!(f, "no model is ready"),
            Self::Internal => write!(f, "internal error"),
        }
    }
}

impl std::error::Error for ApiError {}

fn denial_text(denial: Denial) -> &'static str {
    match denial {
        Denial::KeyInvalid => "the API key is not valid",
        Denial::ModelUnknown => "no such model; `GET /v1/models` lists them",
        Denial::ModelUnavailable => "the model is not ready; try again",
        Denial::LogUnavailable => "the audit log cannot be written, so no request is served",
        Denial::TooManyRequests => "too many requests; try again",
        Denial::Stopping => "the server is stopping",
    }
}

fn write_failure(f: &mut fmt::Formatter<'_>, failure: Failure) -> fmt::Result {
    match failure {
        // The wording is OpenAI's, because clients look for it.
        Failure::ContextTooLong { prompt_tokens, max_tokens, context_len_tokens } => write!(
            f,
            "This model's maximum context length is {context_len_tokens} tokens. However, you \
             requested {} tokens ({prompt_tokens} in the messages, {max_tokens} in the \
             completion). Please reduce the length of the messages or completion.",
            u64::from(prompt_tokens) + u64::from(max_tokens)
        ),
        Failure::TemplateRefused => write!(f, "the model's chat template refuses these messages"),
        Failure::RequestInvalid => write!(f, "a value of the request is out of its range"),
        Failure::Busy => write!(f, "the model has no room for one more request; try again"),
        Failure::NoTicket | Failure::Internal => write!(f, "internal error"),
    }
}

impl fmt::Display for JsonFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { line, column } => {
                write!(f, "the body is not valid JSON (line {line}, column {column})")
            }
            Self::NotAnObject => write!(f, "the body must be a JSON object"),
            Self::TooDeep => write!(f, "the body is nested too deeply"),
            Self::TooManyValues => write!(f, "the body holds too many values"),
            Self::DuplicateField => write!(f, "the body names a field twice"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<ApiError> {
        let mut errors = vec![
            ApiError::Json(JsonFault::Syntax { line: 1, column: 2 }),
            ApiError::Json(JsonFault::NotAnObject),
            ApiError::Json(JsonFault::TooDeep),
            ApiError::Json(JsonFault::TooManyValues),
            ApiError::Json(JsonFault::DuplicateField),
            ApiError::Body(Rule::UnknownField(3)),
            ApiError::KeyMissing,
            ApiError::NotFound,
            ApiError::MethodNotAllowed("GET"),
            ApiError::RequestTimeout,
            ApiError::BodyTooLong { max_bytes: 9 },
            ApiError::MediaType,
            ApiError::HeadersTooLong,
            ApiError::TooManyRequests,
            ApiError::WorkerUnavailable,
            ApiError::WorkerTimeout,
            ApiError::Cancelled,
            ApiError::ClientTooSlow,
            ApiError::NotReady,
            ApiError::Internal,
        ];
        let rules = [
            Rule::Missing,
            Rule::WrongType("a string"),
            Rule::OutOfRange("1"),
            Rule::NotOneOf("a, b"),
            Rule::TooLong { max_bytes: 1 },
            Rule::TooMany { max: 1 },
            Rule::Empty,
            Rule::NotJson,
            Rule::Unsupported("no"),
            Rule::Conflicts("n"),
            Rule::UnknownField(1),
        ];
        errors.extend(rules.map(|rule| ApiError::Field(Param::new("stop"), rule)));
        let denials = [
            Denial::KeyInvalid,
            Denial::ModelUnknown,
            Denial::ModelUnavailable,
            Denial::LogUnavailable,
            Denial::TooManyRequests,
            Denial::Stopping,
        ];
        errors.extend(denials.map(ApiError::Denied));
        let context =
            Failure::ContextTooLong { prompt_tokens: 1, max_tokens: 2, context_len_tokens: 3 };
        let failures = [
            Failure::NoTicket,
            context,
            Failure::TemplateRefused,
            Failure::RequestInvalid,
            Failure::Busy,
            Failure::Internal,
        ];
        errors.extend(failures.map(ApiError::Failed));
        errors
    }

    #[test]
    fn every_error_is_a_status_and_all_four_fields() {
        for error in all() {
            let status = error.status();
            assert!(status.is_client_error() || status.is_server_error(), "{error:?}");
            let body = error.body();
            let fields: Vec<_> = body["error"].as_object().unwrap().keys().collect();
            assert_eq!(fields, ["message", "type", "param", "code"], "{error:?}");
            assert_eq!(body["error"]["message"], error.to_string());
            // A client that may retry is told when, within what the openai client obeys.
            let headers = error.headers();
            let header = |name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
            if matches!(status.as_u16(), 429 | 500..) {
                assert!(header("x-should-retry").is_some(), "{error:?}");
            }
            let after = header("retry-after").map(|seconds| seconds.parse::<u16>().unwrap());
            assert!(after.is_none_or(|seconds| seconds <= 120), "{error:?}");
            assert_eq!(header("www-authenticate").is_some(), status == 401, "{error:?}");
        }
    }

    #[test]
    fn every_fault_of_the_process_has_words_and_a_code_of_its_own() {
        let errors = [
            Error::Control(crate::ipc::Error::Truncated),
            Error::SupervisorGone,
            Error::Protocol("x"),
            Error::ListenersMismatch { named: 1, received: 2 },
            Error::Tls("x"),
            Error::Sandbox(crate::sandbox::Error::LandlockTooOld { abi: 1, floor: 3 }),
            Error::Io { action: "x", source: std::io::ErrorKind::NotFound.into() },
        ];
        let codes: Vec<_> = errors.iter().map(Error::exit_code).collect();
        assert_eq!(codes, [10, 11, 12, 13, 14, 15, 16]);
        assert!(errors.iter().all(|error| !error.to_string().is_empty()));
    }
}
