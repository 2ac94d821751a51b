//! What all processes of the appliance have resident together, from the first byte of a model to
//! the last of an answer: at most 1.15 times weights and keys and values, and 64 MiB.
//!
//! ```text
//! cargo test --test it resident                                   # SmolLM2; prints the figures
//! cargo test --release --test it resident -- --include-ignored    # Qwen too
//! ```
//!
//! Pages that several processes map are counted once: each counts its share of them (`Pss` of
//! `/proc/PID/smaps_rollup`). Where the kernel keeps that from a plain user, whole pages are
//! counted (`/proc/PID/statm`), which is never less.

use std::sync::atomic::{AtomicBool, Ordering};

use cloister::cli::fetch::{KnownModel, QWEN25_CODER};
use cloister::cli::golden::PackedFile;
use cloister::engine::Model;

use super::*;

const MIB: u64 = 1 << 20;

/// Bytes that a process has resident; none if it has ended.
fn resident(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB"));
    if let Some(kib) = kib {
        return kib.trim().parse::<u64>().unwrap() << 10;
    }
    let sizes = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = sizes.split(' ').nth(1).map_or(0, |pages| pages.parse().unwrap());
    pages
        * u64::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap())
            .unwrap()
}

/// The largest sum over all processes that was seen, and what each had then.
#[derive(Default)]
struct Peak {
    sum: u64,
    parts: Vec<(String, u64)>,
}

impl Peak {
    fn look(&mut self, supervisor: i32) {
        let mut pids = descendants(supervisor);
        pids.push(supervisor);
        let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let part = |pid| (name(pid).trim().to_owned(), resident(pid));
        let parts: Vec<_> = pids.into_iter().map(part).collect();
        let sum = parts.iter().map(|(_, size)| size).sum();
        if sum > self.sum {
            *self = Self { sum, parts };
        }
    }

    fn tell(&self, when: &str, data: u64) {
        let parts: Vec<String> =
            self.parts.iter().map(|(name, size)| format!("{name} {}", size / MIB)).collect();
        let (sum, data) = (self.sum as f64 / MIB as f64, data as f64 / MIB as f64);
        let (ratio, parts) = ((sum - 64.0) / data, parts.join(", "));
        support::tell(&format!(
            "resident, {when}: {sum:.0} MiB = {ratio:.2} x {data:.0} + 64 MiB ({parts})"
        ));
    }
}

/// Looks until `done`, about every 5 ms.
fn watch(supervisor: i32, done: &AtomicBool) -> Peak {
    let mut peak = Peak::default();
    while !done.load(Ordering::Relaxed) {
        peak.look(supervisor);
        std::thread::sleep(Duration::from_millis(5));
    }
    peak
}

/// Runs `work` while another thread looks.
fn peak_of<T>(supervisor: i32, work: impl FnOnce() -> T) -> (T, Peak) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(supervisor, &done));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let peak = watcher.join().unwrap();
        (outcome.unwrap_or_else(|cause| std::panic::resume_unwind(cause)), peak)
    })
}

/// Bytes of the packed weights, and of the keys and values of a position.
fn sizes(known: &KnownModel) -> (u64, u64) {
    let file = PackedFile::read(&support::model(known)).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let config = model.config();
    // Keys and values of 16 bits.
    (file.image().len() as u64, (config.n_layers * 2 * config.kv_dim() * 2) as u64)
}

fn hold(user: As, known: &KnownModel) {
    let (weights, a_position) = sizes(known);
    let mut appliance = Appliance::start_with(user, &support::model(known), "");
    appliance.stop();
    appliance.change_config("request_deadline_ms = 60000", "request_deadline_ms = 600000");
    appliance.start_again();
    let supervisor = appliance.child.id().cast_signed();
    let ((), load) = peak_of(supervisor, || appliance.wait_until_ready());
    load.tell("load", weights);
    let long = "Count the sheep that jump over the fence, one after the other. ".repeat(45);
    let (answer, request) = peak_of(supervisor, || appliance.chat(&ask(&long, 24)));
    let (status, answer) = answer;
    assert_eq!(status, 200, "{answer}");
    let positions = answer["usage"]["total_tokens"].as_u64().unwrap();
    assert!(positions > 512, "{positions}: a step of the longest length");
    let data = weights + positions * a_position;
    request.tell("request", data);
    for (peak, data) in [(load, weights), (request, data)] {
        let limit = data * 115 / 100 + 64 * MIB;
        assert!(peak.sum > weights / 2, "the peak was missed");
        assert!(peak.sum <= limit, "{} of {limit} bytes: {:?}", peak.sum, peak.parts);
    }
}

#[test]
fn resident_memory_stays_near_that_of_the_weights() {
    for user in users() {
        hold(user, &SMOLLM2);
    }
}

#[test]
#[ignore = "a larger model, sealed first: half a minute with --release"]
fn resident_memory_stays_near_that_of_larger_weights() {
    hold(As::Oneself, &QWEN25_CODER);
}
