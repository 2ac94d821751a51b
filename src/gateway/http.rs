//! HTTP: the one table of method, path and answer; what a request passes before it is answered.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::api::{self, StreamOptions};
use super::auth::presented_key;
use super::control::{Begin, Begun, Control};
use super::error::ApiError;
use super::failures::Failures;
use super::generation::Generation;
use super::link::Workers;
use super::queue::Event;
use super::reply::{self, Head, finish_reason, hex};
use super::stream::{EventStream, PING_INTERVAL, ResponseBody};
use crate::ipc::message::{Digest, Endpoint, Generate, NAME_LEN_MAX_BYTES, RequestId};

/// Most header fields of a request; the openai client sends about 16.
pub(super) const HEADERS_COUNT_MAX: usize = 64;

/// Longest header fields of a request together, in bytes.
const HEADERS_LEN_MAX_BYTES: usize = 16 << 10;

/// Most bytes of a refused body that are read and thrown away, so that its sender sees the answer
/// instead of a broken connection.
const DISCARD_LEN_MAX_BYTES: usize = 64 << 20;

/// Longest answer that is not streamed, in bytes.
pub(super) const ANSWER_LEN_MAX_BYTES: usize = 64 << 20;

/// What an answer needs, beside its request.
pub(super) struct Shared {
    pub(super) control: Arc<Control>,
    pub(super) workers: Arc<Workers>,
    pub(super) failures: Arc<Failures>,
    /// Requests at once.
    pub(super) requests: Arc<Semaphore>,
    pub(super) body_len_max_bytes: usize,
    pub(super) read_deadline: Duration,
}

impl Shared {
    /// The key of a request; one without any counts as a failed authentication.
    fn presented_key(&self, headers: &HeaderMap) -> Result<Digest, ApiError> {
        presented_key(headers).inspect_err(|_| self.failures.note(&self.control))
    }
}

/// What a path stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Route {
    Live,
    Ready,
    Models,
    Model,
    Generate(Endpoint),
}

/// Every path. One that ends in `/` takes a name behind it.
const ROUTES: &[(&str, &str, Route)] = &[
    ("GET", "/health/live", Route::Live),
    ("GET", "/health/ready", Route::Ready),
    ("GET", "/v1/models", Route::Models),
    ("GET", "/v1/models/", Route::Model),
    ("POST", "/v1/chat/completions", Route::Generate(Endpoint::Chat)),
    ("POST", "/v1/completions", Route::Generate(Endpoint::Completion)),
];

/// Finds the route, and the name behind it. `HEAD` goes where `GET` goes.
fn route<'a>(method: &Method, path: &'a str) -> Result<(Route, &'a str), ApiError> {
    let found = ROUTES.iter().find_map(|(allowed, pattern, route)| {
        let name = path.strip_prefix(pattern)?;
        let takes_name = pattern.ends_with('/');
        (takes_name != name.is_empty()).then_some((*allowed, *route, name))
    });
    let (allowed, route, name) = found.ok_or(ApiError::NotFound)?;
    let asked = if *method == Method::HEAD { "GET" } else { method.as_str() };
    if asked != allowed {
        return Err(ApiError::MethodNotAllowed(allowed));
    }
    Ok((route, name))
}

/// Answers a request.
pub(super) async fn answer(
    shared: Arc<Shared>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let mut begun = None;
    let answered = dispatch(&shared, &mut request, &mut begun).await;
    let mut response = match answered {
        Ok(response) => response,
        Err(error) => {
            discard(&shared, &mut request).await;
            refusal(&error)
        }
    };
    let headers = response.headers_mut();
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    if let Some(id) = begun.and_then(|id| HeaderValue::from_str(&hex(id)).ok()) {
        headers.insert("x-request-id", id);
    }
    Ok(response)
}

