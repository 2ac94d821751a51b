//! Swap: said where memory could be written to it, refused or kept off all memory where the configuration says
//! so.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::*;

/// What the kernel shows where a partition is used for swap.
const SWAPS: &str = "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 8388604 0 -2\n";

/// Starts it in a view of its own in which the kernel shows swap.
fn start_with_swap(appliance: &mut Appliance) {
    fs::write(appliance.path("swaps"), SWAPS).unwrap();
    let (swaps, config) = (appliance.path("swaps"), appliance.path("cloister.toml"));
    let told = fs::File::create(appliance.path("told.log")).unwrap();
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount --bind \"$0\" /proc/swaps && exec \"$1\" --config \"$2\"",
    ]);
    command.arg(swaps).arg(appliance.programs.join("cloister-supervisor")).arg(config);
    command.stdin(Stdio::null()).stdout(told.try_clone().unwrap()).stderr(told).current_dir("/");
    appliance.child = command.spawn().unwrap();
}

#[test]
fn memory_that_could_be_swapped_is_said_or_refused() {
    if !is_root() {
        return support::skip("swap", "a view of the kernel's files takes root");
    }
    let tiny = support::golden().join("tiny/llama.gguf");
    let mut appliance = Appliance::start_with(As::Oneself, &tiny, "[sandbox]\nswap = \"tell\"\n");
    appliance.stop();
    start_with_swap(&mut appliance);
    appliance.wait_until_ready();
    let told = appliance.told();
    assert!(told.contains("missing protection: swap: prompts and weights may be"), "{told}");
    let status = cloister_ok(&["status", "--socket", &appliance.path("control.sock")]);
    assert!(status.contains("MISSING     swap"), "{status}");
    appliance.stop();

    appliance.change_config("swap = \"tell\"", "swap = \"refuse\"");
    start_with_swap(&mut appliance);
    let status = appliance.child.wait().unwrap();
    let told = appliance.told();
    assert!(!status.success() && told.contains("sandbox.swap = \"refuse\": swap: "), "{told}");
    appliance.start_again();
    if fs::read_to_string("/proc/swaps").unwrap().lines().count() == 1 {
        appliance.wait_until_ready();
    }
}

/// `CAP_SYS_RESOURCE`, by which the limit on locked memory is raised.
const SYS_RESOURCE: u32 = 24;

fn may_lock() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let capabilities = u64::from_str_radix(capabilities.trim(), 16).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
    capabilities >> SYS_RESOURCE & 1 == 1 || hard == RLIM_INFINITY
}

/// Bytes that a process has locked.
fn locked_len(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// Mappings with memory in them that is not locked; the kernel's own, which are not swapped, aside.
fn unlocked(pid: i32) -> Vec<String> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut found, mut name, mut is_used) = (Vec::new(), String::new(), false);
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("Rss", len)) => is_used = len.trim() != "0 kB",
            Some(("VmFlags", flags)) => {
                let is_locked = flags.split_whitespace().any(|flag| flag == "lo");
                let is_kernels = ["[vvar", "[vdso", "[vsyscall"].iter().any(|it| name.contains(it));
                if is_used && !is_locked && !is_kernels {
                    found.push(name.clone());
                }
            }
            Some((first, _)) if first.contains('-') => line.clone_into(&mut name),
            _ => {}
        }
    }
    assert!(!name.is_empty());
    found
}

#[test]
fn locked_memory_is_all_memory() {
    if !is_root() || !may_lock() {
        let why = "it takes root and CAP_SYS_RESOURCE; tested where other kernels are booted";
        return support::tell(&format!("locked memory: {why}"));
    }
    let tiny = support::golden().join("tiny/llama.gguf");
    let mut appliance = Appliance::start_with(As::Oneself, &tiny, "[sandbox]\nswap = \"tell\"\n");
    let parts = |appliance: &Appliance| {
        let child = |role| appliance.only_child(&format!("cloister-{role}"));
        let supervisor = appliance.child.id().cast_signed();
        [("supervisor", supervisor), ("gateway", child("gateway")), ("worker", child("worker"))]
    };
    for (part, pid) in parts(&appliance) {
        assert_eq!(locked_len(pid), 0, "{part}");
        assert_ne!(unlocked(pid), Vec::<String>::new(), "{part}");
    }
    appliance.stop();
    appliance.change_config("swap = \"tell\"", "swap = \"lock\"");
    appliance.start_again();
    appliance.wait_until_ready();
    let body = json!({ "model": "smol", "prompt": "abc", "max_tokens": 4, "temperature": 0 });
    let (status, answer) = read_answer(appliance.post("/v1/completions", &body)).unwrap();
    assert_eq!(status, 200, "{answer}");
    for (part, pid) in parts(&appliance) {
        assert!(locked_len(pid) > 1 << 20, "{part}: {}", locked_len(pid));
        assert_eq!(unlocked(pid), Vec::<String>::new(), "{part}");
    }
    let status = cloister_ok(&["status", "--socket", &appliance.path("control.sock")]);
    assert!(!status.contains("MISSING     swap"), "{status}");
}

#[test]
fn where_memory_may_not_be_locked_nothing_starts() {
    let tiny = support::golden().join("tiny/llama.gguf");
    let mut appliance = Appliance::start_with(As::Oneself, &tiny, "[sandbox]\nswap = \"tell\"\n");
    appliance.stop();
    appliance.change_config("swap = \"tell\"", "swap = \"lock\"");
    let told = fs::File::create(appliance.path("told.log")).unwrap();
    let mut command = Command::new("prlimit");
    command.arg("--memlock=65536:65536");
    if is_root() {
        command.args(["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]);
    }
    command.arg(appliance.programs.join("cloister-supervisor"));
    command.arg("--config").arg(appliance.path("cloister.toml")).stdin(Stdio::null());
    command.stdout(told.try_clone().unwrap()).stderr(told).current_dir("/");
    appliance.child = command.spawn().unwrap();
    let status = appliance.child.wait().unwrap();
    let told = appliance.told();
    let line = "sandbox.swap = \"lock\": no more than 65536 bytes may be locked (RLIMIT_MEMLOCK)";
    assert!(!status.success() && told.contains(line), "{told}");
}
