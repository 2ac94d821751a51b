//! `cloister bench`: how fast this machine reads a prompt and writes an answer, on a plain GGUF.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use kernels::Isa;

use super::{Outcome, Verdict, print};
use crate::cli::golden::PackedFile;
use crate::engine::{BatchToken, Engine, Error, Model, Options};

/// Arguments of `cloister bench`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister bench model.gguf\n  \
    cloister bench model.gguf --threads 8 --prompt 2048 --generate 128 --json")]
pub struct Arguments {
    /// The model, plain.
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// Compute threads [default: the machine's].
    #[arg(long)]
    threads: Option<usize>,
    /// Instruction set (reference, avx2, avx512) [default: the fastest].
    #[arg(long)]
    isa: Option<String>,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    prompt: u32,
    /// Tokens of the answer.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    generate: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister bench`.
///
/// # Errors
///
/// A file that cannot be read or is not a model, or does not fit the asked lengths.
pub fn run(arguments: &Arguments) -> Outcome {
    let packed = PackedFile::read(&arguments.file)?;
    let model = Model::from_image(packed.image())?;
    let isa = match &arguments.isa {
        Some(name) => Isa::by_name(name)?,
        None => Isa::detect(),
    };
    let threads = match arguments.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let context_len = (arguments.prompt + arguments.generate) as usize;
    let options = Options::fast(isa, threads, context_len);
    let (prefill, decode) = measure(&model, options, arguments)?;
    if arguments.json {
        let figures = serde_json::json!({
            "isa": isa.name(), "threads": threads,
            "prompt_tokens": arguments.prompt, "generated_tokens": arguments.generate,
            "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode,
        });
        print(&figures.to_string());
    } else {
        print(&format!("{}, {threads} threads", isa.name()));
        print(&format!("prefill {:>6}  {prefill:>9.1} tokens/s", arguments.prompt));
        print(&format!("decode  {:>6}  {decode:>9.1} tokens/s", arguments.generate));
    }
    Ok(Verdict::Holds)
}

/// Returns prefill and decode speed in tokens a second.
fn measure(
    model: &Model<'_>,
    options: Options,
    arguments: &Arguments,
) -> Result<(f64, f64), Error> {
    let mut engine = Engine::new(model, options)?;
    let vocab_size = u32::try_from(model.config().vocab_size).unwrap_or(u32::MAX);
    let token = |i: u32| (100 + i % 1000) % vocab_size;
    let prompt: Vec<u32> = (0..arguments.prompt).map(token).collect();
    // Touches every page of the weights before the clock runs.
    let warm = engine.sequence_start(options.context_len)?;
    engine.prefill(warm, &prompt[..prompt.len().min(64)])?;
    engine.sequence_end(warm)?;
    let seq = engine.sequence_start(options.context_len)?;
    let start = Instant::now();
    engine.prefill(seq, &prompt)?;
    let prefill = f64::from(arguments.prompt) / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for i in 0..arguments.generate {
        engine.forward(&[BatchToken { seq, token: token(i), logits: true }])?;
    }
    Ok((prefill, f64::from(arguments.generate) / start.elapsed().as_secs_f64()))
}
