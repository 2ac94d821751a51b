//! Memory nodes: weights, keys and values lie where they were asked for, and on no other node.

use cloister::sys::numa::{self, Node};

use super::*;

/// A model that loads at once.
fn tiny() -> PathBuf {
    support::golden().join("tiny/llama.gguf")
}

fn node_line(node: &str) -> String {
    format!("numa_node = {node}\n")
}

/// What `/proc` says of each mapping: its policy, and its pages on each node.
struct Mapping {
    line: String,
    pages: Vec<(u16, u64)>,
}

fn mappings(pid: i32) -> Vec<Mapping> {
    let text = fs::read_to_string(format!("/proc/{pid}/numa_maps")).unwrap();
    let pages = |line: &str| {
        let counts = line.split(' ').filter_map(|word| word.strip_prefix('N')?.split_once('='));
        counts.map(|(node, pages)| (node.parse().unwrap(), pages.parse().unwrap())).collect()
    };
    text.lines().map(|line| Mapping { line: line.to_owned(), pages: pages(line) }).collect()
}

/// Pages on `node`, and all pages, of the mappings whose line holds `what`.
fn count(mappings: &[Mapping], what: &str, node: u16) -> (u64, u64) {
    let of = |wanted: fn(u16, u16) -> bool| -> u64 {
        let meant = mappings.iter().filter(|mapping| mapping.line.contains(what));
        let pages = meant.flat_map(|mapping| &mapping.pages);
        pages.filter(|&&(there, _)| wanted(there, node)).map(|&(_, pages)| pages).sum()
    };
    (of(|there, node| there == node), of(|_, _| true))
}

fn assert_on(appliance: &Appliance, node: &Node) {
    let body = json!({ "model": "smol", "prompt": "abc", "max_tokens": 4, "temperature": 0 });
    let (status, answer) = read_answer(appliance.post("/v1/completions", &body)).unwrap();
    assert_eq!(status, 200, "{answer}");
    let worker = appliance.only_child("cloister-worker");
    let mappings = mappings(worker);
    for what in ["memfd:cloister-model", " anon="] {
        let (there, all) = count(&mappings, what, node.number);
        let lines: Vec<&str> = mappings.iter().map(|mapping| mapping.line.as_str()).collect();
        assert!(all > 100, "{what}: {}", lines.join("\n"));
        assert!(there * 100 >= all * 99, "{what}: {there} of {all}: {}", lines.join("\n"));
    }
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let allowed = cloister::sys::processors::parse(allowed.trim());
    assert!(!allowed.is_empty());
    assert!(allowed.iter().all(|number| node.processors.contains(number)), "{allowed:?}");
    let told = cloister_ok(&["status", "--json", "--socket", &appliance.path("control.sock")]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["models"][0]["numa_node"], node.number, "{told}");
}

#[test]
fn a_model_lies_on_the_node_that_was_asked_for() {
    if !is_root() {
        return support::skip("memory nodes", "a worker's pages show to root alone");
    }
    let nodes = numa::nodes();
    if nodes.is_empty() {
        return support::skip("memory nodes", "this kernel knows of none");
    }
    for node in nodes {
        let line = node_line(&node.number.to_string());
        assert_on(&Appliance::start_with(As::Oneself, &tiny(), &line), &node);
    }
    let appliance = Appliance::start_with(As::Oneself, &tiny(), &node_line("\"auto\""));
    let told = cloister_ok(&["status", "--json", "--socket", &appliance.path("control.sock")]);
    let told: Value = serde_json::from_str(&told).unwrap();
    let node = told["models"][0]["numa_node"].as_u64().unwrap();
    let nodes = numa::nodes();
    assert_on(&appliance, nodes.iter().find(|there| u64::from(there.number) == node).unwrap());
}

/// Starts it again with another line; returns how it refused.
fn refusal(appliance: &mut Appliance) -> String {
    fs::remove_file(appliance.path("told.log")).unwrap();
    appliance.start_again();
    let status = appliance.child.wait().unwrap();
    assert!(!status.success());
    appliance.told()
}

#[test]
fn a_node_that_is_absent_or_too_small_is_refused() {
    let Some(first) = numa::nodes().first().cloned() else {
        return support::skip("memory nodes", "this kernel knows of none");
    };
    for user in users() {
        let mut appliance = Appliance::start_with(user, &tiny(), &node_line("\"any\""));
        appliance.stop();
        appliance.change_config(&node_line("\"any\""), &node_line("1023"));
        let told = refusal(&mut appliance);
        assert!(told.contains("worker.numa_node: 1023 is no memory node of this"), "{told}");
        let line = node_line(&first.number.to_string());
        appliance.change_config(&node_line("1023"), &line);
        // As long as all memory of the machine, and empty.
        let model = fs::OpenOptions::new().write(true).open(appliance.path("m.gguf.age")).unwrap();
        model.set_len(first.total_bytes).unwrap();
        let told = refusal(&mut appliance);
        let what = format!("worker.numa_node: memory node {} has ", first.number);
        assert!(told.contains(&what) && told.contains("model smol needs about"), "{told}");
    }
}
