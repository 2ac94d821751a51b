//! The `cloister-supervisor` binary; the program is in `cloister::supervisor`.

/// What it frees is zeroed: it held keys.
#[global_allocator]
static ALLOCATOR: cloister::sys::erasing::Erasing = cloister::sys::erasing::Erasing;

fn main() -> std::process::ExitCode {
    cloister::supervisor::main()
}
