//! A model with layers on a card: the real worker, linked dynamically, in the real jail and under the real filters,
//! with the stand-in for NVIDIA's driver, which emulates the kernels on the CPU.
//!
//! The stand-in is strict: a worker that ends gives back no memory of the card that is not zero, or it ends in
//! another way than it should, which is on the record.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::OnceLock;

use cloister::engine::{TextStream, TextStreamEnd};
use cloister::gguf;
use cloister::tokenizer::Tokenizer;

use super::records::{all_records, facts};
use super::*;
use crate::binaries;
use stand_in::folder;

#[path = "../../gpu/library.rs"]
mod stand_in;

const WORKER: &str = "cloister-worker-gpu";
/// The lines of the tiny model's golden file whose answers are compared.
const LINES_COUNT: usize = 2;

fn tiny(file: &str) -> PathBuf {
    support::golden().join("tiny").join(file)
}

/// The worker, built as an operator builds it, but for the profile.
fn worker_gpu() -> &'static Path {
    static WORKER_PATH: OnceLock<PathBuf> = OnceLock::new();
    WORKER_PATH.get_or_init(|| {
        // target/HOST/PROFILE/cloister
        let own = Path::new(env!("CARGO_BIN_EXE_cloister"));
        let profile = own.parent().unwrap();
        let host = profile.parent().unwrap();
        let mut cargo = support::cargo();
        // What it is made of lies where that of these tests does; the programs themselves do not. With the tests of
        // a card its dependencies are those of tests, which are there.
        cargo.args(["build", "--quiet", "--features", "cuda", "--bin", WORKER, "--test", "gpu"]);
        cargo.arg("--config").arg(format!("build.build-dir={:?}", host.parent().unwrap()));
        cargo.args(["--target-dir", "target/cuda"]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        cargo.env("RUSTC_WORKSPACE_WRAPPER", root.join(".cargo/dynamic.sh"));
        assert!(cargo.status().unwrap().success());
        let built = root.join("target/cuda").join(host.file_name().unwrap());
        built.join(profile.file_name().unwrap()).join(WORKER)
    })
}

/// Whether the stand-in can be built for this processor.
fn can_emulate() -> bool {
    let can = cfg!(target_arch = "x86_64");
    if !can {
        support::skip("instruction set cuda", "its emulation switches fibers of x86-64");
    }
    can
}

/// An appliance of the tiny model in the exact mode, stopped, whose programs are in a folder of its own and whose
/// driver is `driver`.
fn with_driver(user: As, driver: &[u8]) -> Appliance {
    let exact = "activations = \"f32\"\nthreads = 1\n";
    let mut appliance = Appliance::start_with(user, &tiny("llama.gguf"), exact);
    appliance.stop();
    let (programs, libraries) = (appliance.folder.join("programs"), appliance.folder.join("lib"));
    fs::create_dir(&programs).unwrap();
    fs::create_dir(&libraries).unwrap();
    for name in ["cloister-supervisor", "cloister-gateway", "cloister-worker"] {
        support::copy_program(&appliance.programs.join(name), &programs.join(name));
    }
    support::copy_program(worker_gpu(), &programs.join(WORKER));
    fs::write(libraries.join("libcuda.so.1"), driver).unwrap();
    appliance.programs = programs;
    appliance.change_config("[audit]\n", "[gpu]\ndriver = \"lib\"\n[audit]\n");
    give_to(&appliance.folder, user);
    appliance
}

/// With the stand-in or, if `CLOISTER_CARD` is set, the machine's own driver.
fn with_stand_in(user: As) -> Appliance {
    let appliance = with_driver(user, &fs::read(folder().join("libcuda.so.1")).unwrap());
    if std::env::var_os("CLOISTER_CARD").is_some() {
        appliance.change_config("driver = \"lib\"\n", "");
    }
    appliance
}

/// Asks for layers on a card.
fn ask_layers(appliance: &Appliance, layers: &str) {
    let lines = format!("name = \"smol\"\ngpu_layers = {layers}\n");
    appliance.change_config("name = \"smol\"\n", &lines);
    give_to(&appliance.folder, appliance.user);
}

