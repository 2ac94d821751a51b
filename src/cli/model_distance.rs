//! `cloister model distance`: how far the fast mode is from the exact mode on a text.
//!
//! Both modes compute the same windows of the text side by side; at each position the distribution
//! of the next token in the fast mode is held against that of the exact mode. No reference of
//! another engine takes part, and no more than one chunk's logits are kept.

use std::error::Error;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use indicatif::{ProgressBar, ProgressStyle};
use kernels::Isa;
use serde::Serialize;

use super::golden::log_sum;
use super::packed_file::PackedFile;
use super::{Kv, Outcome, Verdict, print};
use crate::engine::{BatchToken, Engine, Model, Options, SeqId, argmax};
use crate::tokenizer::{Markup, Tokenizer};

/// Tokens of a batch, each with its logits: bounds the memory.
const CHUNK: usize = 64;
/// Tokens of a window if none are asked for.
const CONTEXT_DEFAULT: usize = 512;
/// Bytes of the text that are read for each position; tokens of text take about four.
const BYTES_A_POSITION: u64 = 64;

/// Measures the fast mode against the exact mode.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister model distance model.gguf book.txt\n  \
    cloister model distance model.gguf book.txt --positions 8192 --context 2048 --json\n  \
    cloister model distance model.gguf book.txt --kv q8_0\n\n\
    Kullback-Leibler divergences are of the fast mode from the exact mode, in nats.")]
pub struct Arguments {
    /// The model, a plain GGUF file.
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// The text, in UTF-8.
    #[arg(value_name = "TEXT.txt")]
    text: PathBuf,
    /// Positions that are compared.
    #[arg(long, value_name = "N", default_value_t = 2048,
        value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    positions: u32,
    /// Tokens of a window of the text, each computed on its own [default: 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    context: Option<u32>,
    /// How the fast mode keeps keys and values; the exact mode keeps 32-bit floats.
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    kv: Kv,
    /// Instruction set [default: the fastest].
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Isa::NAMES))]
    isa: Option<String>,
    /// Compute threads [default: the machine's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How far one mode is from the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distance {
    /// Positions compared.
    pub positions: usize,
    /// Tokens of a window.
    pub context: usize,
    /// Mean divergence, in nats.
    pub kl_mean: f64,
    /// Its median.
    pub kl_median: f64,
    /// What only one position in a hundred passes.
    pub kl_p99: f64,
    /// The largest.
    pub kl_max: f64,
    /// The share of positions at which both modes have the same best token.
    pub top1_agreement: f64,
    /// Perplexity of the text in the exact mode.
    pub perplexity_exact: f64,
    /// Perplexity of the text in the fast mode.
    pub perplexity_fast: f64,
}

/// Runs the subcommand.
///
/// # Errors
///
/// Fails if a file cannot be read, the text is too short, or the engine refuses model or options.
pub fn run(arguments: &Arguments) -> Outcome {
    let isa = match &arguments.isa {
        Some(name) => Isa::by_name(name).map_err(|error| format!("--isa {name}: {error}"))?,
        None => Isa::detect(),
    };
    let threads = match arguments.threads {
        Some(threads) => threads as usize,
        None => std::thread::available_parallelism()?.get(),
    };
    let positions = arguments.positions as usize;
    let text = read_text(&arguments.text, u64::from(arguments.positions) * BYTES_A_POSITION)?;
    let file = PackedFile::read(&arguments.file)?;
    let model = Model::from_image(file.image())?;
    let context_max = model.config().context_len;
    let context = match arguments.context {
        Some(asked) if asked as usize > context_max => {
            return Err(format!("--context {asked}: the model has {context_max} positions").into());
        }
        Some(asked) => asked as usize,
        None => CONTEXT_DEFAULT.min(context_max),
    };
    let progress = progress(u64::from(arguments.positions));
    let fast = Options { kv: arguments.kv.into(), ..Options::fast(isa, threads, context) };
    let modes = [Options::exact(isa, threads, context), fast];
    let found = measure(&model, modes, &text, positions, |done| {
        progress.set_position(done as u64);
    })?;
    progress.finish_and_clear();
    if arguments.json {
        print(&serde_json::to_string(&found)?);
        return Ok(Verdict::Holds);
    }
    let Distance { kl_mean, kl_median, kl_p99, kl_max, .. } = found;
    print(&format!("positions   {} in windows of {}", found.positions, found.context));
    print(&format!(
        "divergence  mean {kl_mean:.6}, median {kl_median:.6}, p99 {kl_p99:.6}, max {kl_max:.6}"
    ));
    print(&format!("best token  equal at {:.2} % of positions", found.top1_agreement * 100.0));
    print(&format!(
        "perplexity  exact {:.4}, fast {:.4}",
        found.perplexity_exact, found.perplexity_fast
    ));
    Ok(Verdict::Holds)
}

