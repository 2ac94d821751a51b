//! A small client of the OpenAI API, for `cloister chat` and `cloister demo`, and of witnesses.
//!
//! One connection a request, over TLS, a Unix socket, or plain TCP to this machine only: a key is
//! never sent in the clear over a network.

use std::fmt;
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use pki_types::pem::PemObject as _;
use pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::audit::tiles::open_file;
use crate::secret::Secret;

/// Longest wait for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Longest silence in an answer; a server sends a sign of life every 15 s.
const SILENCE_DEADLINE: Duration = Duration::from_secs(600);

/// Longest answer, or single event of a streamed one, in bytes.
const ANSWER_LEN_MAX_BYTES: usize = 64 << 20;

/// Longest file of certificates, in bytes: a system's is a quarter of a megabyte.
const CERTIFICATES_LEN_MAX_BYTES: u64 = 16 << 20;

/// Where distributions keep the certificates that they trust.
const SYSTEM_CERTIFICATES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Why there is no answer.
#[derive(Debug)]
pub enum Error {
    /// Not an https:, http: or unix: address.
    Address,
    /// Plain http: to another machine.
    NotLoopback,
    /// The trusted certificates cannot be read.
    Certificates {
        /// The file; `None` when no system file exists.
        path: Option<PathBuf>,
    },
    /// What was to be asked is too long.
    PromptTooLong {
        /// The limit.
        max_bytes: u64,
    },
    /// The key holds bytes that a header cannot.
    Key,
    /// No connection.
    Connect(io::Error),
    /// The TLS handshake failed.
    Tls(io::Error),
    /// What came is not HTTP, or ended early.
    Http(hyper::Error),
    /// Nothing came for too long.
    Timeout,
    /// The answer is too long, or not what the API promises.
    Answer(&'static str),
    /// The server refused, with its words.
    Refused {
        /// HTTP status; 200 when a stream broke off.
        status: u16,
        /// The error's message.
        message: String,
    },
    /// A system call failed.
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => {
                write!(
                    f,
                    "the address must be https://HOST[:PORT], http://127.0.0.1[:PORT] or unix:PATH"
                )
            }
            Self::NotLoopback => {
                write!(f, "plain http:// would send the key in the clear; use https:// or unix:")
            }
            Self::Certificates { path: Some(path) } => {
                write!(f, "{}: no PEM certificates to be read there", path.display())
            }
            Self::Certificates { path: None } => {
                write!(f, "no system certificates found; name the server's with --ca FILE")
            }
            Self::PromptTooLong { max_bytes } => {
                write!(f, "the prompt is longer than {max_bytes} bytes")
            }
            Self::Key => write!(f, "the API key is not one line of visible ASCII"),
            Self::Connect(source) => write!(f, "cannot connect: {source}"),
            Self::Tls(source) => {
                write!(f, "TLS: {source} (a self-signed certificate is named with --ca FILE)")
            }
            Self::Http(source) => {
                write!(f, "{source} (is the address right, https:// or http:// included?)")
            }
            Self::Timeout => write!(f, "no answer in time"),
            Self::Answer(what) => write!(f, "the server's answer {what}"),
            Self::Refused { status: 200, message } => write!(f, "broke off: {message}"),
            Self::Refused { status, message } => write!(f, "refused ({status}): {message}"),
            Self::Io { action, source } => write!(f, "cannot {action}: {source}"),
        }
    }
}

impl std::error::Error for Error {}

/// Where a server is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Address {
    Tls { host: String, port: u16 },
    Plain { host: String, port: u16 },
    Unix(PathBuf),
}

impl Address {
    /// Reads an address; a `/v1` at its end, as other clients want it, is dropped.
    fn parse(text: &str) -> Result<Self, Error> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(Error::Address) } else { Ok(Self::Unix(path.into())) };
        }
        let uri: hyper::Uri = text.parse().map_err(|_| Error::Address)?;
        if !matches!(uri.path().trim_end_matches('/'), "" | "/v1") || uri.query().is_some() {
            return Err(Error::Address);
        }
        let host = uri.host().ok_or(Error::Address)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        match uri.scheme_str() {
            Some("https") => Ok(Self::Tls { host, port: uri.port_u16().unwrap_or(443) }),
            Some("http") => {
                let is_here = host == "localhost"
                    || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
                let port = uri.port_u16().unwrap_or(80);
                if is_here { Ok(Self::Plain { host, port }) } else { Err(Error::NotLoopback) }
            }
            _ => Err(Error::Address),
        }
    }
}

/// A client of one server.
pub struct Client {
    address: Address,
    key: Option<Secret>,
    tls: Option<Arc<ClientConfig>>,
}

impl Client {
    /// Makes a client. `ca` is a PEM file of certificates to trust instead of the system's.
    ///
    /// # Errors
    ///
    /// An address or a file that is of no use; nothing is connected yet.
    pub fn new(address: &str, key: Option<Secret>, ca: Option<&Path>) -> Result<Self, Error> {
        let address = Address::parse(address)?;
        let tls = match address {
            Address::Tls { .. } => Some(tls_config(ca)?),
            _ => None,
        };
        Ok(Self { address, key, tls })
    }