fn status(appliance: &Appliance) -> Value {
    let done = cloister(&["status", "--json", "--socket", &appliance.path("control.sock")]);
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Prompts of the golden file, each with the number of its tokens and the reference's greedy answer.
fn golden() -> Vec<(String, usize, String)> {
    let file = fs::read(tiny("llama.gguf")).unwrap();
    let header = gguf::parse(&file, file.len() as u64).unwrap();
    let tokenizer = Tokenizer::from_metadata(&header.metadata).unwrap();
    let lines = fs::read_to_string(tiny("llama.jsonl")).unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let (mut stream, mut text) = (TextStream::new(&[]), String::new());
        for token in line["greedy"].as_array().unwrap() {
            let token = u32::try_from(token.as_u64().unwrap()).unwrap();
            if tokenizer.is_end_of_generation(token) {
                break;
            }
            let _: TextStreamEnd = stream.push(tokenizer.token_bytes(token), &mut text);
        }
        let _: TextStreamEnd = stream.finish(&mut text);
        let prompt = line["text"].as_str().unwrap().to_owned();
        (prompt, line["tokens"].as_array().unwrap().len(), text)
    };
    lines.lines().take(LINES_COUNT).map(line).collect()
}

/// Holds the answers to the golden prompts against the reference.
fn assert_golden(appliance: &Appliance) {
    for (prompt, tokens, text) in golden() {
        let body = json!({ "model": "smol", "prompt": prompt, "max_tokens": 16, "temperature": 0 });
        let (status, answer) = read_answer(appliance.post("/v1/completions", &body)).unwrap();
        assert_eq!(status, 200, "{answer}\n{}", appliance.told());
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["choices"][0]["text"], text, "{answer}");
        let read = answer["usage"]["prompt_tokens"].as_u64().unwrap();
        // The tokenizer may put a first token before the text.
        assert!([tokens as u64, tokens as u64 + 1].contains(&read), "{answer}");
    }
}

/// The stand-in, as two cards of so many bytes each.
fn two_cards(memory: usize) -> Vec<u8> {
    let mut driver = fs::read(folder().join("libcuda.so.1")).unwrap();
    let (known, wanted) = (
        "stand-in: 01 cards of 1073741824 bytes",
        format!("stand-in: 02 cards of {memory:010} bytes"),
    );
    let at = driver.windows(known.len()).position(|bytes| bytes == known.as_bytes()).unwrap();
    driver[at..][..known.len()].copy_from_slice(wanted.as_bytes());
    driver
}

/// Bytes of a card that has room for one of the tiny model's layers with all that a card needs, not for two.
const ONE_LAYER_MEMORY: usize = 33 << 20;

#[test]
fn a_model_whose_layers_are_on_two_cards_answers_as_the_reference_from_its_jail() {
    if !can_emulate() || std::env::var_os("CLOISTER_CARD").is_some() {
        return;
    }
    for user in users() {
        let mut appliance = with_driver(user, &two_cards(ONE_LAYER_MEMORY));
        ask_layers(&appliance, "-1\ngpu_device = [1, 0]");
        appliance.start_again();
        appliance.wait_until_ready();
        let told = status(&appliance);
        let model = &told["models"][0];
        assert_eq!(model["gpu_devices"], json!([0, 1]), "{told}");
        let engine = model["declared"]["engine"].as_str().unwrap();
        assert!(engine.contains("layers 2 to 2 and the output on card 1 of 2: "), "{engine}");
        assert!(engine.contains("the embedding and layers 1 to 1 on card 2 of 2: "), "{engine}");
        assert!(appliance.told().contains(&format!("cards 0, 1: {engine}")), "{engine}");
        assert_golden(&appliance);
        look_at(&appliance, appliance.only_child(WORKER));
        appliance.stop();
        let ends = facts(&appliance, "child_died");
        assert!(ends.is_empty(), "{ends:?}");
        assert_eq!(appliance.verify_log()["verdict"], "INTACT");
    }
}