/// Reads the start of a text, whole characters.
fn read_text(path: &Path, len_max: u64) -> Result<String, Box<dyn Error>> {
    let named = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    File::open(path).map_err(named)?.take(len_max).read_to_end(&mut bytes).map_err(named)?;
    let is_cut = bytes.len() as u64 == len_max;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        // The limit may fall inside a character.
        Err(error) if is_cut && error.utf8_error().error_len().is_none() => {
            let whole = error.utf8_error().valid_up_to();
            let mut bytes = error.into_bytes();
            bytes.truncate(whole);
            Ok(String::from_utf8(bytes)?)
        }
        Err(_) => Err(format!("{}: the text is not UTF-8", path.display()).into()),
    }
}

/// Computes a text in both modes, by windows of the first one's context, and compares the second
/// with the first at every position.
///
/// # Errors
///
/// Fails if the text is too short, or the engine or the tokenizer refuses the model.
pub fn measure(
    model: &Model<'_>,
    modes: [Options; 2],
    text: &str,
    positions: usize,
    tell: impl Fn(usize),
) -> Result<Distance, Box<dyn Error>> {
    let tokenizer = Tokenizer::from_metadata(&model.header().metadata)?;
    let mut tokens = tokenizer.encode(text, Markup::Plain);
    let start = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    if start.is_some() {
        tokens.remove(0);
    }
    if tokens.len() <= positions {
        let found = tokens.len().saturating_sub(1);
        return Err(format!("--positions {positions}: the text has {found}").into());
    }
    let context = modes[0].context_len;
    let options = |one: Options| Options { tokens_max: CHUNK, logits_max: CHUNK, ..one };
    let mut exact = Engine::new(model, options(modes[0]))?;
    let mut fast = Engine::new(model, options(modes[1]))?;
    let mut found = Found::default();
    // A window that starts with BOS holds one token of the text less.
    let step = context - usize::from(start.is_some());
    for first in (0..positions).step_by(step) {
        let window = &tokens[first..(first + step).min(positions)];
        let seqs = [exact.sequence_start(context)?, fast.sequence_start(context)?];
        let mut engines = [&mut exact, &mut fast];
        if let Some(bos) = start {
            forward(&mut engines, seqs, &[bos])?;
        }
        for (index, chunk) in window.chunks(CHUNK).enumerate() {
            forward(&mut engines, seqs, chunk)?;
            for i in 0..chunk.len() {
                let next = tokens[first + index * CHUNK + i + 1];
                found.add(engines[0].logits(i), engines[1].logits(i), next);
            }
            tell(found.divergences.len());
        }
        exact.sequence_end(seqs[0])?;
        fast.sequence_end(seqs[1])?;
    }
    Ok(found.sum_up(context))
}

