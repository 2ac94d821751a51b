//! `cloister bench --gpu-layers` times a model on a card; no test holds a time.

use clap::Parser;
use cloister::cli::{Verdict, bench};

use crate::stand_in::with_card;
use crate::tiny;

/// What `cloister bench` takes.
#[derive(Parser)]
struct Words {
    #[command(flatten)]
    bench: bench::Arguments,
}

fn run(gpu_layers: &str, gpu_device: &str) -> Result<Verdict, String> {
    let file = tiny::path("llama");
    let rows = "--prompt 20 --warm 0 --depth 4 --batch 1,2 --generate 2 --rounds 1 --threads 1";
    let words =
        ["bench", file.to_str().unwrap(), "--gpu-layers", gpu_layers, "--gpu-device", gpu_device];
    let words = Words::parse_from(words.into_iter().chain(rows.split(' ')));
    bench::run(&words.bench).map_err(|error| error.to_string())
}

#[test]
fn a_model_is_timed_on_a_card() {
    let launched = with_card("bench::a_model_is_timed_on_a_card", |_| {
        for (gpu_layers, gpu_device) in [("-1", "0,0"), ("auto", "0")] {
            assert_eq!(run(gpu_layers, gpu_device).unwrap(), Verdict::Holds);
        }
        assert!(run("99", "0").unwrap_err().contains("gpu_layers"));
        assert!(run("1", "0,99").unwrap_err().contains("there is no card 99"));
    });
    assert!(launched.is_none_or(|launched| launched.contains("graph")));
}