#[test]
fn a_model_with_all_its_layers_on_a_card_answers_as_the_reference_from_its_jail() {
    if !can_emulate() {
        return;
    }
    for user in users() {
        let mut appliance = with_stand_in(user);
        ask_layers(&appliance, "-1");
        appliance.start_again();
        appliance.wait_until_ready();
        assert_golden(&appliance);

        let told = status(&appliance);
        let model = &told["models"][0];
        let engine = model["declared"]["engine"].as_str().unwrap();
        assert!(engine.contains("all layers, embedding and output on the card: "), "{engine}");
        assert!(engine.contains("MiB"), "{engine}");
        assert_eq!(model["gpu_devices"], json!([0]), "{told}");
        assert!(appliance.told().contains(engine), "the plan stands in the log too");
        let missing = told["missing_protections"].to_string();
        assert!(missing.contains("driver runs in the worker"), "{missing}");

        let worker = appliance.only_child(WORKER);
        assert!(appliance.children("cloister-worker").is_empty(), "the card's worker alone");
        look_at(&appliance, worker);
        kill(worker, "KILL");
        eventually("another worker", || appliance.children(WORKER).iter().any(|&it| it != worker));
        eventually("its readiness", || appliance.get("/health/ready").unwrap().0 == 200);
        assert_golden(&appliance);
        appliance.stop();

        let weak = facts(&appliance, "override");
        let is_named = weak
            .iter()
            .any(|one| one["observed"] == json!({ "setting": "gpu_layers", "model": "smol" }));
        assert!(is_named, "{weak:?}");
        let starts = facts(&appliance, "start");
        let programs = &starts.last().unwrap()["observed"]["programs"];
        assert!(programs["worker_gpu"].is_string() && programs["worker"].is_string(), "{programs}");
        assert!(starts[0]["observed"]["programs"]["worker_gpu"].is_null(), "without a card: none");
        assert!(appliance.records("sandbox_violation").is_empty());
        all_records(&appliance);
    }
}

