//! `cloister bench`: how fast this machine runs a plain GGUF, beside what the machine can do at all.
//!
//! `cloister bench audit` does so with the log and the disk it is on.
//!
//! The engine alone is timed: no jail, no gateway, no sampling. Weights lie in a sealed memfd, as
//! a worker has them.

mod audit;
mod limits;
mod measure;
mod report;
mod work;

use std::error::Error;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use kernels::Isa;

use self::limits::Probe;
use self::measure::{Prepared, Round, Row, Setting};
use self::report::{Measured, Report};
use self::work::Work;
use super::packed_file::PackedFile;
use super::{Kv, Outcome, Verdict, print};
use crate::engine::Model;
use crate::sys::processors;

/// Most threads that may be asked for.
const THREADS_MAX: i64 = 1024;
/// Longest prompt, depth and answer.
const POSITIONS_MAX: i64 = 1 << 24;
/// Most sequences of a batch.
const BATCH_MAX: i64 = 4096;
/// Most rounds.
const ROUNDS_MAX: i64 = 1000;
/// Most tokens of a pass.
const CHUNK_MAX: i64 = 8192;

/// Half of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Half {
    /// Reading prompts.
    Prefill,
    /// Writing answers.
    Decode,
}

/// What else is timed.
#[derive(Subcommand, Debug)]
enum Other {
    /// Time the audit log: durable records, verification, opening a long log.
    Audit(audit::Arguments),
}

/// Arguments of `cloister bench`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Examples:\n  cloister bench model.gguf\n  \
    cloister bench model.gguf --prompt 512,4096 --depth 128,4096 --batch 1,16 --json\n  \
    cloister bench model.gguf --isa avx2 --only prefill\n  \
    cloister bench model.gguf --kv q8_0 --depth 4096 --only decode\n  \
    cloister bench audit --folder /var/lib/cloister --records 1000000\n  \
    cloister bench model.gguf --threads 8,16 (twice the cores, as a ratio to the first)\n\n\
    Each round is held against what the machine did right before and after it. Prefill against\n\
    the peak of its widest vectors' 8-bit dot product: multiply-adds of the matrices, logits of\n\
    the last token only, attention not counted (a CPU with tiles, as AMX's, can do more, and its\n\
    peak is told beside). Decode against the read bandwidth: the file's weights once for all sequences of a batch, of the embedding\n\
    its rows only unless it is the output matrix too, and the keys and values read.\n\n\
    The limit is what a tenth of many short runs beat. In brackets: the share of what half of\n\
    them beat, which is less where others compute on the same cores.")]
pub struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// The model, plain.
    #[arg(value_name = "FILE.gguf", required = true)]
    file: Option<PathBuf>,
    /// Compute threads; of several numbers, each [default: the machine's].
    #[arg(long, value_delimiter = ',', value_name = "N,…",
        value_parser = clap::value_parser!(u32).range(1..=THREADS_MAX))]
    threads: Vec<u32>,
    /// Instruction set [default: the fastest].
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Isa::NAMES))]
    isa: Option<String>,
    /// How keys and values are kept.
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    kv: Kv,
    /// Tokens of a prompt.
    #[arg(long, value_delimiter = ',', value_name = "N,…", default_value = "512",
        value_parser = clap::value_parser!(u32).range(1..=POSITIONS_MAX))]
    prompt: Vec<u32>,
    /// Tokens that each prompt has in common with an earlier one, in whole pages of 32; 0 leaves
    /// the rows out.
    #[arg(long, value_name = "N", default_value_t = 400,
        value_parser = clap::value_parser!(u32).range(0..=POSITIONS_MAX))]
    warm: u32,
    /// Tokens that stand in the cache before an answer.
    #[arg(long, value_delimiter = ',', value_name = "N,…", default_value = "128",
        value_parser = clap::value_parser!(u32).range(0..=POSITIONS_MAX))]
    depth: Vec<u32>,
    /// Sequences that are answered at once.
    #[arg(long, value_delimiter = ',', value_name = "N,…", default_value = "1,16",
        value_parser = clap::value_parser!(u32).range(1..=BATCH_MAX))]
    batch: Vec<u32>,
    /// Tokens of each answer.
    #[arg(long, value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..=POSITIONS_MAX))]
    generate: u32,
    /// Rounds, whose median is told.
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=ROUNDS_MAX))]
    rounds: u32,
    /// Leave the threads to the system, instead of one on each processor where there are enough.
    #[arg(long)]
    unpinned: bool,
    /// Most tokens of a prompt in one pass over the weights.
    #[arg(long, value_name = "N", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=CHUNK_MAX))]
    chunk: u32,
    /// Measure only one half of the rows.
    #[arg(long, value_enum)]
    only: Option<Half>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[cfg(feature = "cuda")]
    #[command(flatten)]
    card: super::card::CardArguments,
    /// Run a round for each line on standard input and print it as a line of JSON, without the
    /// limits: so that another engine's rounds can stand between.
    #[arg(long, conflicts_with = "json")]
    stepwise: bool,
}