/// Computes some tokens in both modes.
fn forward(
    engines: &mut [&mut Engine<'_>; 2],
    seqs: [SeqId; 2],
    tokens: &[u32],
) -> Result<(), crate::engine::Error> {
    for (engine, seq) in engines.iter_mut().zip(seqs) {
        let batch = tokens.iter().map(|&token| BatchToken { seq, token, logits: true });
        engine.forward(&batch.collect::<Vec<_>>())?;
    }
    Ok(())
}

/// What was found so far.
#[derive(Default)]
struct Found {
    divergences: Vec<f64>,
    equal: usize,
    nll_exact: f64,
    nll_fast: f64,
}

impl Found {
    /// Adds a position at which `next` follows.
    fn add(&mut self, exact: &[f32], fast: &[f32], next: u32) {
        let (norm_exact, norm_fast) = (log_sum(exact), log_sum(fast));
        let terms = exact.iter().zip(fast).map(|(&exact, &fast)| {
            let exact = f64::from(exact) - norm_exact;
            exact.exp() * (exact - (f64::from(fast) - norm_fast))
        });
        self.divergences.push(terms.sum());
        self.equal += usize::from(argmax(exact) == argmax(fast));
        self.nll_exact += norm_exact - f64::from(exact[next as usize]);
        self.nll_fast += norm_fast - f64::from(fast[next as usize]);
    }

    fn sum_up(mut self, context: usize) -> Distance {
        let positions = self.divergences.len();
        let n = positions as f64;
        let kl_mean = self.divergences.iter().sum::<f64>() / n;
        self.divergences.sort_by(f64::total_cmp);
        let at = |share: usize| self.divergences[(positions - 1) * share / 100];
        Distance {
            positions,
            context,
            kl_mean,
            kl_median: at(50),
            kl_p99: at(99),
            kl_max: at(100),
            top1_agreement: self.equal as f64 / n,
            perplexity_exact: (self.nll_exact / n).exp(),
            perplexity_fast: (self.nll_fast / n).exp(),
        }
    }
}

/// A bar of positions on standard error; nothing when that is no terminal.
fn progress(positions: u64) -> ProgressBar {
    let bar = ProgressBar::new(positions);
    if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {pos}/{len} positions, {eta}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_distributions_have_no_distance_and_shifted_logits_are_equal() {
        let mut found = Found::default();
        found.add(&[1.0, 2.0, 3.0], &[2.0, 3.0, 4.0], 2);
        let distance = found.sum_up(8);
        assert!(distance.kl_max.abs() < 1e-12);
        assert!((distance.perplexity_exact - distance.perplexity_fast).abs() < 1e-12);
        assert!((distance.top1_agreement - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_divergence_is_that_of_the_fast_mode_from_the_exact_one() {
        let mut found = Found::default();
        let log = |p: f32| p.ln();
        found.add(&[log(0.5), log(0.5)], &[log(0.25), log(0.75)], 0);
        found.add(&[log(0.9), log(0.1)], &[log(0.9), log(0.1)], 0);
        let distance = found.sum_up(8);
        let want = 0.5 * (2.0_f64.ln() + (0.5_f64 / 0.75).ln());
        assert!((distance.kl_max - want).abs() < 1e-6);
        assert!((distance.kl_mean - want / 2.0).abs() < 1e-6);
        assert!((distance.perplexity_exact - (1.0 / (0.5 * 0.9_f64)).sqrt()).abs() < 1e-5);
        assert!((distance.perplexity_fast - (1.0 / (0.25 * 0.9_f64)).sqrt()).abs() < 1e-5);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let path = std::env::temp_dir().join(format!("cloister-text-{}", std::process::id()));
        std::fs::write(&path, "aé").unwrap();
        assert_eq!(read_text(&path, 2).unwrap(), "a");
        assert_eq!(read_text(&path, 9).unwrap(), "aé");
        std::fs::write(&path, b"a\xFFb").unwrap();
        assert!(read_text(&path, 9).unwrap_err().to_string().contains("UTF-8"));
        std::fs::remove_file(&path).unwrap();
    }
}
