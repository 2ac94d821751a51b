//! The card of these tests: the stand-in for NVIDIA's driver that emulates the kernels on the CPU, or, if
//! `CLOISTER_CARD` is set, the first card of the machine.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use kernels::cuda::{Card, Driver};

use crate::library::folder;

/// Runs a test with a card: in a process of its own, since the driver is found where the process starts.
/// `name` is the test's in this program. Returns which kernels were launched, unless this is that process.
pub(crate) fn with_card(name: &str, test: impl FnOnce(&Card<'_>)) -> Option<BTreeSet<String>> {
    with(name, &[], test)
}

/// Does the same with three cards; where the machine has fewer, one of them serves as several.
pub(crate) fn with_cards(name: &str, test: impl FnOnce(&[Card<'_>])) {
    run(name, &[("STANDIN_DEVICES", "3")], |driver| {
        let devices = driver.devices().unwrap();
        let all = devices.iter().cycle().take(3);
        let cards: Vec<_> = all.map(|device| Card::open(driver, device).unwrap()).collect();
        test(&cards);
    });
}

/// Does the same with a card that fails after so many kernels; nothing on a real one.
pub(crate) fn with_failing_card(name: &str, kernels: usize, test: impl FnOnce(&Card<'_>)) {
    if std::env::var_os("CLOISTER_CARD").is_none() {
        with(name, &[("STANDIN_KERNELS", &kernels.to_string())], test);
    }
}

fn with(
    name: &str,
    settings: &[(&str, &str)],
    test: impl FnOnce(&Card<'_>),
) -> Option<BTreeSet<String>> {
    run(name, settings, |driver| {
        let devices = driver.devices().unwrap();
        test(&Card::open(driver, &devices[0]).unwrap());
    })
}

fn run(
    name: &str,
    settings: &[(&str, &str)],
    test: impl FnOnce(&Driver),
) -> Option<BTreeSet<String>> {
    let is_inside = std::env::var_os("CLOISTER_STAND_IN").is_some();
    if is_inside || std::env::var_os("CLOISTER_CARD").is_some() {
        test(&Driver::load().unwrap());
        return None;
    }
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!("skipped: instruction set cuda: its emulation switches fibers of x86-64");
        return None;
    }
    let mut inside = Command::new(std::env::current_exe().unwrap());
    inside.args([name, "--exact", "--nocapture"]);
    let launches = folder().join(name.replace("::", "-"));
    let waits = launches.with_extension("waits");
    for file in [&launches, &waits] {
        let _ = fs::remove_file(file);
    }
    inside.env("CLOISTER_STAND_IN", "1").env("LD_LIBRARY_PATH", folder());
    inside
        .env("STANDIN_LAUNCHES", &launches)
        .env("STANDIN_WAITS", &waits)
        .envs(settings.iter().copied());
    let done = inside.output().unwrap();
    let told = [done.stdout, done.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(done.status.success() && told.contains("1 passed"), "{name}: {told}");
    let launched = fs::read_to_string(&launches).unwrap_or_default();
    Some(launched.lines().map(str::to_owned).collect())
}

/// How often this process has waited for work of the card; nothing on a real one.
pub(crate) fn waits_count() -> Option<usize> {
    let told = fs::read_to_string(std::env::var_os("STANDIN_WAITS")?).unwrap_or_default();
    Some(told.lines().count())
}
