//! Following and forwarding: each record at least once, and never past a log that is not what it was.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Site, Writer, cloister, story, text};

fn datagrams(socket: &UnixDatagram) -> Vec<String> {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut bytes = vec![0; 1 << 18];
    let mut out = Vec::new();
    while let Ok(len) = socket.recv(&mut bytes) {
        out.push(text(&bytes[..len]));
    }
    out
}

/// Forwards what is there while another thread takes it.
fn forward(site: &Site, to: &str, socket: UnixDatagram) -> (std::process::Output, Vec<String>) {
    let taker = std::thread::spawn(move || datagrams(&socket));
    let cursor = site.path("cursor");
    let done = site.audit("forward", &["--to", to, "--cursor", &cursor, "--once"]);
    (done, taker.join().unwrap())
}

#[test]
fn journald_gets_each_record_and_an_alarm_when_the_log_was_rolled_back() {
    let site = Site::new("forward");
    let story = story::story();
    site.write(&story[..400]);
    let path = site.path("journal.sock");
    let bind = || {
        let _ = fs::remove_file(&path);
        UnixDatagram::bind(&path).unwrap()
    };
    let to = format!("journald:{path}");
    let (done, got) = forward(&site, &to, bind());
    assert!(done.status.success(), "{done:?}");
    let indexes = |got: &[String]| -> Vec<usize> {
        let of = |one: &String| {
            one.lines().find_map(|line| line.strip_prefix("CLOISTER_INDEX=")?.parse().ok())
        };
        got.iter().filter_map(of).collect()
    };
    assert_eq!(indexes(&got), (0..400).collect::<Vec<_>>());
    assert!(got.iter().all(|one| one.lines().count() == 6), "no text adds a field");
    site.write(&story[..700]);
    let (done, got) = forward(&site, &to, bind());
    assert!(done.status.success(), "{done:?}");
    assert_eq!(indexes(&got), (400..700).collect::<Vec<_>>(), "what came since, and nothing again");
    for records in [&story[..600], &[&story[1..2], &story[1..]].concat()] {
        site.write(records);
        let (done, got) = forward(&site, &to, bind());
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        assert!(
            got.len() == 1 && got[0].contains("BROKEN") && got[0].contains("PRIORITY=1"),
            "{got:?}"
        );
    }
}

#[test]
fn a_target_that_is_away_loses_nothing() {
    let site = Site::new("forward-away");
    site.write(&story::story()[..300]);
    let path = site.path("journal.sock");
    let (to, cursor, log) = (format!("journald:{path}"), site.path("cursor"), site.path("log"));
    let words = ["audit", "forward", &log, "--to", &to, "--cursor", &cursor, "--once"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_cloister"))
        .args(words)
        .args(["--public-key", &site.path("audit.vkey")])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    let is_tried = told.by_ref().any(|line| line.unwrap().contains("tried again"));
    assert!(is_tried && !fs::exists(&cursor).unwrap());
    let socket = UnixDatagram::bind(&path).unwrap();
    let taker = std::thread::spawn(move || {
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut bytes = vec![0; 1 << 18];
        (0..300).map(|_| socket.recv(&mut bytes).unwrap()).count()
    });
    assert_eq!(taker.join().unwrap(), 300);
    assert!(child.wait().unwrap().success());
}

#[test]
fn syslog_gets_one_framed_line_a_record() {
    let site = Site::new("forward-syslog");
    site.write(&story::story()[..50]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("syslog:tcp:{}", listener.local_addr().unwrap());
    let taker = std::thread::spawn(move || {
        let mut all = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
        all
    });
    let done = site.audit("forward", &["--to", &to, "--cursor", &site.path("cursor"), "--once"]);
    assert!(done.status.success(), "{done:?}");
    let all = taker.join().unwrap();
    let (mut rest, mut count) = (all.as_slice(), 0);
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').unwrap();
        let len: usize = text(&rest[..space]).parse().unwrap();
        let line = text(&rest[space + 1..space + 1 + len]);
        assert!(
            line.starts_with("<1") && line.contains(">1 2026-") && !line.contains('\n'),
            "{line}"
        );
        rest = &rest[space + 1 + len..];
        count += 1;
    }
    assert_eq!(count, 50);
}

#[test]
fn a_follower_sees_what_comes_and_stops_at_a_rollback() {
    let site = Site::new("follow");
    let story = story::story();
    let log = site.folder.join("log");
    let mut writer = Writer::new(&log);
    story[..100].iter().for_each(|record| writer.push(record));
    writer.publish(&site.signer);
    let words = ["audit", "follow", &site.path("log"), "--last", "2", "--json"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_cloister"))
        .args(words)
        .args(["--public-key", &site.path("audit.vkey")])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || {
        let line: serde_json::Value =
            serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        line["index"].as_u64().unwrap()
    };
    assert_eq!((next(), next()), (98, 99));
    story[100..300].iter().for_each(|record| writer.push(record));
    writer.publish(&site.signer);
    assert_eq!((100..300).map(|_| next()).collect::<Vec<_>>(), (100..300).collect::<Vec<_>>());
    site.write(&story[..250]);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_cursor_that_is_none_is_refused() {
    let site = Site::of_story("cursor");
    for text in [
        "",
        "x",
        "ward.example/audit\n5\nAAAA\n5\n",
        "other\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n0\n",
    ] {
        fs::write(site.path("cursor"), text).unwrap();
        let done = site.audit(
            "forward",
            &["--to", "journald:/nowhere", "--cursor", &site.path("cursor"), "--once"],
        );
        assert_eq!(done.status.code(), Some(2), "{text:?}: {done:?}");
    }
    let help = cloister(&["audit", "forward", "--help"]);
    assert!(text(&help.stdout).contains("at least once"));
}