/// Runs `cloister bench`.
///
/// # Errors
///
/// A file that cannot be read or is not a model, or does not fit the asked lengths.
pub fn run(arguments: &Arguments) -> Outcome {
    match (&arguments.other, &arguments.file) {
        (Some(Other::Audit(arguments)), _) => audit::run(arguments),
        (None, Some(file)) => run_model(arguments, file),
        (None, None) => Err("name a model, or something else to time".into()),
    }
}

fn run_model(arguments: &Arguments, file: &Path) -> Outcome {
    let isa = match &arguments.isa {
        Some(name) => Isa::by_name(name).map_err(|error| format!("--isa {name}: {error}"))?,
        None => Isa::detect(),
    };
    let machine = u32::try_from(std::thread::available_parallelism()?.get())?;
    let threads =
        if arguments.threads.is_empty() { vec![machine] } else { arguments.threads.clone() };
    let rows = rows(arguments, &threads);
    let progress = progress(rows.len() as u64 * u64::from(arguments.rounds));
    progress.set_message("loading");
    let packed = PackedFile::read_telling(file, |done, of| {
        progress.set_message(format!("loading {} %", done * 100 / of.max(1)));
    })?;
    let model = Model::from_image(packed.image())?;
    check(arguments, model.config().context_len)?;
    let (generate, chunk) = (arguments.generate as usize, arguments.chunk as usize);
    let processors = if arguments.unpinned { Vec::new() } else { processors::allowed()? };
    let kv = arguments.kv.into();
    let setting = Setting {
        isa,
        processors: &processors,
        kv,
        generate,
        chunk,
        #[cfg(feature = "cuda")]
        cards: None,
    };
    on_card(arguments, setting, |setting| match arguments.stepwise {
        true => step(&model, &rows, setting),
        false => {
            let report = measure(arguments, &model, &rows, setting, &packed, &progress)?;
            progress.finish_and_clear();
            if arguments.json {
                print(&report.json().to_string());
            } else {
                report.lines().iter().for_each(|line| print(line));
            }
            Ok(Verdict::Holds)
        }
    })
}

