//! The filters of every CPU that Cloister is built for, on any CPU: compiled here and run by an interpreter.
//!
//! The interpreter is held against the kernel: by random programs, and by every filter of this CPU
//! (`jail::every_filter_does_what_its_policy_says`). The numbers of the calls come from another source than
//! the compiler's.

use std::collections::{BTreeMap, BTreeSet};

use cloister::cli::doctor::policy::{self, Filter, Rule};
use seccompiler::{TargetArch, compile_from_json};

use super::bpf::{self, ALLOW, Call, ERRNO, Instruction};
use super::jail::{User, probe, users};

/// `SECCOMP_RET_KILL_PROCESS`.
const KILL_PROCESS: u32 = 0x8000_0000;
/// Numbers past the last that are tried.
const NUMBERS_PAST: u32 = 32;
/// The bit that asks for the x32 form of a call.
const X32: u32 = 0x4000_0000;
/// Random programs that kernel and interpreter both run.
const PROGRAMS: &str = "400";
/// `AUDIT_ARCH_*`: x86-64, i386, aarch64, arm, riscv64, ppc64le, s390x, mips64, and none at all.
const ARCHITECTURES: [u32; 9] = [
    0xc000_003e,
    0x4000_0003,
    0xc000_00b7,
    0x4000_0028,
    0xc000_00f3,
    0xc000_0015,
    0x8000_0016,
    0x8000_0008,
    0,
];

/// A CPU with its policy.
struct Cpu {
    name: &'static str,
    text: &'static str,
    target: TargetArch,
    architecture: u32,
    number: fn(&str) -> Option<u32>,
    last: u32,
}

fn cpus() -> [Cpu; 2] {
    use syscalls::{aarch64, x86_64};
    let number_x86_64 = |name: &str| -> Option<u32> {
        u32::try_from(name.parse::<x86_64::Sysno>().ok()?.id()).ok()
    };
    let number_aarch64 = |name: &str| -> Option<u32> {
        // Its table has the name of the older call.
        let name = if name == "newfstatat" { "fstatat" } else { name };
        u32::try_from(name.parse::<aarch64::Sysno>().ok()?.id()).ok()
    };
    [
        Cpu {
            name: "x86_64",
            text: include_str!("../../policy/seccomp/x86_64.json"),
            target: TargetArch::x86_64,
            architecture: ARCHITECTURES[0],
            number: number_x86_64,
            last: x86_64::Sysno::last().id().cast_unsigned(),
        },
        Cpu {
            name: "aarch64",
            text: include_str!("../../policy/seccomp/aarch64.json"),
            target: TargetArch::aarch64,
            architecture: ARCHITECTURES[2],
            number: number_aarch64,
            last: aarch64::Sysno::last().id().cast_unsigned(),
        },
    ]
}

/// The filters of a CPU, compiled as `build.rs` does.
fn compiled(cpu: &Cpu) -> BTreeMap<String, Vec<Instruction>> {
    let filters = compile_from_json(cpu.text.as_bytes(), cpu.target).unwrap();
    let step = |step: &seccompiler::sock_filter| Instruction {
        code: step.code,
        jump_true: step.jt,
        jump_false: step.jf,
        k: step.k,
    };
    filters.into_iter().map(|(name, program)| (name, program.iter().map(step).collect())).collect()
}

/// Filters that lie on each other: of a process, or of a kind of its threads.
struct Stack<'a> {
    cpu: &'a Cpu,
    policies: Vec<&'a Filter>,
    programs: Vec<Vec<Instruction>>,
    numbers: BTreeMap<&'a str, u32>,
}

impl<'a> Stack<'a> {
    fn new(
        cpu: &'a Cpu,
        policies: Vec<&'a Filter>,
        compiled: &BTreeMap<String, Vec<Instruction>>,
    ) -> Self {
        let programs = policies.iter().map(|policy| compiled[&policy.name()].clone()).collect();
        let rules = policies.iter().flat_map(|policy| &policy.rules);
        let numbers = rules.map(|rule| {
            let number = (cpu.number)(&rule.syscall);
            (rule.syscall.as_str(), number.unwrap_or_else(|| panic!("{}: unknown", rule.syscall)))
        });
        Self { cpu, numbers: numbers.collect(), policies, programs }
    }

    /// What the policies say of a call.
    fn says(&self, call: &Call) -> u32 {
        let of_call = |rule: &&Rule| self.numbers[rule.syscall.as_str()] == call.number;
        let is_matched = |rule: &Rule| {
            rule.args.iter().all(|condition| {
                let mask = condition.mask();
                call.arguments[condition.index] & mask == condition.val & mask
            })
        };
        let lets = |policy: &&Filter| policy.rules.iter().filter(of_call).any(is_matched);
        let refuses = self.policies[0].process.ends_with("_threads");
        match (refuses, self.policies.iter().all(lets)) {
            (true, true) => ERRNO | 38,
            (true, false) | (false, true) => ALLOW,
            (false, false) => KILL_PROCESS,
        }
    }

