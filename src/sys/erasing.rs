//! An allocator that zeroes memory before it gives it back: for processes that hold text.
//!
//! What a library copies (bodies, buffers of TLS and HTTP, values of a template) is gone when the library
//! drops it. Not covered: the stack, registers, and buffers inside the kernel.

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;

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
        // SAFETY: the caller gives a block of this size that nobody else uses.
        unsafe { block.write_bytes(0, layout.size()) };
        // SAFETY: no instruction; the compiler must believe that it reads the block, so that the zeros are
        // written although the block is freed.
        unsafe { asm!("/* {} */", in(reg) block, options(nostack, preserves_flags)) };
        // SAFETY: the caller keeps `dealloc`'s contract, which is the same.
        unsafe { System.dealloc(block, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_block_holds_nothing() {
        // Large enough that the system's allocator neither merges it nor keeps its lists in it.
        let layout = Layout::from_size_align(64 << 10, 16).unwrap();
        // SAFETY: the layout is not empty.
        let kept = unsafe { Erasing.alloc(layout) };
        // SAFETY: as above.
        let freed = unsafe { Erasing.alloc(layout) };
        // SAFETY: both blocks are of this size.
        unsafe { freed.write_bytes(0xA5, layout.size()) };
        let at = freed.addr();
        // SAFETY: the block came from there with this layout.
        unsafe { Erasing.dealloc(freed, layout) };
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut bytes = vec![1; 4096];
        let middle = (at + layout.size() / 2) as u64;
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, middle).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
        // SAFETY: as above.
        unsafe { Erasing.dealloc(kept, layout) };
    }
}