/// Its threads are all filtered, its root holds what the driver needs, and it runs as nobody else.
fn look_at(appliance: &Appliance, worker: i32) {
    for task in fs::read_dir(format!("/proc/{worker}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let has = |line: &str| status.lines().any(|it| it == line);
        assert!(has("Seccomp:\t2") && has("NoNewPrivs:\t1"), "{status}");
        assert!(has("CapEff:\t0000000000000000") && has("CapBnd:\t0000000000000000"), "{status}");
    }
    if !is_root() {
        return;
    }
    // Root's eyes alone see the root of a process that cannot be dumped.
    let root = PathBuf::from(format!("/proc/{worker}/root"));
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let top = names("");
    assert!(top.is_subset(&["dev", "lib", "lib64", "proc"].map(String::from).into()), "{top:?}");
    let is_a_library = |name: &String| name.contains(".so.");
    assert!(names("lib").iter().all(is_a_library) && names("lib").contains("libcuda.so.1"));
    let user = match appliance.user {
        As::Oneself => "60810",
        As::Nobody => "65534",
    };
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap();
    assert!(line.split('\t').all(|uid| uid == user), "{line}");
}

#[test]
fn a_worker_of_one_request_gives_the_card_its_memory_back_as_zeros() {
    if !can_emulate() {
        return;
    }
    let mut appliance = with_stand_in(As::Oneself);
    ask_layers(&appliance, "1");
    let one_each = "[worker]\nlifetime = \"request\"\nsequences = 1\nspare = 0\n";
    appliance.change_config("[worker]\n", one_each);
    appliance.start_again();
    appliance.wait_until_ready();
    for _ in 0..2 {
        assert_golden(&appliance);
    }
    let ended = || facts(&appliance, "worker_ended").len();
    eventually("the ends of the workers", || ended() == 2 * LINES_COUNT);
    // The stand-in would have ended a worker otherwise: with a byte that is not zero, or memory not given back.
    assert!(facts(&appliance, "child_died").is_empty());
    let engine = status(&appliance)["models"][0]["declared"]["engine"].to_string();
    assert!(engine.contains("layers 2 to 2 and the output on the card"), "{engine}");
    appliance.stop();
}

/// The running children whose program is `name`.
fn running(appliance: &Appliance, name: &str) -> Vec<i32> {
    appliance.children(name).into_iter().filter(|&pid| is_running(pid)).collect()
}

#[test]
fn one_worker_of_several_that_finds_no_card_leaves_the_others_theirs_and_status_says_so() {
    if !can_emulate() {
        return;
    }
    let mut appliance = with_stand_in(As::Oneself);
    ask_layers(&appliance, "\"auto\"");
    let two = "[worker]\nlifetime = \"request\"\nsequences = 1\nspare = 1\n";
    appliance.change_config("[worker]\n", two);
    appliance.start_again();
    appliance.wait_until_ready();
    let are = |on_card: usize, on_processors: usize| {
        eventually(&format!("{on_card} on the card, {on_processors} not"), || {
            let count = |name| running(&appliance, name).len();
            let ready = &status(&appliance)["models"][0]["workers"]["ready"];
            count(WORKER) == on_card && count("cloister-worker") == on_processors && *ready == 2
        });
        let told = status(&appliance);
        let model = &told["models"][0];
        let has_driver = told["missing_protections"].to_string().contains("driver");
        assert_eq!(has_driver, on_card > 0, "{told}");
        assert_eq!(
            model["gpu_devices"],
            if on_card > 0 { json!([0]) } else { json!(null) },
            "{told}"
        );
        // What the last that became ready says of itself.
        let engine = model["declared"]["engine"].as_str().unwrap();
        assert_eq!(engine.contains("on the card"), on_processors == 0, "{engine}");
    };
    are(2, 0);
    // Running workers have mapped the driver: another file takes its place.
    let libraries = appliance.folder.join("lib");
    fs::write(libraries.join("other"), "no library").unwrap();
    fs::rename(libraries.join("other"), libraries.join("libcuda.so.1")).unwrap();
    for gone in 1..=2 {
        kill(running(&appliance, WORKER)[0], "KILL");
        are(2 - gone, gone);
    }
    let plan = "model smol: card 0: ";
    assert_eq!(appliance.told().matches(plan).count(), 1, "{}", appliance.told());
    appliance.stop();
}

#[test]
fn without_a_driver_auto_goes_to_the_processors_and_a_number_is_refused() {
    for user in users() {
        let mut appliance = with_driver(user, b"no library");
        ask_layers(&appliance, "\"auto\"");
        appliance.start_again();
        appliance.wait_until_ready();
        assert_golden(&appliance);
        let line = "model smol: no layer on a card: no CUDA driver: libcuda.so.1 cannot be loaded";
        assert!(appliance.told().contains(line), "{}", appliance.told());
        appliance.only_child("cloister-worker");
        assert!(appliance.children(WORKER).into_iter().all(|pid| !is_running(pid)));
        let told = status(&appliance);
        assert!(told["models"][0]["gpu_devices"].is_null(), "{told}");
        assert!(!told["missing_protections"].to_string().contains("driver"), "{told}");
        appliance.stop();

        appliance.change_config("gpu_layers = \"auto\"", "gpu_layers = -1");
        give_to(&appliance.folder, user);
        let told = refusal(&mut appliance);
        let why = "cloister.toml: model.gpu_layers of model smol: no CUDA driver: libcuda.so.1 cannot be \
                   loaded; install NVIDIA's driver (580 or later), or set gpu_layers = 0";
        assert!(told.contains(why), "{told}");
        let refused = facts(&appliance, "model_refused");
        assert_eq!(refused.last().unwrap()["observed"]["model"], "smol");

        fs::remove_file(appliance.programs.join(WORKER)).unwrap();
        let told = refusal(&mut appliance);
        assert!(told.contains("cloister-worker-gpu is not installed"), "{told}");
        appliance.change_config("gpu_layers = -1", "gpu_layers = \"auto\"");
        give_to(&appliance.folder, user);
        appliance.start_again();
        appliance.wait_until_ready();
        assert!(appliance.told().contains("cloister-worker-gpu is not installed"));
        assert_golden(&appliance);
    }
}

#[test]
fn where_the_worker_of_a_card_cannot_be_started_auto_goes_to_the_processors() {
    for user in users() {
        let mut appliance = with_driver(user, b"no library");
        ask_layers(&appliance, "\"auto\"");
        let goes_on = |appliance: &mut Appliance, why: &str| {
            appliance.start_again();
            appliance.wait_until_ready();
            let line = format!("model smol: no layer on a card: start of a child: {why}\n");
            assert!(appliance.told().contains(&line), "{}", appliance.told());
            appliance.only_child("cloister-worker");
            let told = status(appliance);
            assert!(told["models"][0]["gpu_devices"].is_null(), "{told}");
            assert!(!told["missing_protections"].to_string().contains("driver"), "{told}");
            assert_golden(appliance);
            let deaths = facts(appliance, "child_died");
            let cause = deaths.last().unwrap()["observed"]["cause"].as_str().unwrap().to_owned();
            assert_eq!(cause, format!("start of a child: {why}"));
            appliance.stop();
        };
        let worker = appliance.programs.join(WORKER);
        fs::set_permissions(&worker, fs::Permissions::from_mode(0o644)).unwrap();
        goes_on(&mut appliance, "program: Permission denied");
        fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).unwrap();
        // No file that its root could hold.
        fs::create_dir(appliance.folder.join("lib/libnvidia-gpucomp.so.1")).unwrap();
        goes_on(&mut appliance, "root with the driver's files: Not a directory");

        appliance.change_config("gpu_layers = \"auto\"", "gpu_layers = -1");
        give_to(&appliance.folder, user);
        let told = refusal(&mut appliance);
        let why = "cloister.toml: model.gpu_layers of model smol: start of a child: root with the driver's files: \
                   Not a directory; mend that, or set gpu_layers = 0";
        assert!(told.contains(why), "{told}");
        let refused = facts(&appliance, "model_refused");
        assert_eq!(refused.last().unwrap()["observed"]["model"], "smol");
        assert_eq!(appliance.records("stop").len(), appliance.records("start").len());
        assert_eq!(appliance.verify_log()["verdict"], "INTACT");
    }
}