    fn compare(&self, number: u32, arguments: [u64; 6]) {
        let own = self.cpu.architecture;
        let call = Call { number, architecture: own, arguments };
        let name = format!("{} {}", self.cpu.name, self.policies.last().unwrap().name());
        let verdict = bpf::verdict(&self.programs, &call);
        assert_eq!(verdict, Ok(self.says(&call)), "{name}: {call:x?}");
        for architecture in ARCHITECTURES.into_iter().filter(|&it| it != own) {
            let verdict = bpf::verdict(&self.programs, &Call { architecture, ..call });
            assert_eq!(verdict, Ok(KILL_PROCESS), "{name}: architecture {architecture:x}");
        }
    }

    /// Tries every number, every rule and every checked argument with each bit changed.
    fn sweep(&self) {
        for number in (0..=self.cpu.last + NUMBERS_PAST).chain([u32::MAX]) {
            for arguments in [[0; 6], [u64::MAX; 6]] {
                self.compare(number, arguments);
                self.compare(number | X32, arguments);
                self.compare(number | 1 << 31, arguments);
            }
        }
        for rule in self.policies.iter().flat_map(|policy| &policy.rules) {
            let number = self.numbers[rule.syscall.as_str()];
            let mut arguments = [0; 6];
            for condition in &rule.args {
                arguments[condition.index] |= condition.val;
            }
            self.compare(number, arguments);
            for condition in &rule.args {
                for bit in 0..64 {
                    let mut changed = arguments;
                    changed[condition.index] ^= 1 << bit;
                    self.compare(number, changed);
                }
            }
        }
    }
}

#[test]
fn every_filter_of_every_cpu_does_what_its_policy_says() {
    for cpu in cpus() {
        assert!(cpu.last > 400);
        let policies = policy::parse(cpu.text).unwrap();
        let compiled = compiled(&cpu);
        let names: BTreeSet<String> = policies.iter().map(Filter::name).collect();
        assert_eq!(names, compiled.keys().cloned().collect());
        for policy in &policies {
            let is_below = |other: &&Filter| {
                let is_itself = other.thread == policy.thread;
                other.process == policy.process && (other.thread.is_none() || is_itself)
            };
            let stack = policies.iter().filter(is_below).collect();
            Stack::new(&cpu, stack, &compiled).sweep();
        }
        // A worker with a card has the threads of a worker, but for the one that calls the driver.
        let named = |name: &str| policies.iter().find(|policy| policy.name() == name).unwrap();
        for thread in ["worker.compute", "worker.text", "worker.link"] {
            Stack::new(&cpu, vec![named("worker-gpu"), named(thread)], &compiled).sweep();
        }
    }
}

/// A rule for one CPU is there for the others, or is one of these.
#[test]
fn the_policies_of_all_cpus_say_the_same() {
    let [x86_64, aarch64] = cpus().map(|cpu| policy::parse(cpu.text).unwrap());
    let replaced = [
        ("poll", "ppoll"),
        ("epoll_wait", "epoll_pwait"),
        ("mkdir", "mkdirat"),
        ("rename", "renameat"),
        ("unlink", "unlinkat"),
        ("dup2", "dup3"),
        ("readlink", "readlinkat"),
        ("access", "faccessat"),
        ("rmdir", "unlinkat"),
    ];
    // aarch64 removes folders as it removes files, and has a register for a thread's own data.
    for (one, other) in x86_64.iter().zip(&aarch64) {
        assert_eq!(one.name(), other.name());
        let removes_files = one.rules.iter().any(|rule| rule.syscall == "unlink");
        let has_other = |rule: &&Rule| match rule.syscall.as_str() {
            "arch_prctl" => false,
            "rmdir" => !removes_files,
            _ => true,
        };
        let rules: Vec<&Rule> = one.rules.iter().filter(has_other).collect();
        assert_eq!(rules.len(), other.rules.len(), "{}", one.name());
        for (one, other) in rules.into_iter().zip(&other.rules) {
            let is_replaced = replaced.contains(&(one.syscall.as_str(), other.syscall.as_str()));
            assert!(one.syscall == other.syscall || is_replaced, "{one:?} {other:?}");
            assert_eq!(format!("{:?}", one.args), format!("{:?}", other.args), "{one:?}");
        }
    }
}

#[test]
fn the_interpreter_says_what_the_kernel_says() {
    let seen = probe(*users().first().unwrap_or(&User::Plain), &["programs", PROGRAMS]);
    // A difference would be a line before this one.
    assert_eq!(seen.lines().next(), Some("compared 3200"));
}