    /// Gets a JSON object.
    ///
    /// # Errors
    ///
    /// Every way of having no answer; `Refused` for a status other than 2xx.
    pub fn get(&self, path: &str) -> Result<Value, Error> {
        run(self.whole("GET", path, None))
    }

    /// Posts a JSON object and returns the one that answers it.
    ///
    /// # Errors
    ///
    /// As `get`.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        run(self.whole("POST", path, Some(body)))
    }

    /// Posts plain text; returns status and text of the answer, whatever it is.
    ///
    /// # Errors
    ///
    /// Every way of having no answer; one that is not UTF-8.
    pub fn post_text(&self, path: &str, text: String) -> Result<(u16, String), Error> {
        run(async {
            let request = self.request("POST", path, Some(Bytes::from(text)), "text/plain")?;
            let response = self.exchange(request).await?;
            let status = response.status().as_u16();
            let bytes = read_whole(response.into_body()).await?;
            let text = String::from_utf8(bytes).map_err(|_| Error::Answer("is not text"))?;
            Ok((status, text))
        })
    }

    /// Posts a JSON object and shows each event of the answer, as it comes, until its end or a
    /// `Break`, which leaves: the server then stops generating.
    ///
    /// # Errors
    ///
    /// As `get`; an error in the stream is `Refused` with status 200.
    pub fn stream(
        &self,
        path: &str,
        body: &Value,
        mut show: impl FnMut(&Value) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        run(async {
            let response = self.send("POST", path, Some(body)).await?;
            let mut incoming = accepted(response).await?.into_body();
            let mut events = Events::default();
            while let Some(bytes) = next_bytes(&mut incoming).await? {
                events.push(&bytes)?;
                while let Some(data) = events.next() {
                    if data == "[DONE]" {
                        return Ok(());
                    }
                    let event: Value = serde_json::from_str(&data)
                        .map_err(|_| Error::Answer("holds an event that is not JSON"))?;
                    if let Some(message) = error_message(&event) {
                        return Err(Error::Refused { status: 200, message });
                    }
                    if show(&event).is_break() {
                        return Ok(());
                    }
                }
            }
            Err(Error::Answer("ended early"))
        })
    }

    async fn whole(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Error> {
        let response = accepted(self.send(method, path, body).await?).await?;
        let bytes = read_whole(response.into_body()).await?;
        serde_json::from_slice(&bytes).map_err(|_| Error::Answer("is not JSON"))
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, Error> {
        let body = body.map(|body| Bytes::from(body.to_string()));
        self.exchange(self.request(method, path, body, "application/json")?).await
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let connect = async {
            match &self.address {
                Address::Unix(path) => {
                    converse(UnixStream::connect(path).await.map_err(Error::Connect)?, request)
                        .await
                }
                Address::Plain { host, port } => {
                    converse(connect(host, *port).await?, request).await
                }
                Address::Tls { host, port } => {
                    let stream = connect(host, *port).await?;
                    let name = ServerName::try_from(host.clone()).map_err(|_| Error::Address)?;
                    let tls = self.tls.clone().ok_or(Error::Address)?;
                    let handshake = TlsConnector::from(tls).connect(name, stream);
                    let stream = tokio::time::timeout(CONNECT_DEADLINE, handshake)
                        .await
                        .map_err(|_| Error::Timeout)?
                        .map_err(Error::Tls)?;
                    converse(stream, request).await
                }
            }
        };
        connect.await
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<Bytes>,
        content_type: &str,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let host = match &self.address {
            Address::Tls { host, port } | Address::Plain { host, port } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Address::Tls { host, port } | Address::Plain { host, port } => format!("{host}:{port}"),
            Address::Unix(_) => "localhost".to_owned(),
        };
        let mut request = Request::builder().method(method).uri(path).header("host", host);
        if let Some(key) = &self.key {
            let key = std::str::from_utf8(key.expose()).map_err(|_| Error::Key)?;
            let value = hyper::header::HeaderValue::from_str(&format!("Bearer {key}"));
            let mut value = value.map_err(|_| Error::Key)?;
            value.set_sensitive(true);
            request = request.header("authorization", value);
        }
        if body.is_some() {
            request = request.header("content-type", content_type);
        }
        request.body(Full::new(body.unwrap_or_default())).map_err(|_| Error::Address)
    }
}

/// Runs one exchange to its end. Its runtime ends with it, and so does its connection.
fn run<T>(exchange: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Io { action: "start the runtime", source })?;
    runtime.block_on(exchange)
}

fn tls_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let path = match ca {
        Some(path) => path,
        None => SYSTEM_CERTIFICATES
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .ok_or(Error::Certificates { path: None })?,
    };
    let unreadable = || Error::Certificates { path: Some(path.to_owned()) };
    let mut pem = Vec::new();
    let read = open_file(path)
        .and_then(|file| file.take(CERTIFICATES_LEN_MAX_BYTES + 1).read_to_end(&mut pem));
    if read.is_err() || pem.len() as u64 > CERTIFICATES_LEN_MAX_BYTES {
        return Err(unreadable());
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.map_err(|_| unreadable())?);
    if roots.is_empty() {
        return Err(unreadable());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| Error::Answer("cannot be had over TLS 1.3 or 1.2"))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, Error> {
    let stream = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect((host, port)))
        .await
        .map_err(|_| Error::Timeout)?
        .map_err(Error::Connect)?;
    stream.set_nodelay(true).map_err(Error::Connect)?;
    Ok(stream)
}

