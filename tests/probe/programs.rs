//! Random seccomp programs, run by the kernel and by the interpreter (`bpf`), which must say the same.
//!
//! Each program computes on the arguments of one call and answers it with an error number made of what came
//! out; all other calls pass. So the kernel's result can be read back, twelve bits of it a program.

use cloister::sys::process::install_filter;
use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::bpf::{ALLOW, Call, ERRNO, Instruction, MEMORY_WORDS, run};
use super::rules::ARCHITECTURE;

/// Random steps of a program.
const STEPS: usize = 24;
/// Calls that each program is asked about.
const CALLS: usize = 8;
/// Bits of an error number that the kernel hands through.
const ERROR_BITS: u32 = 0xfff;
/// The call that is answered: it has room for six arguments, and no program here needs it.
const NUMBER: i64 = libc::SYS_process_vm_writev;

/// Prints each difference, then how many answers were compared.
pub(crate) fn check(count: usize) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut compared = 0;
    for _ in 0..count {
        let program = random.program();
        let calls: Vec<[u64; 6]> = (0..CALLS).map(|_| random.arguments()).collect();
        for (arguments, seen) in calls.iter().zip(by_kernel(&program, &calls)) {
            let call = Call {
                number: u32::try_from(NUMBER).unwrap(),
                architecture: ARCHITECTURE,
                arguments: *arguments,
            };
            let want = run(&program, &call).unwrap() & ERROR_BITS;
            if want != seen {
                println!("{program:?} {arguments:x?}: kernel {seen}, interpreter {want}");
            }
            compared += 1;
        }
    }
    println!("compared {compared}");
}

/// A step that does not jump.
const fn step(code: u16, k: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, k }
}

/// Xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn word(&mut self) -> u32 {
        // Small ones, ones with few bits, and any.
        let word = u32::try_from(self.next() >> 32).unwrap();
        match self.below(4) {
            0 => word & 0xff,
            1 => 1 << (word & 31),
            2 => word | 0xffff_0000,
            _ => word,
        }
    }

    fn arguments(&mut self) -> [u64; 6] {
        [(); 6].map(|()| u64::from(self.word()) << 32 | u64::from(self.word()))
    }

    fn program(&mut self) -> Vec<Instruction> {
        let call = u32::try_from(NUMBER).unwrap();
        // Every other call passes.
        let mut program = vec![step(0x20, 0)];
        program.push(Instruction { jump_true: 1, ..step(0x15, call) });
        program.push(step(0x06, ALLOW));
        // The kernel wants every cell written before it is read.
        for cell in 0..u32::try_from(MEMORY_WORDS).unwrap() {
            program.push(step(0x00, self.word()));
            program.push(step(0x02, cell));
        }
        program.push(step(0x01, self.word()));
        for left in (0..STEPS).rev() {
            let next = self.step(left);
            program.push(next);
        }
        program.push(step(0x54, ERROR_BITS));
        program.push(step(0x44, ERRNO));
        program.push(step(0x16, 0));
        program
    }

    /// A step; jumps go over at most the `left` that follow.
    fn step(&mut self, left: usize) -> Instruction {
        let operand = self.word();
        let source = if self.below(2) == 0 { 0 } else { 0x08 };
        match self.below(8) {
            // Not the two words of the instruction pointer, which nobody foresees.
            0 | 1 => {
                let word = [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][self.pick(14)];
                step(0x20, 4 * word)
            }
            2 => step([0x00, 0x01, 0x80, 0x81][self.pick(4)], operand),
            3 => {
                let cell = operand % u32::try_from(MEMORY_WORDS).unwrap();
                step([0x60, 0x61, 0x02, 0x03][self.pick(4)], cell)
            }
            4 => step([0x07, 0x87][self.pick(2)], 0),
            5 => {
                let comparison = [0x10, 0x20, 0x30, 0x40][self.pick(4)];
                let mut far = || u8::try_from(self.below(left as u64 + 1)).unwrap();
                let (jump_true, jump_false) = (far(), far());
                let code = 0x05 | comparison | source;
                Instruction { jump_true, jump_false, ..step(code, operand) }
            }
            _ => {
                let operations = [0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0xa0];
                let operation = operations[self.pick(10)];
                match operation {
                    // The kernel takes no constant shift past the word, and no division by a constant 0;
                    // one by a 0 in X kills.
                    0x60 | 0x70 => step(0x04 | operation | source, operand & 31),
                    0x30 => step(0x34, operand | 1),
                    0x80 => step(0x84, 0),
                    _ => step(0x04 | operation | source, operand),
                }
            }
        }
    }

    fn pick(&mut self, count: u64) -> usize {
        usize::try_from(self.below(count)).unwrap()
    }
}

/// Has a process under the program make the calls; returns the error of each, 0 for none.
fn by_kernel(program: &[Instruction], calls: &[[u64; 6]]) -> Vec<u32> {
    let bytes: Vec<u8> = program
        .iter()
        .flat_map(|step| {
            let [a, b] = step.code.to_le_bytes();
            let [k0, k1, k2, k3] = step.k.to_le_bytes();
            [a, b, step.jump_true, step.jump_false, k0, k1, k2, k3]
        })
        .collect();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    // SAFETY: the probe has one thread, so the copy is whole.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            set_no_new_privs().unwrap();
            install_filter(&bytes, true).unwrap();
            for &[a, b, c, d, e, f] in calls {
                // SAFETY: the filter answers the call, so the kernel makes nothing of its arguments.
                let result = unsafe { libc::syscall(NUMBER, a, b, c, d, e, f) };
                let error = if result == 0 { 0 } else { Errno::last_raw() };
                nix::unistd::write(&writer, &error.to_ne_bytes()).unwrap();
            }
            // SAFETY: ends the copy.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut bytes = vec![0; 4 * calls.len()];
            std::io::Read::read_exact(&mut std::fs::File::from(reader), &mut bytes).unwrap();
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            bytes.as_chunks().0.iter().map(|&word| u32::from_ne_bytes(word)).collect()
        }
    }
}
