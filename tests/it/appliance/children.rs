//! What the kernel says of the real children of a serving appliance: users, limits, descriptors, namespaces,
//! filters of each thread; and of the spawner.

use cloister::cli::doctor::policy;

use super::*;

/// The limits of `policy/limits`, as `/proc` names them.
const LIMITS: [(&str, &str); 6] = [
    ("core", "Max core file size"),
    ("fsize", "Max file size"),
    ("nproc", "Max processes"),
    ("memlock", "Max locked memory"),
    ("msgqueue", "Max msgqueue size"),
    ("stack", "Max stack size"),
];
/// `CAP_KILL`, `CAP_SETGID`, `CAP_SETUID`.
const SPAWNER_CAPABILITIES: u64 = 0b1110_0000;

/// A field of a thread's status.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

fn statuses(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap()).collect()
}

/// What each descriptor is, without its number.
fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).unwrap();
    let mut kinds: Vec<String> = entries
        .map(|entry| target(entry.unwrap()).to_string_lossy().into_owned())
        .map(|target| target.split(['[', ' ']).next().unwrap_or_default().to_owned())
        .collect();
    kinds.sort();
    kinds
}

/// Soft and hard of a limit; `None` for none.
fn limit(limits: &str, name: &str) -> [Option<u64>; 2] {
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let mut words = line.split_whitespace().map(|word| word.parse().ok());
    [words.next().unwrap(), words.next().unwrap()]
}

#[test]
fn every_child_is_as_the_policy_says() {
    let appliance = Appliance::start(As::Oneself);
    let filters = policy::filters().unwrap();
    // The gateway has a socket for its control, its listener and its worker, and what its runtime waits with;
    // the worker has both of its channels and the pipe that wakes the thread that talks.
    let null = ["/dev/null"; 3];
    let gateway = ["anon_inode:", "anon_inode:", "anon_inode:", "socket:", "socket:", "socket:"];
    let worker = ["pipe:", "pipe:", "socket:", "socket:"];
    for (role, nofile, expected) in [("gateway", 320, &gateway[..]), ("worker", 64, &worker)] {
        let pid = appliance.only_child(&format!("cloister-{role}"));
        for status in statuses(pid) {
            let name = field(&status, "Name:");
            assert_eq!(field(&status, "Seccomp:"), "2", "{role} {name}");
            // The spawner's two, its process's, and that of its kind of thread.
            let filters = if role == "worker" { "4" } else { "3" };
            assert_eq!(field(&status, "Seccomp_filters:"), filters, "{role} {name}");
            assert_eq!(field(&status, "NoNewPrivs:"), "1", "{role} {name}");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                assert_eq!(field(&status, set).trim_matches('0'), "", "{role} {name} {set}");
            }
            if is_root() {
                assert_ne!(field(&status, "Uid:").split_whitespace().next(), Some("0"), "{role}");
            }
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let policy = filters.iter().find(|it| it.process == role && it.thread.is_none()).unwrap();
        assert_eq!(policy.limits.len(), LIMITS.len(), "{role}");
        for (name, value) in &policy.limits {
            let (_, line) = LIMITS.iter().find(|(known, _)| known == name).unwrap();
            assert_eq!(limit(&limits, line), [Some(*value); 2], "{role} {name}");
        }
        assert_eq!(limit(&limits, "Max open files"), [Some(nofile); 2], "{role}");
        let [soft, hard] = limit(&limits, "Max data size");
        let held = field(&statuses(pid)[0], "VmData:").split_once(' ').unwrap().0.parse::<u64>();
        assert!(soft.is_some_and(|soft| soft > held.unwrap() << 10 && soft < 16 << 30), "{role}");
        assert_eq!(soft, hard, "{role}");
        let addresses = limit(&limits, "Max address space");
        assert!(addresses[0] > soft && addresses[0] == addresses[1], "{role} {addresses:?}");
        if is_root() {
            let all: Vec<&str> = null.iter().chain(expected).copied().collect();
            assert_eq!(descriptors(pid), all, "{role}");
            for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
                let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
                let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
                assert_ne!(own, theirs, "{role} {name}");
            }
        }
        let memory = fs::metadata(format!("/proc/{pid}/mem")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&memory), 0, "{role} can be dumped");
    }
}

