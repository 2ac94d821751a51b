//! The `cloister-worker-gpu` binary, linked dynamically; the program is in `cloister::worker`.

/// What it frees is zeroed: it holds text.
#[global_allocator]
static ALLOCATOR: cloister::sys::erasing::Erasing = cloister::sys::erasing::Erasing;

fn main() -> ! {
    cloister::worker::gpu_main()
}
