//! Swap: said where memory could be written to it, and refused where the configuration says so.

use super::*;

/// What the kernel shows where a partition is used for swap.
const SWAPS: &str = "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 8388604 0 -2\n";

/// Starts it in a view of its own in which the kernel shows swap.
fn start_with_swap(appliance: &mut Appliance) {
    fs::write(appliance.path("swaps"), SWAPS).unwrap();
    let (swaps, config) = (appliance.path("swaps"), appliance.path("cloister.toml"));
    let told = fs::File::create(appliance.path("told.log")).unwrap();
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount --bind \"$0\" /proc/swaps && exec \"$1\" --config \"$2\"",
    ]);
    command.arg(swaps).arg(appliance.programs.join("cloister-supervisor")).arg(config);
    command.stdin(Stdio::null()).stdout(told.try_clone().unwrap()).stderr(told).current_dir("/");
    appliance.child = command.spawn().unwrap();
}

#[test]
fn memory_that_could_be_swapped_is_said_or_refused() {
    if !is_root() {
        return support::skip("swap", "a view of the kernel's files takes root");
    }
    let tiny = support::golden().join("tiny/llama.gguf");
    let mut appliance = Appliance::start_with(As::Oneself, &tiny, "[sandbox]\nswap = \"tell\"\n");
    appliance.stop();
    start_with_swap(&mut appliance);
    appliance.wait_until_ready();
    let told = appliance.told();
    assert!(told.contains("missing protection: swap: prompts and weights may be"), "{told}");
    let status = cloister_ok(&["status", "--socket", &appliance.path("control.sock")]);
    assert!(status.contains("MISSING     swap"), "{status}");
    appliance.stop();

    appliance.change_config("swap = \"tell\"", "swap = \"refuse\"");
    start_with_swap(&mut appliance);
    let status = appliance.child.wait().unwrap();
    let told = appliance.told();
    assert!(!status.success() && told.contains("sandbox.swap = \"refuse\": swap: "), "{told}");
    appliance.start_again();
    if fs::read_to_string("/proc/swaps").unwrap().lines().count() == 1 {
        appliance.wait_until_ready();
    }
}
