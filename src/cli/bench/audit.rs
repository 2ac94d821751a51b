//! `cloister bench audit`: durable records, verification and the opening of a long log, beside what the
//! disk can do at all, in the same run.
//!
//! All of it happens in a folder of its own, which is removed at the end. Records are those of requests
//! that were never made.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use nix::time::{ClockId, clock_gettime};
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};

use super::super::{Outcome, Verdict, print};
use crate::audit::merkle::TILE_WIDTH;
use crate::audit::record::{AskedFacts, BeginFacts, EndFacts, EndedFacts, KeyedDigest};
use crate::audit::snapshot::parse;
use crate::audit::verify::verify;
use crate::audit::{Event, Log, Signer, Snapshot};

/// Syncs of the probe.
const PROBE_COUNT: usize = 400;
/// Bytes that each sync of the probe makes durable: a few records.
const PROBE_LEN_BYTES: usize = 4096;
/// Records of a commit while the long log is written.
const BULK_COUNT: u64 = 16_384;
/// How often each opening is timed; the quickest counts.
const OPENINGS_COUNT: usize = 5;
/// Records that a review shows first.
const PAGE_COUNT: usize = 100;

/// Arguments of `cloister bench audit`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister bench audit --folder /var/lib/cloister\n  \
    cloister bench audit --folder /mnt/log --rate 10000 --seconds 30 --json\n\n\
    The probe syncs 4 KiB at a time, into room that the disk has already given, and behind the end of\n\
    a file. Records arrive at the asked rate and are committed together, as many as have come; a\n\
    record's delay is the time from its arrival until it is durable and published. The long log is opened\n\
    for append as a kill in the middle of its records leaves it, and as an orderly end does; beside each\n\
    time stands how much of a processor the opening took, which other programs do not lengthen.")]
pub(super) struct Arguments {
    /// Where to write: a folder on the disk of the log. 10 million records take about 6 GB.
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// Records of the long log.
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    records: u64,
    /// Records that arrive each second.
    #[arg(long, value_name = "N", default_value_t = 3000,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// For how long they arrive.
    #[arg(long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A folder that goes when the measurement ends.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Times, in order.
struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time that `share` of all are not longer than, in milliseconds.
    fn ms(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let at = (0..=last).find(|&at| (at + 1) as f64 >= share * self.0.len() as f64);
        self.0.get(at.unwrap_or(last)).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    fn json(&self) -> Value {
        json!({ "p50_ms": self.ms(0.5), "p99_ms": self.ms(0.99), "max_ms": self.ms(1.0) })
    }

    fn text(&self) -> String {
        format!("p50 {:.2}, p99 {:.2}, max {:.2} ms", self.ms(0.5), self.ms(0.99), self.ms(1.0))
    }
}

/// Runs `cloister bench audit`.
///
/// # Errors
///
/// A folder that cannot be written, or has no room for it.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let folder = Folder(arguments.folder.join(format!(".cloister-bench-{}", std::process::id())));
    let fault = |error: io::Error| format!("--folder {}: {error}", arguments.folder.display());
    fs::create_dir_all(&folder.0).map_err(fault)?;
    let progress = super::progress(1);
    progress.set_message("the disk");
    let overwritten = probe(&folder.0, true).map_err(fault)?;
    let appended = probe(&folder.0, false).map_err(fault)?;
    progress.set_message("durable records");
    let steady = steady(&folder.0, arguments)?;
    let full = full_speed(&folder.0, arguments)?;
    let long = long_log(&folder.0, arguments.records, &progress)?;
    progress.finish_and_clear();
    if arguments.json {
        let value = json!({
            "disk": { "sync_into_room": overwritten.json(), "sync_behind_end": appended.json() },
            "steady": steady.json(),
            "full_speed": full.json(),
            "long_log": long.json(),
        });
        print(&value.to_string());
        return Ok(Verdict::Holds);
    }
    print(&format!("disk       a sync of 4 KiB into room   {}", overwritten.text()));
    print(&format!("           behind the end of a file    {}", appended.text()));
    steady.print("steady");
    full.print("at most");
    long.print();
    Ok(Verdict::Holds)
}

