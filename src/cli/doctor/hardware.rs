//! Hardware: processors, memory nodes, devices, and what protects memory from its owner.

use kernels::Isa;

use super::host::Host;
use super::{Finding, Weight};
use crate::sys::numa::{self, Node};
use crate::sys::processors;

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    vec![processor(host), siblings(host), nodes(host), confidential(host), tpm(host), gpu(host)]
}

fn processor(host: &Host) -> Finding {
    let info = host.read("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name);
    let isa = Isa::detect();
    let count = host.read("/sys/devices/system/cpu/online").unwrap_or_default();
    let count = processors::parse(&count).len();
    let weight = if isa == Isa::Reference { Weight::Warning } else { Weight::Good };
    let found = format!("{model}, {count} processors, kernels {}", isa.name());
    Finding::new("processor", weight, found)
        .advise("no instruction set that the fast kernels know (AVX2 at least): answers are slow")
}

fn siblings(host: &Host) -> Finding {
    let is_on = host.number("/sys/devices/system/cpu/smt/active") == Some(1);
    let weight = if is_on { Weight::Note } else { Weight::Good };
    Finding::new("shared cores", weight, if is_on { "two processors a core" } else { "no" }).advise(
        "whoever runs on a core's other processor shares its caches: boot with nosmt, or \
            give Cloister whole cores",
    )
}

fn nodes(host: &Host) -> Finding {
    let folder = numa::FOLDER;
    let describe = |name: &String| {
        let processors = host.read(&format!("{folder}/{name}/cpulist"))?;
        let memory = host.read(&format!("{folder}/{name}/meminfo"))?;
        let node = Node::parse(name, &processors, &memory)?;
        let (total, available) = (node.total_bytes >> 20, node.available_bytes >> 20);
        let number = node.number;
        Some(format!(
            "node {number}: processors {}, {available} MiB available of {total}",
            processors.trim()
        ))
    };
    let nodes: Vec<String> = host.list(folder).iter().filter_map(describe).collect();
    let found = if nodes.is_empty() { "one node".to_owned() } else { nodes.join("; ") };
    Finding::good("memory nodes", found)
}

fn confidential(host: &Host) -> Finding {
    let kinds = [("/dev/sev-guest", "SEV-SNP"), ("/dev/tdx_guest", "TDX")];
    let found = kinds.into_iter().find(|(path, _)| host.has(path));
    match found {
        Some((_, kind)) => Finding::good("sealed machine", kind),
        None => Finding::new("sealed machine", Weight::Note, "no SEV-SNP, no TDX")
            .advise("whoever owns the hardware or the hypervisor can read memory"),
    }
}

fn tpm(host: &Host) -> Finding {
    if host.has("/dev/tpmrm0") {
        return Finding::good("tpm", "/dev/tpmrm0");
    }
    Finding::new("tpm", Weight::Note, "none")
        .advise("systemd-creds binds keys to a file of this host instead of a chip")
}

/// Where the driver tells of its cards.
const CARDS: &str = "/proc/driver/nvidia/gpus";

fn gpu(host: &Host) -> Finding {
    let cards = host.list(CARDS);
    if cards.is_empty() {
        return Finding::good("gpu", "none; models run on the processors");
    }
    let version = host.read("/proc/driver/nvidia/version").unwrap_or_default();
    let driver = version.lines().next().unwrap_or_default();
    let mut devices = vec!["/dev/nvidiactl".to_owned(), "/dev/nvidia-uvm".to_owned()];
    let mut found = Vec::new();
    for card in &cards {
        let told = host.read(&format!("{CARDS}/{card}/information")).unwrap_or_default();
        let field = |name: &str| {
            let line = told.lines().find_map(|line| line.strip_prefix(name));
            line.map_or("unknown", |line| line.trim_start_matches(':').trim())
        };
        let device = format!("/dev/nvidia{}", field("Device Minor"));
        found.push(format!("{device} {}", field("Model")));
        devices.push(device);
    }
    found.extend_from_slice(&host.cards);
    let found = format!("{}; {driver}", found.join(", "));
    let missing: Vec<_> = devices.into_iter().filter(|device| !host.has(device)).collect();
    if missing.is_empty() {
        return Finding::new("gpu", Weight::Note, found).advise(
            "for models with gpu_layers alone, by cloister-worker-gpu; their jail is weaker (SECURITY.md)",
        );
    }
    let found = format!("{found}; not there: {}", missing.join(", "));
    Finding::new("gpu", Weight::Warning, found)
        .advise("gpu_layers takes them: nvidia-modprobe -u -c 0 (and -c of each further card)")
}
