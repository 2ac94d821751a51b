//! Memory that is zeroed when it is given back: for processes that hold text or keys.
//!
//! What a library copies (bodies, buffers of TLS and HTTP, values of a template, a key's bytes) is gone from the
//! heap when the library drops it, and from the stack where [`erase_stack`] is called. Not covered: registers,
//! and buffers inside the kernel.

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;

use zeroize::Zeroize as _;

/// Size of a block, in bytes, above which the system's allocator gives it a mapping of its own, and the
/// mapping back to the kernel when it is freed (`M_MMAP_THRESHOLD` of glibc is never above). To zero it would
/// only claim the pages of it that were never used.
const MAPPED_SIZE: usize = 32 << 20;

/// How much of the stack is erased, in bytes: several times what reading and using a key takes.
const STACK_LEN_BYTES: usize = 1 << 20;

/// Erases what calls that have returned left on this thread's stack, below the caller.
#[inline(never)]
pub fn erase_stack() {
    let mut left = [0_u8; STACK_LEN_BYTES];
    left.zeroize();
}

/// The system's allocator, which zeroes what is freed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Erasing;

// SAFETY: every block is `System`'s, and goes back to it with the layout that it came with. `realloc` is
// the trait's own: a new block, a copy, and `dealloc` of the old one.
unsafe impl GlobalAlloc for Erasing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `alloc_zeroed`'s contract, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() <= MAPPED_SIZE {
            // SAFETY: the caller gives a block of this size that nobody else uses.
            unsafe { block.write_bytes(0, layout.size()) };
            // SAFETY: no instruction; the compiler must believe that it reads the block, so that the
            // zeros are written although the block is freed.
            unsafe { asm!("/* {} */", in(reg) block, options(nostack, preserves_flags)) };
        }
        // SAFETY: the caller keeps `dealloc`'s contract, which is the same.
        unsafe { System.dealloc(block, layout) }
    }
}

/// What memory holds of a list, and of the room that it has beyond its end.
#[cfg(test)]
pub(crate) fn held<T>(values: &Vec<T>) -> Vec<u8> {
    let mut bytes = vec![0; values.capacity() * size_of::<T>()];
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let start = values.as_ptr().addr() as u64;
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, start).unwrap();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frees a block that holds a pattern, and returns what stands in its middle afterwards; nothing if
    /// there is no memory any more.
    fn after_free(size: usize) -> Option<[u8; 64]> {
        let layout = Layout::from_size_align(size, 16).unwrap();
        // SAFETY: the layout is not empty.
        let [kept, freed] = [(); 2].map(|()| unsafe { Erasing.alloc(layout) });
        // SAFETY: the block is of this size.
        unsafe { freed.write_bytes(0xA5, size) };
        let middle = (freed.addr() + size / 2) as u64;
        // SAFETY: the block came from there with this layout.
        unsafe { Erasing.dealloc(freed, layout) };
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut bytes = [0; 64];
        let read = std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, middle);
        // SAFETY: as above.
        unsafe { Erasing.dealloc(kept, layout) };
        read.is_ok().then_some(bytes)
    }

    #[test]
    fn a_freed_block_holds_nothing() {
        // Large enough that the allocator keeps none of its own lists in the middle; and so large that it
        // goes back to the kernel, which may have lent the place to another thread meanwhile.
        for size in [64 << 10, MAPPED_SIZE, MAPPED_SIZE + 1] {
            let bytes = after_free(size);
            assert!(bytes.is_none_or(|bytes| !bytes.contains(&0xA5)), "{size}: {bytes:?}");
        }
    }

    /// Leaves a pattern on the stack, and returns where.
    #[inline(never)]
    fn leave_behind() -> u64 {
        let mut left = [0_u8; STACK_LEN_BYTES / 2];
        std::hint::black_box(&mut left).fill(0xA5);
        left.as_ptr().addr() as u64
    }

    #[test]
    fn what_a_call_left_on_the_stack_is_erased() {
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let place = leave_behind();
        let mut bytes = [0; 64];
        let mut look = || {
            std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, place).unwrap();
            bytes
        };
        assert_eq!(look(), [0xA5; 64], "the control");
        erase_stack();
        assert_eq!(look(), [0; 64]);
    }
}
