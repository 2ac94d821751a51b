//! An interpreter of the kernel's seccomp programs (classic BPF), so that a filter for another CPU can be run here.
//!
//! It knows what the kernel lets a seccomp program hold and nothing else. That it says what a kernel says is
//! shown by random programs that both run (`probe programs`), and by every filter of this CPU (`probe rules`).

/// `SECCOMP_RET_ALLOW`.
pub(crate) const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO`; the error is in the lower half.
pub(crate) const ERRNO: u32 = 0x0005_0000;
/// Words of scratch memory.
pub(crate) const MEMORY_WORDS: usize = 16;

/// What the kernel shows a filter of a call: `seccomp_data`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) number: u32,
    /// `AUDIT_ARCH_*`.
    pub(crate) architecture: u32,
    pub(crate) arguments: [u64; 6],
}

/// One step: `sock_filter`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) k: u32,
}

/// A program that no kernel takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// An unknown step, or one with an operand that is out of bounds.
    Instruction(usize),
    /// It runs past its end.
    End,
}

/// What filters that lie on each other say of a call: the verdict that the kernel acts on.
pub(crate) fn verdict(stack: &[Vec<Instruction>], call: &Call) -> Result<u32, Fault> {
    let mut strictest = ALLOW;
    for program in stack {
        let one = run(program, call)?;
        // The kernel's order of actions: as signed numbers, the least wins.
        let action = |verdict: u32| (verdict & 0xffff_0000).cast_signed();
        if action(one) < action(strictest) {
            strictest = one;
        }
    }
    Ok(strictest)
}

/// Runs one program.
pub(crate) fn run(program: &[Instruction], call: &Call) -> Result<u32, Fault> {
    let data = words(call);
    let (mut a, mut x, mut memory) = (0_u32, 0_u32, [0_u32; MEMORY_WORDS]);
    let mut at = 0;
    loop {
        let Instruction { code, jump_true, jump_false, k } = *program.get(at).ok_or(Fault::End)?;
        let fault = Fault::Instruction(at);
        let cell = usize::try_from(k).ok().filter(|&cell| cell < MEMORY_WORDS).ok_or(fault);
        // The lowest three bits are the class, the next two the size or source.
        let operand = if code & 0x08 == 0 { k } else { x };
        at += 1;
        match code {
            // LD: a word of the call, its length, a constant, a cell.
            0x20 if k % 4 == 0 => a = *data.get(k as usize / 4).ok_or(fault)?,
            0x80 => a = u32::try_from(data.len() * 4).map_err(|_| fault)?,
            0x00 => a = k,
            0x60 => a = memory[cell?],
            // LDX.
            0x81 => x = u32::try_from(data.len() * 4).map_err(|_| fault)?,
            0x01 => x = k,
            0x61 => x = memory[cell?],
            // ST, STX, TAX, TXA.
            0x02 => memory[cell?] = a,
            0x03 => memory[cell?] = x,
            0x07 => x = a,
            0x87 => a = x,
            // RET.
            0x06 => return Ok(k),
            0x16 => return Ok(a),
            0x05 => at += k as usize,
            _ if code & 0x07 == 0x04 => match compute(code & 0xf0, a, operand) {
                Some(Some(result)) => a = result,
                // Division by zero ends a program with 0.
                Some(None) => return Ok(0),
                None => return Err(fault),
            },
            _ if code & 0x07 == 0x05 => {
                let is_true = compare(code & 0xf0, a, operand).ok_or(fault)?;
                at += usize::from(if is_true { jump_true } else { jump_false });
            }
            _ => return Err(fault),
        }
    }
}

/// `None` for an unknown operation, `Some(None)` for a division by zero.
fn compute(operation: u16, a: u32, operand: u32) -> Option<Option<u32>> {
    Some(Some(match operation {
        0x00 => a.wrapping_add(operand),
        0x10 => a.wrapping_sub(operand),
        0x20 => a.wrapping_mul(operand),
        0x30 => return Some(a.checked_div(operand)),
        0x40 => a | operand,
        0x50 => a & operand,
        // The processor looks at the lower five bits of a shift.
        0x60 => a.wrapping_shl(operand),
        0x70 => a.wrapping_shr(operand),
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ operand,
        _ => return None,
    }))
}

fn compare(operation: u16, a: u32, operand: u32) -> Option<bool> {
    match operation {
        0x10 => Some(a == operand),
        0x20 => Some(a > operand),
        0x30 => Some(a >= operand),
        0x40 => Some(a & operand != 0),
        _ => None,
    }
}

/// The call as the kernel lays it out: number, architecture, instruction pointer (unknown: 0), arguments,
/// each as its lower and its upper half on the little-endian machines that Cloister runs on.
fn words(call: &Call) -> [u32; 16] {
    let mut words = [0; 16];
    words[..2].copy_from_slice(&[call.number, call.architecture]);
    for (halves, argument) in words[4..].chunks_exact_mut(2).zip(call.arguments) {
        let [a, b, c, d, e, f, g, h] = argument.to_le_bytes();
        halves
            .copy_from_slice(&[u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]);
    }
    words
}
