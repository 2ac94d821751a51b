//! Memory: whether what is in it can reach a disk, and whether there is enough.

use super::host::Host;
use super::kernel::bracketed;
use super::{Finding, Weight};

/// Memory under which not even a small model fits, in KiB.
const MEMORY_MIN_KIB: u64 = 512 << 10;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    vec![
        amount(host),
        swap(host),
        hibernation(host),
        huge_pages(host),
        page_merging(host),
        zeroing(host),
    ]
}

fn amount(host: &Host) -> Finding {
    let text = host.read("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (total, free) = (kib("MemTotal:").unwrap_or(0), kib("MemAvailable:").unwrap_or(0));
    let weight = if free < MEMORY_MIN_KIB { Weight::Warning } else { Weight::Good };
    let found = format!("{} MiB, of which {} MiB are free", total >> 10, free >> 10);
    Finding::new("memory", weight, found)
        .advise("a model takes its file's size and its cache in memory, once for all its workers")
}

fn swap(host: &Host) -> Finding {
    let check = "swap";
    let text = host.read("/proc/swaps").unwrap_or_default();
    let devices: Vec<&str> =
        text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if devices.is_empty() {
        return Finding::good(check, "none");
    }
    let is_compressed = devices.iter().all(|device| device.starts_with("/dev/zram"));
    let is_written_back = || {
        devices.iter().filter_map(|device| device.strip_prefix("/dev/")).any(|name| {
            let device = host.read(&format!("/sys/block/{name}/backing_dev"));
            device.is_some_and(|device| device != "none")
        })
    };
    if is_compressed && !is_written_back() {
        return Finding::new(
            check,
            Weight::Note,
            format!("compressed memory: {}", devices.join(", ")),
        )
        .advise("it stays in memory; MemorySwapMax=0 in the unit keeps Cloister out of it");
    }
    Finding::new(check, Weight::Warning, devices.join(", ")).advise(
        "prompts and weights may be written to it: swapoff -a, or MemorySwapMax=0 in the unit, as \
         the shipped one has",
    )
}

fn hibernation(host: &Host) -> Finding {
    let states = host.read("/sys/power/state").unwrap_or_default();
    let mode = host.read("/sys/power/disk").unwrap_or_default();
    let is_there = states.split(' ').any(|state| state == "disk") && !mode.contains("[disabled]");
    let weight = if is_there { Weight::Warning } else { Weight::Good };
    let found = if is_there { "possible" } else { "not possible" };
    Finding::new("hibernation", weight, found).advise(
        "it writes all memory to a disk: systemctl mask hibernate.target hybrid-sleep.target, or \
         boot with nohibernate",
    )
}

fn huge_pages(host: &Host) -> Finding {
    let mode = host.read("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let fixed = host.number("/proc/sys/vm/nr_hugepages").unwrap_or(0);
    let mode = if mode.is_empty() { "not built in".to_owned() } else { bracketed(&mode) };
    Finding::good("huge pages", format!("transparent: {mode}, set aside: {fixed}"))
}

fn page_merging(host: &Host) -> Finding {
    let is_on = host.number("/sys/kernel/mm/ksm/run") == Some(1);
    let weight = if is_on { Weight::Note } else { Weight::Good };
    Finding::new("page merging", weight, if is_on { "on" } else { "off" })
        .advise("equal pages of two programs tell of each other; Cloister takes no part in it")
}

fn zeroing(host: &Host) -> Finding {
    let has = |parameter: &str| {
        let line = host.read("/proc/cmdline").unwrap_or_default();
        line.split_whitespace().any(|word| word == parameter)
    };
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let built_in = || {
        let config = host.read(&format!("/boot/config-{release}")).unwrap_or_default();
        config.lines().any(|line| line == "CONFIG_INIT_ON_FREE_DEFAULT_ON=y")
    };
    let is_on = has("init_on_free=1") || !has("init_on_free=0") && built_in();
    let weight = if is_on { Weight::Good } else { Weight::Note };
    Finding::new(
        "zeroing on free",
        weight,
        if is_on { "by the kernel" } else { "not by the kernel" },
    )
    .advise("boot with init_on_free=1, so that buffers inside the kernel are zeroed too")
}