/// Times single syncs.
fn probe(folder: &Path, has_room: bool) -> io::Result<Times> {
    let mut file = File::create(folder.join("probe"))?;
    if has_room {
        file.write_all(&vec![0; PROBE_COUNT * PROBE_LEN_BYTES])?;
        file.sync_all()?;
        file.seek(SeekFrom::Start(0))?;
    }
    let mut times = Vec::new();
    for _ in 0..PROBE_COUNT {
        let start = Instant::now();
        file.write_all(&[7; PROBE_LEN_BYTES])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    Ok(Times::new(times))
}

/// Durable records at a pace.
struct Rate {
    records: u64,
    commits: u64,
    seconds: f64,
    delays: Times,
}

impl Rate {
    fn json(&self) -> Value {
        json!({
            "records_per_s": self.records as f64 / self.seconds,
            "records_per_commit": self.records as f64 / self.commits as f64,
            "delay": self.delays.json(),
        })
    }

    fn print(&self, name: &str) {
        print(&format!(
            "{name:<10} {:.0} durable records/s, {:.1} a commit; delay {}",
            self.records as f64 / self.seconds,
            self.records as f64 / self.commits as f64,
            self.delays.text()
        ));
    }
}

/// Records that arrive at the asked rate.
fn steady(folder: &Path, arguments: &Arguments) -> Result<Rate, Box<dyn Error>> {
    let (mut log, _) = Log::open(&folder.join("steady"), signer()?)?;
    let step = Duration::from_secs(1) / arguments.rate;
    let count = u64::from(arguments.rate) * u64::from(arguments.seconds);
    let start = Instant::now();
    let arrival = |record: u64| start + step * u32::try_from(record).unwrap_or(u32::MAX);
    let (mut delays, mut done, mut commits) = (Vec::new(), 0, 0);
    while done < count {
        let first = done;
        std::thread::sleep(arrival(done).saturating_duration_since(Instant::now()));
        while done < count && arrival(done) <= Instant::now() {
            log.append(event(done))?;
            done += 1;
        }
        log.commit()?;
        commits += 1;
        let now = Instant::now();
        delays.extend((first..done).map(|record| now - arrival(record)));
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Rate { records: done, commits, seconds, delays: Times::new(delays) })
}

/// As many records as were asked for in all, 64 of them always waiting.
fn full_speed(folder: &Path, arguments: &Arguments) -> Result<Rate, Box<dyn Error>> {
    const WAITING_COUNT: u64 = 64;
    let (mut log, _) = Log::open(&folder.join("full"), signer()?)?;
    let count = u64::from(arguments.rate) * u64::from(arguments.seconds);
    let start = Instant::now();
    let (mut delays, mut done, mut commits) = (Vec::new(), 0, 0);
    while done < count {
        let since = Instant::now();
        for record in done..done + WAITING_COUNT {
            log.append(event(record))?;
        }
        log.commit()?;
        (done, commits) = (done + WAITING_COUNT, commits + 1);
        delays.push(since.elapsed());
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Rate { records: done, commits, seconds, delays: Times::new(delays) })
}

/// What a long log costs.
struct LongLog {
    records: u64,
    bytes: u64,
    append: Opening,
    append_after_kill: Opening,
    review_s: f64,
    verify_s: f64,
}

impl LongLog {
    fn json(&self) -> Value {
        json!({
            "records": self.records,
            "bytes": self.bytes,
            "open_for_append_s": self.append.wall_s,
            "open_for_append_processor_s": self.append.processor_s,
            "open_for_append_after_kill_s": self.append_after_kill.wall_s,
            "open_for_append_after_kill_processor_s": self.append_after_kill.processor_s,
            "open_for_review_s": self.review_s,
            "verify_s": self.verify_s,
            "verify_records_per_s": self.records as f64 / self.verify_s,
        })
    }

    fn print(&self) {
        let gigabytes = self.bytes as f64 / 1e9;
        print(&format!("long log   {} records in {gigabytes:.2} GB of disk", self.records));
        print(&format!("           opens for append in {}", self.append.text()));
        print(&format!("           after a kill in {}", self.append_after_kill.text()));
        print(&format!(
            "           opens for review in {:.1} ms, its last {PAGE_COUNT} records proven",
            self.review_s * 1e3
        ));
        print(&format!(
            "           verified whole in {:.2} s: {:.0} records/s",
            self.verify_s,
            self.records as f64 / self.verify_s
        ));
    }
}

/// What an opening for append took.
#[derive(Clone, Copy)]
struct Opening {
    wall_s: f64,
    /// Of one processor.
    processor_s: f64,
}

impl Opening {
    /// Opens a log some times, and leaves it as it was.
    fn quickest(
        folder: &Path,
        signer: &dyn Fn() -> Result<Signer, crate::audit::Error>,
    ) -> Result<Self, Box<dyn Error>> {
        let mut all = Vec::new();
        for _ in 0..OPENINGS_COUNT {
            let (processor, start) = (thread_time()?, Instant::now());
            let log = Log::open(folder, signer()?)?;
            let wall_s = start.elapsed().as_secs_f64();
            let processor_s = (thread_time()? - processor).as_secs_f64();
            drop(log);
            all.push(Self { wall_s, processor_s });
        }
        let quickest = all.into_iter().min_by(|one, other| one.wall_s.total_cmp(&other.wall_s));
        Ok(quickest.ok_or("nothing was opened")?)
    }

    fn text(self) -> String {
        format!("{:.1} ms, of them {:.1} of a processor", self.wall_s * 1e3, self.processor_s * 1e3)
    }
}

/// How long this thread has had a processor.
fn thread_time() -> Result<Duration, Box<dyn Error>> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn long_log(folder: &Path, records: u64, bar: &ProgressBar) -> Result<LongLog, Box<dyn Error>> {
    let (folder, pem) = (folder.join("long"), key()?);
    let signer = || Signer::from_pem("cloister/bench", pem.as_bytes());
    let mut log = Log::open_to_throw_away(&folder, signer()?)?;
    while log.size() < records {
        bar.set_message(format!("a long log, {} %", log.size() * 100 / records));
        for record in log.size()..records.min(log.size() + BULK_COUNT) {
            log.append(event(record))?;
        }
        log.commit()?;
    }
    // Nothing that a log writes as it ends: on the disk, its process was killed.
    drop(log);
    bar.set_message("the long log is opened and verified");
    let append_after_kill = Opening::quickest(&folder, &signer)?;
    Log::open(&folder, signer()?)?.0.close()?;
    let append = Opening::quickest(&folder, &signer)?;
    let verifier = signer()?.verifier();
    let start = Instant::now();
    let mut reader = Snapshot::open(&folder, &verifier)?;
    let mut shown = 0;
    for bundle in (0..reader.bundles()).rev() {
        let entries = reader.entries(bundle)?;
        for (index, entry) in (bundle * TILE_WIDTH as u64..).zip(&entries) {
            parse(entry, index)?;
        }
        shown += entries.len();
        if shown >= PAGE_COUNT {
            break;
        }
    }
    let review_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    verify(&folder, &verifier, None, &mut |_, _| {})?;
    let verify_s = start.elapsed().as_secs_f64();
    let bytes = disk_bytes(&folder)?;
    Ok(LongLog { records, bytes, append, append_after_kill, review_s, verify_s })
}

/// Bytes of disk below a folder.
fn disk_bytes(folder: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let facts = entry.metadata()?;
            bytes += facts.blocks() * 512;
            if facts.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

fn key() -> Result<String, Box<dyn Error>> {
    use base64::Engine as _;
    let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
    let der = der.map_err(|_| "the system gives no random bytes")?;
    let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    Ok(format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"))
}

fn signer() -> Result<Signer, Box<dyn Error>> {
    Ok(Signer::from_pem("cloister/bench", key()?.as_bytes())?)
}

/// Begins and ends in turn, as a request with a question and an answer leaves them.
fn event(record: u64) -> Event {
    let request = format!("{:032x}", record / 2);
    if record.is_multiple_of(2) {
        return Event::Begin {
            request,
            observed: BeginFacts {
                principal: "5f0c7bb92a4be3d1".to_owned(),
                role: "user".to_owned(),
                model: "llama-3.2-3b".to_owned(),
                model_digest: "ab".repeat(32),
                policy_digest: "ab".repeat(32),
                build_digest: "ab".repeat(32),
            },
            declared: AskedFacts { endpoint: "chat".to_owned(), max_tokens: 512, stream: true },
        };
    }
    let digest = || KeyedDigest { nonce: "cd".repeat(16), hmac: format!("{record:064x}") };
    Event::End {
        request,
        observed: EndedFacts { duration_s_max: 4 },
        declared: EndFacts {
            outcome: "stop".to_owned(),
            messages: vec![digest(), digest()],
            answer: digest(),
            parameters: digest(),
            prompt_tokens_max: 128,
            completion_tokens_max: 256,
        },
    }
}
