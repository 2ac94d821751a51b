//! NEON kernels. A function here can only be entered with the proof [`crate::Neon`], or with
//! [`crate::NeonDotprod`], which has it.
//!
//! Bytes are multiplied as signed ones: those of 4, 5 and 6 bits fit as they are, those of 8 bits
//! are moved down by their zero, 128, when they are unpacked.

/// Repeats a block with a constant for its number: lanes of `sdot` and shifts are constants.
macro_rules! unrolled {
    ($number:ident in [$($value:literal)*] $body:block) => {
        $({
            const $number: usize = $value;
            $body
        })*
    };
}

mod dot;
mod gemm;
mod quantize;
mod unpack;

pub(crate) use dot::Dot;
pub(crate) use quantize::quantize_panel;

const _: () = assert!(cfg!(target_endian = "little"), "vectors are loaded as the bytes lie");
