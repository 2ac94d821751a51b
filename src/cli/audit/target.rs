//! Where records are forwarded to: journald's own protocol, or syslog.
//!
//! No field is taken from foreign text as a name, and no value can begin another line. Source: systemd's
//! native journal protocol, RFC 5424, RFC 6587 (octet counting).

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use super::facts::{Facts, Weight};
use super::text::{plain, plain_json, time_text};
use crate::audit::Record;

const JOURNALD: &str = "/run/systemd/journal/socket";
/// Time to reach a syslog server, and to write to it.
const DEADLINE: Duration = Duration::from_secs(10);
/// `log audit` of syslog's facilities.
const FACILITY_AUDIT: u8 = 13;

/// Where records go.
#[derive(Debug)]
pub(super) struct Target {
    kind: Kind,
    stream: Option<TcpStream>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Journald(PathBuf),
    SyslogUnix(PathBuf),
    SyslogTcp(SocketAddr),
    SyslogUdp(SocketAddr),
}

impl Clone for Target {
    /// The same target, not yet connected.
    fn clone(&self) -> Self {
        Self { kind: self.kind.clone(), stream: None }
    }
}

impl Target {
    /// Parses `journald[:SOCKET]`, `syslog:unix:SOCKET`, `syslog:tcp:ADDRESS:PORT` or `syslog:udp:ADDRESS:PORT`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let address = |text: &str| {
            text.parse::<SocketAddr>().map_err(|_| format!("{text}: give an IP address and a port"))
        };
        let parts: Vec<&str> = text.splitn(3, ':').collect();
        let kind = match parts.as_slice() {
            ["journald"] => Kind::Journald(JOURNALD.into()),
            ["journald", path] => Kind::Journald(path.into()),
            ["syslog", "unix", path] => Kind::SyslogUnix(path.into()),
            ["syslog", "tcp", at] => Kind::SyslogTcp(address(at)?),
            ["syslog", "udp", at] => Kind::SyslogUdp(address(at)?),
            _ => {
                return Err("give journald, syslog:unix:SOCKET, syslog:tcp:ADDRESS:PORT or \
                     syslog:udp:ADDRESS:PORT"
                    .to_owned());
            }
        };
        Ok(Self { kind, stream: None })
    }

    /// The name for messages.
    pub(super) fn name(&self) -> String {
        match &self.kind {
            Kind::Journald(path) | Kind::SyslogUnix(path) => path.display().to_string(),
            Kind::SyslogTcp(address) | Kind::SyslogUdp(address) => address.to_string(),
        }
    }

    /// Hands over a record.
    pub(super) fn send(&mut self, index: u64, record: &Record) -> io::Result<()> {
        let facts = Facts::of(&record.event);
        let severity = match facts.weight {
            Weight::Plain => 6,
            Weight::Notice => 5,
            Weight::Warning => 4,
        };
        let value = plain_json(&super::output::object(index, record).to_string());
        let event = record.event.name();
        match self.kind {
            Kind::Journald(_) => {
                let message = format!("cloister audit record {index}: {event}");
                let fields = [
                    ("CLOISTER_INDEX", index.to_string()),
                    ("CLOISTER_EVENT", event.to_owned()),
                    ("CLOISTER_RECORD", value),
                ];
                self.write(&journal(severity, &message, &fields))
            }
            _ => self.write(&syslog(severity, record.time_s, event, &value)),
        }
    }

    /// Hands over that the log is not what it was.
    pub(super) fn alarm(&mut self, sentence: &str) -> io::Result<()> {
        let sentence = plain(sentence);
        match self.kind {
            Kind::Journald(_) => self.write(&journal(1, &sentence, &[])),
            _ => self.write(&syslog(1, super::text::now_s(), "broken", &sentence)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &self.kind {
            Kind::Journald(path) | Kind::SyslogUnix(path) => {
                UnixDatagram::unbound()?.send_to(bytes, path).map(|_| ())
            }
            Kind::SyslogUdp(address) => {
                let own: SocketAddr = match address {
                    SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                    SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
                };
                UdpSocket::bind(own)?.send_to(bytes, address).map(|_| ())
            }
            Kind::SyslogTcp(address) => {
                let mut stream = match self.stream.take() {
                    Some(stream) => stream,
                    None => TcpStream::connect_timeout(address, DEADLINE)?,
                };
                stream.set_write_timeout(Some(DEADLINE))?;
                stream.write_all(format!("{} ", bytes.len()).as_bytes())?;
                stream.write_all(bytes)?;
                self.stream = Some(stream);
                Ok(())
            }
        }
    }
}

/// A datagram of journald's protocol; values hold no line's end.
fn journal(severity: u8, message: &str, fields: &[(&str, String)]) -> Vec<u8> {
    let mut text =
        format!("MESSAGE={message}\nPRIORITY={severity}\nSYSLOG_IDENTIFIER=cloister-audit\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}={value}\n"));
    }
    text.into_bytes()
}

fn syslog(severity: u8, time_s: u64, event: &str, message: &str) -> Vec<u8> {
    let priority = FACILITY_AUDIT * 8 + severity;
    format!("<{priority}>1 {} - cloister-audit - {event} - {message}", time_text(time_s))
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_parsed_strictly() {
        for text in [
            "journald",
            "journald:/x",
            "syslog:unix:/dev/log",
            "syslog:tcp:127.0.0.1:601",
            "syslog:udp:[::1]:514",
        ] {
            assert!(Target::parse(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "syslog",
            "syslog:",
            "syslog:tcp:host:1",
            "syslog:tcp:127.0.0.1",
            "file:/x",
            "syslog:tls:127.0.0.1:1",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn foreign_text_stays_in_its_line() {
        let value = plain("{\"model\":\"a\nMESSAGE=forged\r<1>1 x\"}");
        let text =
            String::from_utf8(journal(6, "m", &[("CLOISTER_RECORD", value.clone())])).unwrap();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert_eq!(String::from_utf8(syslog(6, 0, "e", &value)).unwrap().lines().count(), 1);
    }
}