/// Goes on with the cards that were asked for, if some were.
#[cfg(feature = "cuda")]
fn on_card(
    arguments: &Arguments,
    setting: Setting<'_>,
    then: impl FnOnce(Setting<'_>) -> Outcome,
) -> Outcome {
    arguments.card.open(|cards| then(Setting { cards, ..setting }))
}

/// Goes on: there is no card.
#[cfg(not(feature = "cuda"))]
fn on_card(
    _: &Arguments,
    setting: Setting<'_>,
    then: impl FnOnce(Setting<'_>) -> Outcome,
) -> Outcome {
    then(setting)
}

/// Runs all rounds of all rows.
fn measure(
    arguments: &Arguments,
    model: &Model<'_>,
    rows: &[Row],
    setting: Setting<'_>,
    packed: &PackedFile,
    progress: &ProgressBar,
) -> Result<Report, Box<dyn Error>> {
    let threads = rows.first().map_or(1, |row| row.threads());
    let work = Work::new(model, &setting.options(1, 32))?;
    let huge = || kernel_count("/proc/self/smaps_rollup", "ShmemPmdMapped:");
    let huge_before_bytes = huge()?;
    let loaded_peak_bytes = kernel_count("/proc/self/status", "VmHWM:")?;
    let probe = (!setting.is_on_card()).then(|| Probe::new(setting.pool(threads))).transpose()?;
    let probe_huge_bytes = huge()? - huge_before_bytes;
    let limit = || probe.as_ref().map(Probe::limit);
    let mut measured = Vec::with_capacity(rows.len());
    for &row in rows {
        progress.set_message(row.to_string());
        let mut prepared = Prepared::new(model, row, setting)?;
        let mut rounds = Vec::with_capacity(arguments.rounds as usize);
        let mut limits = Vec::from_iter(limit());
        for _ in 0..arguments.rounds {
            rounds.push(prepared.round()?);
            limits.extend(limit());
            progress.inc(1);
        }
        measured.push(Measured { row, rounds, limits, cache_bytes: prepared.cache_bytes()? });
    }
    let probe_bytes = probe.as_ref().map_or(0, |_| Probe::SIZE);
    let resident_peak_bytes =
        loaded_peak_bytes.max(kernel_count("/proc/self/status", "VmHWM:")? - probe_bytes);
    let huge_bytes = huge()?.saturating_sub(probe_huge_bytes);
    progress.set_message("peaks");
    let seen: Vec<_> = measured.iter().flat_map(|measured| &measured.limits).copied().collect();
    let limits = probe.map(|probe| probe.limits(&seen));
    Ok(Report {
        isa: setting.isa,
        kv: setting.kv,
        times: packed.times(),
        packed_bytes: model.weights_len() as u64,
        resident_peak_bytes,
        huge_bytes,
        generate: arguments.generate,
        work,
        threads,
        limits,
        measured,
    })
}

/// Returns what is measured, in order.
fn rows(arguments: &Arguments, threads: &[u32]) -> Vec<Row> {
    let mut rows = Vec::new();
    for threads in threads.iter().map(|&threads| threads as usize) {
        if arguments.only != Some(Half::Decode) {
            let prompts = arguments.prompt.iter().map(|&prompt| prompt as usize);
            rows.extend(prompts.clone().map(|prompt| Row::Prefill { threads, prompt }));
            // Who steps names each row.
            let common = if arguments.stepwise { 0 } else { arguments.warm as usize };
            let warm = prompts.filter(|prompt| (1..*prompt).contains(&common));
            rows.extend(warm.map(|prompt| Row::Warm { threads, prompt, common }));
        }
        for depth in arguments.depth.iter().map(|&depth| depth as usize) {
            let batches = arguments.batch.iter().filter(|_| arguments.only != Some(Half::Prefill));
            let row = |&batch: &u32| Row::Decode { threads, depth, batch: batch as usize };
            rows.extend(batches.map(row));
        }
    }
    rows
}

/// Refuses lengths that the model has no positions for, by name.
fn check(arguments: &Arguments, context_len: usize) -> Result<(), Box<dyn Error>> {
    let refuse = |what: &str, len: u32| -> Result<(), Box<dyn Error>> {
        Err(format!("{what} {len}: the model has {context_len} positions").into())
    };
    if arguments.only != Some(Half::Decode) {
        for &prompt in arguments.prompt.iter().filter(|&&prompt| prompt as usize > context_len) {
            refuse("--prompt", prompt)?;
        }
    }
    if arguments.only != Some(Half::Prefill) {
        for &depth in &arguments.depth {
            if depth as usize + arguments.generate as usize > context_len {
                refuse(&format!("--generate {} at --depth", arguments.generate), depth)?;
            }
        }
    }
    Ok(())
}

/// Runs a round of each row for each line on standard input; a line that says `next`, or none,
/// ends the row.
fn step(model: &Model<'_>, rows: &[Row], setting: Setting<'_>) -> Outcome {
    let mut lines = std::io::stdin().lock().lines();
    for &row in rows {
        let mut prepared = Prepared::new(model, row, setting)?;
        print(&serde_json::json!({ "ready": row.to_string() }).to_string());
        loop {
            match lines.next().transpose()? {
                None => return Ok(Verdict::Holds),
                Some(line) if line == "next" => break,
                Some(_) => {}
            }
            let Round { seconds, tokens, first_token_s } = prepared.round()?;
            let line = serde_json::json!({
                "seconds": seconds, "tokens": tokens, "first_token_s": first_token_s,
                "tokens_per_s": tokens as f64 / seconds,
            });
            print(&line.to_string());
        }
    }
    Ok(Verdict::Holds)
}

/// Returns a count of bytes that the kernel keeps of this process.
fn kernel_count(file: &str, name: &str) -> Result<u64, Box<dyn Error>> {
    let counts = std::fs::read_to_string(file)?;
    let line = counts.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(number.ok_or_else(|| format!("{file} says no {name}"))? * 1024)
}

/// A bar of rounds on standard error; nothing when that is no terminal.
fn progress(rounds: u64) -> ProgressBar {
    let bar = ProgressBar::new(rounds);
    if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {pos}/{len} rounds, {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