async fn converse<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(Error::Http)?;
    // Ends with the response; its errors reach whoever reads that.
    tokio::spawn(async move { connection.await.ok() });
    tokio::time::timeout(SILENCE_DEADLINE, sender.send_request(request))
        .await
        .map_err(|_| Error::Timeout)?
        .map_err(Error::Http)
}

/// Passes on a success, and reads what a refusal says.
async fn accepted(response: Response<Incoming>) -> Result<Response<Incoming>, Error> {
    let status: StatusCode = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = read_whole(response.into_body()).await?;
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = error_message(&body).unwrap_or_else(|| "no reason given".to_owned());
    Err(Error::Refused { status: status.as_u16(), message })
}

fn error_message(body: &Value) -> Option<String> {
    let error = body.get("error")?;
    Some(error["message"].as_str().unwrap_or("no reason given").to_owned())
}

async fn next_bytes(body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    loop {
        let frame = tokio::time::timeout(SILENCE_DEADLINE, body.frame()).await;
        match frame.map_err(|_| Error::Timeout)? {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(bytes) = frame.map_err(Error::Http)?.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

async fn read_whole(mut body: Incoming) -> Result<Vec<u8>, Error> {
    let mut whole = Vec::new();
    while let Some(bytes) = next_bytes(&mut body).await? {
        if bytes.len() > ANSWER_LEN_MAX_BYTES - whole.len() {
            return Err(Error::Answer("is too long"));
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(whole)
}

/// Finds the server-sent events in the bytes of a body (WHATWG HTML, 9.2.6; `data` alone counts).
#[derive(Default)]
struct Events {
    /// What is not a whole line yet.
    rest: Vec<u8>,
    /// `data` lines of the event that is not at its end yet.
    data: Option<String>,
    /// How much of `rest` holds no line end.
    searched: usize,
}

impl Events {
    fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let waiting = self.rest.len() + self.data.as_ref().map_or(0, String::len);
        if bytes.len() > ANSWER_LEN_MAX_BYTES.saturating_sub(waiting) {
            return Err(Error::Answer("holds an event that is too long"));
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole event's data.
    fn next(&mut self) -> Option<String> {
        loop {
            let end = self.rest[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = end.map(|end| end + self.searched) else {
                self.searched = self.rest.len();
                return None;
            };
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.searched = 0;
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if let Some(data) = self.data.take() {
                    return Some(data);
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                let data = data.strip_prefix(' ').unwrap_or(data);
                match &mut self.data {
                    Some(earlier) => {
                        earlier.push('\n');
                        earlier.push_str(data);
                    }
                    None => self.data = Some(data.to_owned()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses() {
        let tls = |host: &str, port| Address::Tls { host: host.to_owned(), port };
        let plain = |host: &str, port| Address::Plain { host: host.to_owned(), port };
        for (text, want) in [
            ("https://a.example", tls("a.example", 443)),
            ("https://a.example:8443/v1/", tls("a.example", 8443)),
            ("https://[::1]:8443", tls("::1", 8443)),
            ("http://127.0.0.1:8443/v1", plain("127.0.0.1", 8443)),
            ("http://localhost", plain("localhost", 80)),
            ("unix:/run/api.sock", Address::Unix("/run/api.sock".into())),
            ("unix:///run/api.sock", Address::Unix("/run/api.sock".into())),
        ] {
            assert_eq!(Address::parse(text).unwrap(), want, "{text}");
        }
        for text in ["http://a.example", "http://10.0.0.1:80", "http://127.0.0.1.example"] {
            assert!(matches!(Address::parse(text), Err(Error::NotLoopback)), "{text}");
        }
        for text in
            ["", "unix:", "a.example", "ftp://a", "https://", "https://a/v2", "https://a/?x"]
        {
            assert!(matches!(Address::parse(text), Err(Error::Address)), "{text}");
        }
    }

    fn all(bytes: &str, step: usize) -> Vec<String> {
        let mut events = Events::default();
        let mut found = Vec::new();
        for piece in bytes.as_bytes().chunks(step) {
            events.push(piece).unwrap();
            while let Some(data) = events.next() {
                found.push(data);
            }
        }
        found
    }

    #[test]
    fn finds_events_wherever_the_bytes_are_cut() {
        let body = ": ping\n\ndata: {\"a\":\"\u{e9}\"}\n\nevent: x\r\ndata:b\r\ndata: c\r\n\r\ndata: [DONE]\n\ndata: cut";
        for step in [1, 2, 3, 7, 1000] {
            assert_eq!(all(body, step), ["{\"a\":\"\u{e9}\"}", "b\nc", "[DONE]"], "{step}");
        }
    }
}