/// Kills the process that started a card's worker, which waits for orders.
fn kill_spawner(appliance: &Appliance) {
    let worker = appliance.only_child(WORKER);
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap();
    kill(parent.parse().unwrap(), "KILL");
}

#[test]
fn a_card_whose_spawner_dies_is_left_by_auto_and_ends_what_asks_for_a_number() {
    if !can_emulate() {
        return;
    }
    for user in users() {
        let mut appliance = with_stand_in(user);
        ask_layers(&appliance, "\"auto\"");
        appliance.start_again();
        appliance.wait_until_ready();
        assert!(status(&appliance)["models"][0]["gpu_devices"].is_array(), "the control");
        kill_spawner(&appliance);
        appliance.only_child("cloister-worker");
        appliance.wait_until_ready();
        assert_golden(&appliance);
        let line = "model smol: no layer on a card: its spawner is gone\n";
        assert_eq!(appliance.told().matches(line).count(), 1, "{}", appliance.told());
        let told = status(&appliance);
        assert!(told["models"][0]["gpu_devices"].is_null(), "{told}");
        assert!(!told["missing_protections"].to_string().contains("driver"), "{told}");
        appliance.stop();
        assert_eq!(hostile::deaths(&appliance, "worker"), ["killed by signal 9"]);
        assert_eq!(appliance.verify_log()["verdict"], "INTACT");

        appliance.change_config("gpu_layers = \"auto\"", "gpu_layers = -1");
        give_to(&appliance.folder, user);
        appliance.start_again();
        appliance.wait_until_ready();
        kill_spawner(&appliance);
        let mut ended = None;
        eventually("its end", || {
            ended = appliance.child.try_wait().unwrap();
            ended.is_some()
        });
        let told = appliance.told();
        let why = "cloister.toml: model.gpu_layers of model smol: its spawner is gone; mend that";
        assert!(!ended.unwrap().success() && told.contains(why), "{told}");
    }
}

