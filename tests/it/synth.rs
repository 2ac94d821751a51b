//! `cloister model synth` writes models that load and run, the same bytes each time.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cloister::cli::packed_file::PackedFile;
use cloister::engine::{Engine, Model, Options};
use cloister::gguf;
use cloister::template::{ChatTemplate, Conversation};
use cloister::tokenizer::{Markup, Tokenizer};
use kernels::Isa;

fn synth(name: &str, words: &[&str]) -> (PathBuf, Output) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("synth");
    std::fs::create_dir_all(&folder).unwrap();
    let out = folder.join(name);
    let output = Command::new(env!("CARGO_BIN_EXE_cloister"))
        .args(["model", "synth", "--shape", "tiny", "--out", out.to_str().unwrap()])
        .args(words)
        .output()
        .unwrap();
    (out, output)
}

fn written(name: &str, words: &[&str]) -> PathBuf {
    let (out, output) = synth(name, &[words, &["--force"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

#[test]
fn a_seed_gives_the_same_file_and_another_seed_another() {
    let read = |name, seed| std::fs::read(written(name, &["--seed", seed])).unwrap();
    let first = read("first.gguf", "7");
    assert!(first == read("again.gguf", "7"));
    assert!(first != read("other.gguf", "8"));
}

#[test]
fn every_mix_loads_and_its_logits_are_of_sensible_size() {
    for quant in ["q4_k_m", "q8_0", "f16"] {
        let path = written(&format!("{quant}.gguf"), &["--quant", quant]);
        let packed = PackedFile::read(&path).unwrap();
        let model = Model::from_image(packed.image()).unwrap();
        let tokenizer = Tokenizer::from_metadata(&model.header().metadata).unwrap();
        let text = "a small prompt, 12 ways to say it";
        let tokens = tokenizer.encode(text, Markup::Plain);
        assert_eq!(tokens.first().copied(), tokenizer.bos());
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
        assert_eq!(bytes, text.as_bytes(), "tokens are the text again");
        assert!(tokens.len() < text.len(), "pairs of letters are merged");
        let mut engine = Engine::new(&model, Options::fast(Isa::detect(), 1, 64)).unwrap();
        let seq = engine.sequence_start(64).unwrap();
        engine.prefill(seq, &tokens).unwrap();
        let logits = engine.logits(0);
        let square = logits.iter().map(|logit| logit * logit).sum::<f32>() / logits.len() as f32;
        assert!((0.3..3.0).contains(&square.sqrt()), "{quant}: logits of size {}", square.sqrt());
    }
}

#[test]
fn the_mix_has_the_formats_of_the_real_one_and_a_template() {
    let bytes = std::fs::read(written("formats.gguf", &[])).unwrap();
    let header = gguf::parse(&bytes, bytes.len() as u64).unwrap();
    let formats = |name: &str| header.tensor(name).map(|tensor| tensor.ty.name());
    assert_eq!(formats("token_embd.weight"), Some("Q4_K"));
    assert_eq!(formats("output.weight"), Some("Q6_K"));
    assert_eq!(formats("blk.1.attn_v.weight"), Some("Q6_K"));
    assert_eq!(formats("blk.0.ffn_up.weight"), Some("Q4_K"));
    assert_eq!(formats("blk.0.ffn_norm.weight"), Some("F32"));
    let tokenizer = Tokenizer::from_metadata(&header.metadata).unwrap();
    let template = ChatTemplate::from_metadata(&header.metadata, &tokenizer).unwrap();
    let messages = serde_json::json!([{"role": "user", "content": "hi"}]);
    let conversation = Conversation {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        now_unix_s: 0,
    };
    let prompt: String =
        template.render(&conversation).unwrap().into_iter().map(|part| part.text).collect();
    assert!(prompt.starts_with("<|begin_of_text|><|start_header_id|>user<|end_header_id|>"));
    assert!(prompt.ends_with("hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"));
}

#[test]
fn what_cannot_be_written_is_said() {
    let layers = |layers| synth("layers.gguf", &["--layers", layers, "--force", "--json"]).1;
    let told: serde_json::Value = serde_json::from_slice(&layers("1").stdout).unwrap();
    assert_eq!(told["layers"], 1);
    let output = layers("3");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "cloister: --layers 3: the shape has 2\n");
    let taken = written("taken.gguf", &[]);
    let (_, output) = synth("taken.gguf", &[]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains(taken.to_str().unwrap()) && told.contains("--force"), "{told}");
}
