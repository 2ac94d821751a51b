//! The tile registers: leave to use them, their shapes, and the products of a sub-block. They hold nothing
//! after [`Shapes`] is dropped. The compiler puts nothing into them, and nothing that is called between
//! [`multiply`] and [`store`] uses them: what is left in one stays until it is stored.

use core::arch::asm;

use crate::gemm::Group;
use crate::packed::BLOCK_LEN;
use crate::quantize::TILE_TOKENS;
use crate::quantize_tiles::TileQuants;

/// `arch_prctl`, and what it is asked for: leave to use the state 18, the tiles' data.
const SYS_ARCH_PRCTL: i64 = 158;
const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
const XFEATURE_XTILEDATA: i64 = 18;

/// Products of a block: `[token][row]`.
pub(super) type Dots = [[i32; 16]; TILE_TOKENS];

/// Asks the kernel for leave to use the tiles; it holds for all threads of this process.
pub(crate) fn is_permitted() -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    let mut outcome = SYS_ARCH_PRCTL;
    // SAFETY: the call takes two numbers and writes to no memory; `rcx` and `r11` are what a system
    // call overwrites.
    unsafe {
        asm!(
            "syscall",
            inout("rax") outcome,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    outcome == 0
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile.
    row_sizes: [u16; 16],
    rows: [u8; 16],
}

/// The shapes of the tiles of this thread. Dropping it empties them, so that nothing secret stays
/// there.
///
/// | tiles | hold |
/// |---|---|
/// | 0, 1 | a block of activations of [`TILE_TOKENS`] tokens, and of weights of a tile of rows |
/// | 2, 3 | their products: those that are made, those made before them |
/// | 4, 5 | as 0 and 1, of half a block |
pub(super) struct Shapes(());

impl Shapes {
    /// Sets them.
    ///
    /// # Safety
    ///
    /// The CPU has AMX, and the kernel has given leave to use it.
    pub(super) unsafe fn set() -> Self {
        const LINE: u16 = 64;
        const BLOCK: u16 = BLOCK_LEN as u16;
        const TOKENS: u8 = TILE_TOKENS as u8;
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_sizes: [0; 16],
            rows: [0; 16],
        };
        config.row_sizes[..6].copy_from_slice(&[BLOCK, LINE, LINE, LINE, BLOCK / 2, LINE]);
        config.rows[..6].copy_from_slice(&[TOKENS, 8, TOKENS, TOKENS, TOKENS, 4]);
        // SAFETY: `config` is 64 readable bytes of valid shapes, and the caller has AMX.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Self(())
    }
}

impl Drop for Shapes {
    fn drop(&mut self) {
        // SAFETY: there is a `Shapes` only where there is AMX.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Makes the products of part `part` of a block, of so many columns as `weights` has, of all tokens
/// with a tile of rows, and leaves them in the place `DOTS`, 0 or 1.
///
/// # Safety
///
/// The thread has [`Shapes`].
#[inline(always)]
pub(super) unsafe fn multiply<const DOTS: u32, const GROUPS: usize>(
    x: &TileQuants,
    part: usize,
    weights: &[Group; GROUPS],
) {
    const { assert!(GROUPS == 8 || GROUPS == 4, "there are shapes of a block and of a half") };
    assert!(part < 8 / GROUPS, "a block has this part");
    let x = x.as_ptr().cast::<i8>().wrapping_add(part * 4 * GROUPS);
    // SAFETY: the shapes keep reads within the arguments: a row of `x` starts each block's length.
    unsafe {
        asm!(
            "tilezero tmm{dots}",
            "tileloadd tmm{x_tile}, [{x} + {block}*1]",
            "tileloadd tmm{weights_tile}, [{weights} + {line}*1]",
            "tdpbssd tmm{dots}, tmm{x_tile}, tmm{weights_tile}",
            dots = const 2 + DOTS,
            x_tile = const if GROUPS == 8 { 0 } else { 4 },
            weights_tile = const if GROUPS == 8 { 1 } else { 5 },
            x = in(reg) x,
            weights = in(reg) weights,
            block = in(reg) BLOCK_LEN,
            line = in(reg) 64_usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// Writes what [`multiply`] left in a place.
///
/// # Safety
///
/// The thread has [`Shapes`].
#[inline(always)]
pub(super) unsafe fn store<const DOTS: u32>(target: &mut Dots) {
    // SAFETY: the shapes keep writes within `target`.
    unsafe {
        asm!(
            "tilestored [{target} + {line}*1], tmm{dots}",
            dots = const 2 + DOTS,
            target = in(reg) target,
            line = in(reg) 64_usize,
            options(nostack, preserves_flags),
        );
    }
}

/// Runs `steps` steps of independent products of whole tiles; returns the products of a step.
///
/// # Safety
///
/// The CPU has AMX, and the kernel has given leave to use it.
pub(crate) unsafe fn peak_steps(steps: usize) -> usize {
    let mut config =
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_sizes: [0; 16], rows: [0; 16] };
    config.row_sizes[..8].fill(64);
    config.rows[..8].fill(16);
    // SAFETY: `config` is 64 readable bytes of valid shapes, and the caller has AMX.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
    let _shapes = Shapes(());
    for _ in 0..steps {
        // SAFETY: registers alone, whose shapes are set.
        unsafe {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }
    4 * 16 * 16 * 64
}