/// The stand-in, whose kernel of this name fails when it runs for the second time.
fn failing(kernel: &str) -> Vec<u8> {
    let mut driver = fs::read(folder().join("libcuda.so.1")).unwrap();
    let sign = b"STANDIN_FAILING=";
    let mut places = driver.windows(sign.len() + 1).enumerate();
    let (at, _) =
        places.find(|(_, it)| it[..sign.len()] == *sign && it[sign.len()] == b' ').unwrap();
    driver[at + sign.len()..][..kernel.len()].copy_from_slice(kernel.as_bytes());
    driver
}

#[test]
fn a_worker_whose_card_fails_as_it_zeroes_pages_says_so_as_it_ends_and_another_follows() {
    if !can_emulate() {
        return;
    }
    // The first text of a worker zeroes its pages once, before anything is served.
    let mut appliance = with_driver(As::Oneself, &failing("zero_pages"));
    ask_layers(&appliance, "-1");
    appliance.start_again();
    appliance.wait_until_ready();
    let worker = appliance.only_child(WORKER);
    let body = json!({ "model": "smol", "prompt": "a", "max_tokens": 2, "temperature": 0 });
    if let Some((status, answer)) = read_answer(appliance.post("/v1/completions", &body)) {
        assert_ne!(status, 200, "{answer}");
    }
    eventually("another worker", || appliance.children(WORKER).iter().any(|&it| it != worker));
    eventually("its readiness", || appliance.get("/health/ready").unwrap().0 == 200);
    appliance.stop();
    let causes = hostile::deaths(&appliance, "worker");
    assert_eq!(causes, ["ended with code 20"], "{}", appliance.told());
    all_records(&appliance);
}

#[test]
fn the_worker_of_a_card_links_a_driver_and_no_network_tls_or_signature_code() {
    let worker = fs::read(worker_gpu()).unwrap();
    for name in binaries::OF_THE_DRIVER {
        assert!(support::holds(&worker, name.as_bytes()), "{name}");
    }
    assert!(binaries::needs_loader(&worker), "it is linked dynamically");
    for name in binaries::NOT_IN_THE_WORKER {
        assert!(!binaries::has_symbol_of(&worker, name), "it links {name}");
    }
    for folder in binaries::FOLDERS_NOT_IN_THE_WORKER {
        let name = format!("8cloister{folder}");
        assert!(!binaries::has_symbol_of(&worker, &name), "it links {folder}");
    }
}

#[test]
fn more_layers_than_there_are_are_refused() {
    if !can_emulate() {
        return;
    }
    let mut appliance = with_stand_in(As::Oneself);
    ask_layers(&appliance, "3");
    let told = refusal(&mut appliance);
    let why = "cloister.toml: model.gpu_layers of model smol: 3 layers are asked for, and the model has 2: \
               set gpu_layers = 2 or less, or -1 for all";
    assert!(told.contains(why), "{told}");
}

#[test]
fn a_card_that_is_named_and_not_found_is_refused_to_a_number_and_missed_by_auto() {
    if !can_emulate() || std::env::var_os("CLOISTER_CARD").is_some() {
        return;
    }
    let mut appliance = with_stand_in(As::Oneself);
    ask_layers(&appliance, "-1\ngpu_device = [0, 1]");
    let told = refusal(&mut appliance);
    let why = "model.gpu_layers of model smol: the driver finds 1 of the 2 cards of gpu_device";
    assert!(told.contains(why), "{told}");
    appliance.change_config("gpu_layers = -1", "gpu_layers = \"auto\"");
    give_to(&appliance.folder, appliance.user);
    appliance.start_again();
    appliance.wait_until_ready();
    let told = status(&appliance);
    let engine = told["models"][0]["declared"]["engine"].as_str().unwrap();
    assert!(engine.contains("all layers, embedding and output on the card: "), "{engine}");
}

/// Starts it again; returns how it refused.
fn refusal(appliance: &mut Appliance) -> String {
    let _ = fs::remove_file(appliance.path("told.log"));
    appliance.start_again();
    let mut ended = None;
    eventually("its refusal", || {
        ended = appliance.child.try_wait().unwrap();
        ended.is_some()
    });
    assert!(!ended.unwrap().success(), "{}", appliance.told());
    appliance.told()
}