#[test]
fn the_spawner_has_one_thread_three_capabilities_and_its_filter() {
    let appliance = Appliance::start(As::Oneself);
    let gateway = appliance.only_child("cloister-gateway");
    let status = fs::read_to_string(format!("/proc/{gateway}/status")).unwrap();
    let spawner: i32 = field(&status, "PPid:").parse().unwrap();
    let [status] = &statuses(spawner)[..] else { panic!("several threads") };
    assert_eq!(field(status, "Name:"), "spawner");
    assert_eq!(field(status, "NoNewPrivs:"), "1");
    assert_eq!(field(status, "Seccomp:"), "2");
    assert_eq!(field(status, "Seccomp_filters:"), "2");
    if is_root() {
        for (set, want) in [
            ("CapInh:", 0),
            ("CapPrm:", SPAWNER_CAPABILITIES),
            ("CapEff:", SPAWNER_CAPABILITIES),
            ("CapBnd:", SPAWNER_CAPABILITIES),
            ("CapAmb:", 0),
        ] {
            assert_eq!(u64::from_str_radix(&field(status, set), 16), Ok(want), "{set}");
        }
    }
}

/// Processor time that a process's threads have had, in milliseconds; 0 if it is gone.
fn processor_ms(pid: i32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let text =
        tasks.map(|task| fs::read_to_string(task.path().join("schedstat")).unwrap_or_default());
    let ns = text.filter_map(|text| text.split(' ').next()?.parse::<f64>().ok());
    ns.sum::<f64>() / 1e6
}

/// What a start costs the supervisor until all parts serve, with a model whose weights are next to nothing:
/// configuration, keys, sandbox, log, and the turns in which it waits.
const START_MS_MAX: f64 = 60.0;
/// What the SHA-256 of its own three programs costs beside, which the first record holds.
const HASH_MS_PER_MIB_MAX: f64 = 2.0;
/// The spawner forks and execs four children.
const SPAWNER_START_MS_MAX: f64 = 100.0;

#[test]
fn a_start_takes_little_of_a_processor() {
    let tiny = support::golden().join("tiny/llama.gguf");
    let mut appliance = Appliance::start_with(As::Oneself, &tiny, "");
    let mut best = [f64::MAX; 2];
    for _ in 0..3 {
        appliance.stop();
        appliance.start_again();
        appliance.wait_until_ready();
        let supervisor = appliance.child.id().cast_signed();
        let gateway = appliance.only_child("cloister-gateway");
        let status = fs::read_to_string(format!("/proc/{gateway}/status")).unwrap();
        let spawner = field(&status, "PPid:").parse().unwrap();
        let taken = [processor_ms(supervisor), processor_ms(spawner)];
        for (best, taken) in best.iter_mut().zip(taken) {
            *best = best.min(taken);
        }
    }
    let programs = ["cloister-supervisor", "cloister-gateway", "cloister-worker"];
    let len = |name| fs::metadata(appliance.programs.join(name)).unwrap().len();
    let hashed_mib = programs.map(len).iter().sum::<u64>() >> 20;
    let supervisor_max = START_MS_MAX + HASH_MS_PER_MIB_MAX * hashed_mib as f64;
    let [supervisor, spawner] = best;
    support::tell(&format!(
        "a start, the best of three: supervisor {supervisor:.1} CPU-ms (at most {supervisor_max:.0}), \
         spawner {spawner:.1} CPU-ms; {hashed_mib} MiB of programs were hashed"
    ));
    assert!(supervisor > 0.0 && supervisor < supervisor_max, "{supervisor} CPU-ms");
    assert!(spawner > 0.0 && spawner < SPAWNER_START_MS_MAX, "{spawner} CPU-ms");
}
