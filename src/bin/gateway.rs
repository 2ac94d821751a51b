//! The `cloister-gateway` binary; the program is in `cloister::gateway`.

/// What it frees is zeroed: it holds text.
#[global_allocator]
static ALLOCATOR: cloister::sys::erasing::Erasing = cloister::sys::erasing::Erasing;

fn main() -> std::process::ExitCode {
    cloister::gateway::main()
}
