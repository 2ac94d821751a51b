//! The tiny models answer as the reference does, with all their layers on a card and with some.

use cloister::cli::golden::{Mode, PackedFile, RuleSet, Rules, check_on, options, read_lines};
use cloister::engine::{Model, Options};
use kernels::Isa;
use kernels::cuda::Card;

use crate::stand_in::with_card;
use crate::tiny;

/// Holds a tiny model with the last `gpu_layers` layers on a card, all if that is more than there are, its
/// steps repeated as graphs or launch by launch.
fn hold(card: &Card<'_>, name: &str, gpu_layers: usize, gpu_graphs: bool) {
    let file = PackedFile::read(&tiny::path(name)).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let lines = read_lines(&tiny::folder().join(format!("{name}.jsonl")), None).unwrap();
    let rules = Rules::new(RuleSet::Tiny, model.config().architecture);
    let options = options(&model, &lines, Mode::F32, Isa::detect(), 1);
    let gpu_layers = gpu_layers.min(model.config().n_layers);
    let options = Options { gpu_layers, gpu_graphs, ..options };
    let engine = tiny::engine(&model, options, card);
    let report = check_on(Some(engine), &model, &lines, &rules).unwrap();
    assert!(report.holds, "{name} with {gpu_layers} layers on the card: {report:#?}");
}

/// Every line, with all layers on the card and with the last one.
fn hold_model(test: &str, name: &str) {
    let launched = with_card(test, |card| {
        for gpu_layers in [usize::MAX, 1] {
            hold(card, name, gpu_layers, true);
        }
    });
    // Whatever is computed elsewhere is not launched.
    for kernel in
        ["embed_scan", "float_product_1", "float_product_8", "attention_combine", "gate", "graph"]
    {
        assert!(launched.as_ref().is_none_or(|launched| launched.contains(kernel)), "{kernel}");
    }
}

#[test]
fn tiny_llama_answers_as_the_reference() {
    hold_model("golden::tiny_llama_answers_as_the_reference", "llama");
}

#[test]
fn tiny_llama_with_rope_factors_answers_as_the_reference() {
    let test = "golden::tiny_llama_with_rope_factors_answers_as_the_reference";
    hold_model(test, "llama3_ropefreqs");
}

#[test]
fn tiny_llama_without_groups_and_with_a_tied_output_answers_as_the_reference() {
    let test = "golden::tiny_llama_without_groups_and_with_a_tied_output_answers_as_the_reference";
    hold_model(test, "llama_tied_mha");
}

#[test]
fn tiny_qwen2_answers_as_the_reference() {
    hold_model("golden::tiny_qwen2_answers_as_the_reference", "qwen2");
}

#[test]
fn tiny_gemma3_answers_as_the_reference() {
    hold_model("golden::tiny_gemma3_answers_as_the_reference", "gemma3");
}

#[test]
fn tiny_llama_answers_as_the_reference_launch_by_launch() {
    let test = "golden::tiny_llama_answers_as_the_reference_launch_by_launch";
    let launched = with_card(test, |card| hold(card, "llama", usize::MAX, false));
    let Some(launched) = launched else { return };
    assert!(launched.contains("add_norm") && !launched.contains("graph"), "{launched:?}");
}
