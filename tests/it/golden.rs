//! The engine answers as the reference does: golden lines on every instruction set.

use cloister::cli::fetch::{GEMMA3, KnownModel, QWEN25_CODER, SMOLLM2};
use cloister::cli::golden::{
    Line, Mode, PackedFile, Report, RuleSet, Rules, check, options, read_lines,
};
use cloister::engine::Model;
use kernels::Isa;

use crate::support;

/// Checks lines with one mode, instruction set and number of threads; panics with the report.
fn hold(
    model: &Model<'_>,
    lines: &[Line],
    mode: Mode,
    set: RuleSet,
    isa: Isa,
    threads: usize,
) -> Report {
    let rules = Rules::new(set, model.config().architecture);
    let options = options(model, lines, mode, isa, threads);
    let report = check(model, options, lines, &rules).unwrap();
    assert!(report.holds, "{} with {threads} threads: {report:#?}", isa.name());
    report
}

fn hold_tiny(name: &str) {
    let folder = support::golden().join("tiny");
    let file = PackedFile::read(&folder.join(format!("{name}.gguf"))).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let lines = read_lines(&folder.join(format!("{name}.jsonl")), None).unwrap();
    for isa in Isa::available() {
        for threads in [1, 2] {
            hold(&model, &lines, Mode::F32, RuleSet::Tiny, isa, threads);
        }
    }
}

#[test]
fn tiny_llama_answers_as_the_reference() {
    hold_tiny("llama");
}

#[test]
fn tiny_llama_with_rope_factors_answers_as_the_reference() {
    hold_tiny("llama3_ropefreqs");
}

#[test]
fn tiny_llama_without_groups_and_with_a_tied_output_answers_as_the_reference() {
    hold_tiny("llama_tied_mha");
}

#[test]
fn tiny_qwen2_answers_as_the_reference() {
    hold_tiny("qwen2");
}

#[test]
fn tiny_gemma3_answers_as_the_reference() {
    hold_tiny("gemma3");
}

/// Says which instruction sets were not tested.
#[test]
fn missing_instruction_sets_are_said() {
    for name in Isa::NAMES {
        if let Err(error) = Isa::by_name(name) {
            support::skip(&format!("instruction set {name}"), &error.to_string());
        }
    }
}

fn lines_of(name: &str, suffix: &str) -> Vec<Line> {
    let folder = support::golden().join("models");
    read_lines(&folder.join(format!("{name}{suffix}.jsonl")), None).unwrap()
}

/// The short lines in both modes, the long one in the fast mode: on the fastest set with both
/// numbers of threads, on the others with two; on the reference a few lines.
fn hold_real(model: &KnownModel) {
    let name = model.name;
    let file = PackedFile::read(&support::model(model)).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let (short, long) = (lines_of(name, ""), lines_of(name, ".long"));
    let fastest = Isa::detect();
    hold(&model, &lines_of(name, ".tokens"), Mode::F32, RuleSet::Exact, fastest, 1);
    for isa in Isa::available() {
        if isa == Isa::Reference {
            hold(&model, &short[..1], Mode::F32, RuleSet::Exact, isa, 2);
            continue;
        }
        hold(&model, &short, Mode::F32, RuleSet::Exact, isa, 2);
        hold(&model, &short, Mode::Int8, RuleSet::Int8, isa, 2);
    }
    hold(&model, &long, Mode::F32, RuleSet::Exact, fastest, 2);
    hold(&model, &long, Mode::Int8, RuleSet::Int8, fastest, 2);
    hold(&model, &short, Mode::Int8, RuleSet::Int8, fastest, 1);
}

#[test]
fn smollm2_answers_as_the_reference() {
    hold_real(&SMOLLM2);
}

#[test]
fn gemma3_answers_as_the_reference() {
    hold_real(&GEMMA3);
}

/// Every line of a model, on every instruction set, in both modes, with one thread and two.
fn hold_every_line(known: &KnownModel) {
    let file = PackedFile::read(&support::model(known)).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let (short, long) = (lines_of(known.name, ""), lines_of(known.name, ".long"));
    let tokens = lines_of(known.name, ".tokens");
    hold(&model, &tokens, Mode::F32, RuleSet::Exact, Isa::Reference, 1);
    for isa in Isa::available().into_iter().rev() {
        for threads in [2, 1] {
            for (mode, set) in [(Mode::Int8, RuleSet::Int8), (Mode::F32, RuleSet::Exact)] {
                for (what, lines) in [("short", &short), ("long", &long)] {
                    let report = hold(&model, lines, mode, set, isa, threads);
                    support::tell(&format!(
                        "{} {} {threads} threads {mode:?} {what}: distance mean {:.5} max {:.5}, \
                         mean_nll {:.4} %",
                        known.name,
                        isa.name(),
                        report.distance_mean,
                        report.distance_max,
                        report.nll_error_max * 100.0
                    ));
                }
            }
        }
    }
}

#[test]
#[ignore = "takes minutes: cargo test --release --test it every_line -- --ignored --nocapture"]
fn every_line_of_smollm2_on_every_instruction_set() {
    hold_every_line(&SMOLLM2);
}

#[test]
#[ignore = "takes minutes: cargo test --release --test it every_line -- --ignored --nocapture"]
fn every_line_of_gemma3_on_every_instruction_set() {
    hold_every_line(&GEMMA3);
}

#[test]
#[ignore = "takes an hour: cargo test --release --test it every_line -- --ignored --nocapture"]
fn every_line_of_qwen25_coder_on_every_instruction_set() {
    hold_every_line(&QWEN25_CODER);
}