async fn dispatch(
    shared: &Shared,
    request: &mut Request<Incoming>,
    begun: &mut Option<RequestId>,
) -> Result<Response<ResponseBody>, ApiError> {
    check_headers(request.headers())?;
    let (route, name) = route(request.method(), request.uri().path())?;
    match route {
        Route::Live => Ok(json(StatusCode::OK, r#"{"status":"live"}"#.to_owned())),
        Route::Ready if shared.workers.any() => {
            Ok(json(StatusCode::OK, r#"{"status":"ready"}"#.to_owned()))
        }
        Route::Ready => Err(ApiError::NotReady),
        Route::Models => {
            shared.control.authorize(shared.presented_key(request.headers())?).await?;
            let models: Vec<_> = shared.workers.models().iter().map(reply::model).collect();
            let list = serde_json::json!({ "object": "list", "data": models });
            Ok(json(StatusCode::OK, list.to_string()))
        }
        Route::Model => {
            let name = percent_decode(name);
            shared.control.authorize(shared.presented_key(request.headers())?).await?;
            let models = shared.workers.models();
            let found = models.iter().find(|info| Some(&info.name) == name.as_ref());
            let unknown = ApiError::Denied(crate::ipc::message::Denial::ModelUnknown);
            Ok(json(StatusCode::OK, reply::model(found.ok_or(unknown)?).to_string()))
        }
        Route::Generate(endpoint) => generate(shared, request, endpoint, begun).await,
    }
}

fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let len: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > HEADERS_COUNT_MAX || len > HEADERS_LEN_MAX_BYTES {
        return Err(ApiError::HeadersTooLong);
    }
    Ok(())
}

/// Decodes `%xx`; `None` when malformed or too long to be a model's name.
fn percent_decode(text: &str) -> Option<String> {
    if text.len() > 3 * NAME_LEN_MAX_BYTES {
        return None;
    }
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        decoded.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(decoded).ok()
}

async fn generate(
    shared: &Shared,
    request: &mut Request<Incoming>,
    endpoint: Endpoint,
    begun: &mut Option<RequestId>,
) -> Result<Response<ResponseBody>, ApiError> {
    let key = shared.presented_key(request.headers())?;
    let permit = Arc::clone(&shared.requests).try_acquire_owned();
    let permit = permit.map_err(|_| ApiError::TooManyRequests)?;
    // Nobody without a key hears of the body, or has it read into memory or parsed.
    shared.control.authorize(key).await?;
    check_media_type(request.headers())?;
    let body = read_body(shared, request).await?;
    let asked = api::parse(endpoint, &body)?;
    drop(body);
    let begin = Begin {
        key,
        endpoint,
        model: asked.model.clone(),
        max_tokens: asked.max_tokens,
        stream: asked.stream.is_some(),
    };
    let Begun { unsent, model, service } = shared.control.begin(begin).await?;
    let request = unsent.request();
    *begun = Some(request);
    let stream = asked.stream;
    let work = Generate {
        request,
        prompt: asked.prompt,
        sampling: asked.sampling,
        stop: asked.stop,
        max_tokens: asked.max_tokens,
    };
    let generation = Generation::begin(unsent, service, work, Arc::clone(&shared.workers))?;
    let model = shared.workers.model_name(model).ok_or(ApiError::WorkerUnavailable)?;
    let head = Head { endpoint, request, model, created_s: now_s() };
    match stream {
        Some(options) => begin_stream(head, options, generation, permit).await,
        None => collect(&head, generation).await,
    }
}

/// Waits a moment for the first event, so that a refusal is still a status of its own.
async fn begin_stream(
    head: Head,
    options: StreamOptions,
    mut generation: Generation,
    permit: OwnedSemaphorePermit,
) -> Result<Response<ResponseBody>, ApiError> {
    let first = tokio::time::timeout(PING_INTERVAL, generation.next_event()).await.ok();
    if let Some(Event::Failed(error)) = first {
        return Err(error);
    }
    let events = EventStream::new(head, options, generation, first, permit);
    let mut response = Response::new(ResponseBody::Events(Box::new(events)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// The answer as one object.
async fn collect(
    head: &Head,
    mut generation: Generation,
) -> Result<Response<ResponseBody>, ApiError> {
    let mut text = String::new();
    loop {
        match generation.next_event().await {
            Event::Started => {}
            Event::Text(more) => {
                if more.len() > ANSWER_LEN_MAX_BYTES - text.len() {
                    return Err(ApiError::Internal);
                }
                text.push_str(&more);
            }
            Event::Done { finish, usage } => {
                let reason = finish_reason(finish).ok_or(ApiError::Cancelled)?;
                return Ok(json(StatusCode::OK, head.whole(&text, reason, usage)));
            }
            Event::Failed(error) => return Err(error),
        }
    }
}

fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    let is_plain = headers.get(CONTENT_ENCODING).is_none_or(|value| value == "identity");
    if is_plain && essence.trim().eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(ApiError::MediaType)
    }
}

async fn read_body(shared: &Shared, request: &mut Request<Incoming>) -> Result<Bytes, ApiError> {
    let max_bytes = shared.body_len_max_bytes;
    let too_long = ApiError::BodyTooLong { max_bytes };
    if declared_len(request) > max_bytes {
        return Err(too_long);
    }
    let read = async {
        let mut body = Vec::new();
        while let Some(frame) = request.body_mut().frame().await {
            // Broken off by the client, who sees no answer either.
            let frame = frame.map_err(|_| ApiError::RequestTimeout)?;
            let Ok(data) = frame.into_data() else { continue };
            if data.len() > max_bytes - body.len() {
                return Err(too_long);
            }
            body.extend_from_slice(&data);
        }
        Ok(Bytes::from(body))
    };
    tokio::time::timeout(shared.read_deadline, read).await.unwrap_or(Err(ApiError::RequestTimeout))
}

/// `Content-Length`; 0 when the body comes in chunks.
fn declared_len(request: &Request<Incoming>) -> usize {
    let declared = hyper::body::Body::size_hint(request.body()).lower();
    usize::try_from(declared).unwrap_or(usize::MAX)
}

/// Reads and forgets what is left of a refused request's body.
async fn discard(shared: &Shared, request: &mut Request<Incoming>) {
    // Who waits to be told to go on has sent nothing yet.
    if request.headers().contains_key(EXPECT) || declared_len(request) > DISCARD_LEN_MAX_BYTES {
        return;
    }
    let read = async {
        let mut left = DISCARD_LEN_MAX_BYTES;
        while let Some(Ok(frame)) = request.body_mut().frame().await {
            let len = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(len) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Late or not, the answer follows.
    tokio::time::timeout(shared.read_deadline, read).await.ok();
}

fn json(status: StatusCode, text: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refusal(error: &ApiError) -> Response<ResponseBody> {
    let mut response = json(error.status(), error.body().to_string());
    for (name, value) in error.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_by_method_and_path() {
        let chat = Route::Generate(Endpoint::Chat);
        assert_eq!(route(&Method::POST, "/v1/chat/completions"), Ok((chat, "")));
        assert_eq!(route(&Method::GET, "/v1/models"), Ok((Route::Models, "")));
        assert_eq!(route(&Method::GET, "/v1/models/a/b"), Ok((Route::Model, "a/b")));
        assert_eq!(route(&Method::HEAD, "/health/live"), Ok((Route::Live, "")));
        for path in ["/", "/v1/models/", "/v1/chat/completions/", "/v1/modelsx", "", "*"] {
            assert_eq!(route(&Method::GET, path), Err(ApiError::NotFound), "{path}");
        }
        let wrong = route(&Method::GET, "/v1/completions");
        assert_eq!(wrong, Err(ApiError::MethodNotAllowed("POST")));
        let wrong = route(&Method::DELETE, "/v1/models/a");
        assert_eq!(wrong, Err(ApiError::MethodNotAllowed("GET")));
    }

    #[test]
    fn decodes_names_in_paths() {
        assert_eq!(percent_decode("a%3Ab").as_deref(), Some("a:b"));
        for text in ["%", "%4", "%zz", "%+1", "%ff", &"x".repeat(400)] {
            assert_eq!(percent_decode(text), None, "{text}");
        }
    }
}
