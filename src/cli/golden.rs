//! `cloister model golden`: holds the engine against lines that a reference engine answered.
//!
//! The model is a plain GGUF file, packed in memory; no jail, no key, no log. What must hold is
//! stated by [`Rules`].

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use kernels::{Isa, Precision};
use serde::{Deserialize, Serialize};

pub use super::packed_file::PackedFile;
use super::{Outcome, Verdict, print};
use crate::engine::{Architecture, BatchToken, Engine, Model, Options, SeqId, argmax};
use crate::tokenizer::{Markup, Tokenizer};

/// Log-probabilities that are compared.
const TOP: usize = 8;
/// Tokens of a batch while every token's logits are wanted.
const CHUNK: usize = 64;
/// A prompt of so many tokens is a long line, of which `mean_nll` is held in bytes too.
const LONG_LINE: usize = 512;

/// How activations take part in products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// 32-bit floats, and a cache of 32-bit floats: the exact mode.
    F32,
    /// Bytes, and a cache of 16-bit floats: the fast mode.
    Int8,
}

/// Which rules must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RuleSet {
    /// Those of the exact mode.
    Exact,
    /// Those of the fast mode.
    Int8,
    /// Those of tiny models of random 32-bit weights.
    Tiny,
}

/// Holds the engine against golden lines.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    cloister model golden qwen.gguf tests/golden/models/qwen2.5-coder-1.5b.jsonl\n  \
    cloister model golden qwen.gguf qwen.long.jsonl --activations f32 --isa avx2 --threads 2")]
pub struct Arguments {
    /// The model, a plain GGUF file.
    file: PathBuf,
    /// The lines: a JSON object each with `text`, `tokens`, and what the reference answered.
    lines: PathBuf,
    /// Instruction set; the fastest if absent.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Isa::NAMES))]
    isa: Option<String>,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How activations take part in products.
    #[arg(long, value_enum, default_value = "int8")]
    activations: Mode,
    /// Which rules must hold; those of the activations if absent.
    #[arg(long, value_enum)]
    rules: Option<RuleSet>,
    #[cfg(feature = "cuda")]
    #[command(flatten)]
    card: super::card::CardArguments,
    /// Only so many lines of the file.
    #[arg(long = "lines", value_name = "N", id = "lines_max")]
    lines_max: Option<usize>,
    /// Print JSON, a line for each line and one for the totals.
    #[arg(long)]
    json: bool,
}

/// One golden line.
#[derive(Clone, Debug, Deserialize)]
pub struct Line {
    /// The prompt.
    text: String,
    /// Its tokens, special ones parsed.
    tokens: Vec<u32>,
    /// What the reference computed, if it did.
    #[serde(flatten)]
    answer: Option<Answer>,
}

/// What a reference engine answered.
#[derive(Clone, Debug, Deserialize)]
struct Answer {
    /// Mean negative log-probability of the prompt's tokens but the first.
    mean_nll: f64,
    /// The best next tokens with their log-probabilities.
    top: Vec<(u32, f64)>,
    /// The tokens that follow, each the best.
    greedy: Vec<u32>,
    /// By how much each was the best.
    margins: Vec<f64>,
}

/// How near an engine must come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// The best token must be equal where its margin is over this.
    best_margin: f64,
    /// The largest distance of a log-probability.
    distance_max: f64,
    /// The largest mean distance over all lines.
    distance_mean: f64,
    /// Greedy tokens must be equal up to the first step whose margin is under this.
    greedy_margin: f64,
    /// Whether a step under the margin ends the comparison only if the tokens split there.
    is_step_by_step: bool,
    /// The largest relative error of `mean_nll`.
    nll: f64,
    /// Whether `mean_nll` of long lines only is held.
    is_nll_of_long_lines: bool,
}

impl Rules {
    /// Returns the rules of `tests/golden/README.md`.
    pub fn new(set: RuleSet, architecture: Architecture) -> Self {
        let exact = Self {
            best_margin: 0.02,
            distance_max: 0.01,
            distance_mean: 0.01,
            greedy_margin: 0.02,
            is_step_by_step: false,
            nll: 0.001,
            is_nll_of_long_lines: false,
        };
        let is_qwen = architecture == Architecture::Qwen2;
        match set {
            RuleSet::Exact => exact,
            RuleSet::Tiny => Self {
                best_margin: 0.01,
                distance_max: 2e-3,
                greedy_margin: 0.01,
                is_step_by_step: true,
                ..exact
            },
            RuleSet::Int8 => Self {
                best_margin: 0.5,
                distance_max: 0.9,
                distance_mean: if is_qwen { 0.09 } else { 0.14 },
                greedy_margin: 0.6,
                is_step_by_step: false,
                nll: if is_qwen { 0.015 } else { 0.005 },
                is_nll_of_long_lines: true,
            },
        }
    }
}

/// What was found for one line.
#[derive(Clone, Debug, Serialize)]
pub struct LineReport {
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Mean and largest distance of the first log-probabilities.
    pub distance: Option<(f64, f64)>,
    /// Relative error of `mean_nll`.
    pub nll_error: Option<f64>,
    /// The first step at which greedy tokens differ, and the reference's margin there.
    pub split: Option<(usize, f64)>,
    /// The rules that do not hold.
    pub broken: Vec<&'static str>,
}

/// What was found for all lines.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Each line.
    pub lines: Vec<LineReport>,
    /// Mean distance of all lines.
    pub distance_mean: f64,
    /// Largest distance of any line.
    pub distance_max: f64,
    /// Largest relative error of any line's `mean_nll`.
    pub nll_error_max: f64,
    /// The largest margin at which greedy tokens split.
    pub split_margin_max: Option<f64>,
    /// Whether every rule holds.
    pub holds: bool,
}

/// Reads golden lines.
///
/// # Errors
///
/// Fails if the file cannot be read or a line is no golden line.
pub fn read_lines(path: &Path, lines_max: Option<usize>) -> Result<Vec<Line>, Box<dyn Error>> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = text.lines().take(lines_max.unwrap_or(usize::MAX));
    let parsed: Result<Vec<Line>, _> = lines.map(serde_json::from_str).collect();
    Ok(parsed?)
}

/// Returns the options of a mode, for lines like these.
pub fn options(model: &Model<'_>, lines: &[Line], mode: Mode, isa: Isa, threads: usize) -> Options {
    let longest = lines.iter().map(|line| line.tokens.len() + answer_len(lines)).max();
    let context_len = longest.unwrap_or(1).clamp(1, model.config().context_len);
    let options = match mode {
        Mode::F32 => Options::exact(isa, threads, context_len),
        Mode::Int8 => Options::fast(isa, threads, context_len),
    };
    Options { tokens_max: CHUNK, logits_max: CHUNK, ..options }
}

/// Returns the most greedy tokens of any line: how many the reference computed.
fn answer_len(lines: &[Line]) -> usize {
    let answers = lines.iter().filter_map(|line| line.answer.as_ref());
    answers.map(|answer| answer.greedy.len()).max().unwrap_or(0)
}

/// Holds the engine against lines.
///
/// # Errors
///
/// Fails if the engine refuses the options or a line, or the tokenizer the file.
pub fn check(
    model: &Model<'_>,
    options: Options,
    lines: &[Line],
    rules: &Rules,
) -> Result<Report, Box<dyn Error>> {
    let needs_engine = lines.iter().any(|line| line.answer.is_some());
    let engine = if needs_engine { Some(Engine::new(model, options)?) } else { None };
    check_on(engine, model, lines, rules)
}

/// Holds an engine that is there against lines, of the options that [`options`] gives for them; only
/// the tokens if there is none.
///
/// # Errors
///
/// Fails if the engine refuses a line, or the tokenizer the file.
pub fn check_on(
    mut engine: Option<Engine<'_>>,
    model: &Model<'_>,
    lines: &[Line],
    rules: &Rules,
) -> Result<Report, Box<dyn Error>> {
    let tokenizer = Tokenizer::from_metadata(&model.header().metadata)?;
    let mut reports = Vec::with_capacity(lines.len());
    for line in lines {
        let mut report = LineReport {
            prompt_len: line.tokens.len(),
            distance: None,
            nll_error: None,
            split: None,
            broken: Vec::new(),
        };
        // The reference parsed special tokens too.
        if tokenizer.encode(&line.text, Markup::Special) != line.tokens {
            report.broken.push("tokens");
        }
        if let (Some(engine), Some(answer)) = (&mut engine, &line.answer) {
            let limit = answer_len(lines);
            let found = compute(engine, &line.tokens, &answer.top, limit, &tokenizer)?;
            compare(&found, line.tokens.len(), answer, rules, &mut report);
        }
        reports.push(report);
    }
    Ok(sum_up(reports, rules))
}

/// What the engine computed for a line.
struct Found {
    /// Log-probabilities of the reference's best tokens.
    top: Vec<f64>,
    mean_nll: f64,
    greedy: Vec<u32>,
}

fn compute(
    engine: &mut Engine<'_>,
    prompt: &[u32],
    top: &[(u32, f64)],
    answer_len: usize,
    tokenizer: &Tokenizer,
) -> Result<Found, Box<dyn Error>> {
    let seq = engine.sequence_start(prompt.len() + answer_len)?;
    let nll = prompt_nll(engine, seq, prompt)?;
    let last = prompt.len().saturating_sub(1) % CHUNK;
    let norm = log_sum(engine.logits(last));
    let of = |&(token, _): &(u32, f64)| f64::from(engine.logits(last)[token as usize]) - norm;
    let top = top.iter().take(TOP).map(of).collect();
    let mut token = argmax(engine.logits(last));
    let mut greedy = vec![token];
    while greedy.len() < answer_len && !tokenizer.is_end_of_generation(token) {
        engine.forward(&[BatchToken { seq, token, logits: true }])?;
        token = argmax(engine.logits(0));
        greedy.push(token);
    }
    engine.sequence_end(seq)?;
    let mean_nll = nll / prompt.len().saturating_sub(1).max(1) as f64;
    Ok(Found { top, mean_nll, greedy })
}

/// Computes a prompt and the sum of the negative log-probabilities of its tokens but the first.
fn prompt_nll(engine: &mut Engine<'_>, seq: SeqId, prompt: &[u32]) -> Result<f64, Box<dyn Error>> {
    let mut nll = 0.0;
    for (index, tokens) in prompt.chunks(CHUNK).enumerate() {
        let batch = tokens.iter().map(|&token| BatchToken { seq, token, logits: true });
        engine.forward(&batch.collect::<Vec<_>>())?;
        for i in 0..tokens.len() {
            if let Some(&next) = prompt.get(index * CHUNK + i + 1) {
                let logits = engine.logits(i);
                nll += log_sum(logits) - f64::from(logits[next as usize]);
            }
        }
    }
    Ok(nll)
}

/// Returns the logarithm of the sum of exponentials.
pub(super) fn log_sum(logits: &[f32]) -> f64 {
    let largest = f64::from(logits[argmax(logits) as usize]);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    largest + sum.ln()
}

fn compare(
    found: &Found,
    prompt_len: usize,
    answer: &Answer,
    rules: &Rules,
    report: &mut LineReport,
) {
    let distances =
        found.top.iter().zip(&answer.top).map(|(found, (_, want))| (found - want).abs());
    let (mut sum, mut max, mut n) = (0.0, 0.0_f64, 0.0_f64);
    for distance in distances {
        // A NaN must not pass for a small distance.
        let distance = if distance.is_nan() { f64::INFINITY } else { distance };
        (sum, max, n) = (sum + distance, max.max(distance), n + 1.0);
    }
    report.distance = Some((sum / n.max(1.0), max));
    if max > rules.distance_max {
        report.broken.push("distance");
    }
    let nll_error = ((found.mean_nll - answer.mean_nll) / answer.mean_nll).abs();
    report.nll_error = Some(nll_error);
    let is_held = prompt_len >= LONG_LINE || !rules.is_nll_of_long_lines;
    if prompt_len > 1 && is_held && (nll_error > rules.nll || nll_error.is_nan()) {
        report.broken.push("mean_nll");
    }
    let margin = |step: usize| answer.margins.get(step).copied().unwrap_or(0.0);
    let steps = 0..found.greedy.len().max(answer.greedy.len());
    let split = steps.clone().find(|&step| found.greedy.get(step) != answer.greedy.get(step));
    report.split = split.map(|step| (step, margin(step)));
    if split == Some(0) && margin(0) > rules.best_margin {
        report.broken.push("best token");
    }
    let low = steps.clone().find(|&step| margin(step) < rules.greedy_margin);
    let must_hold_to = match split {
        Some(step) if rules.is_step_by_step && margin(step) <= rules.greedy_margin => step,
        _ if rules.is_step_by_step => steps.end,
        _ => low.unwrap_or(steps.end),
    };
    if split.is_some_and(|step| step < must_hold_to) {
        report.broken.push("greedy");
    }
}

fn sum_up(lines: Vec<LineReport>, rules: &Rules) -> Report {
    let distances: Vec<(f64, f64)> = lines.iter().filter_map(|line| line.distance).collect();
    let sum = distances.iter().fold(0.0, |sum, (mean, _)| sum + mean);
    let distance_mean = sum / distances.len().max(1) as f64;
    let max = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let splits = lines.iter().filter_map(|line| line.split.map(|(_, margin)| margin));
    let holds = lines.iter().all(|line| line.broken.is_empty());
    Report {
        distance_mean,
        distance_max: max(&mut distances.iter().map(|(_, max)| *max)),
        nll_error_max: max(&mut lines.iter().filter_map(|line| line.nll_error)),
        split_margin_max: splits.reduce(f64::max),
        holds: holds && distance_mean <= rules.distance_mean,
        lines,
    }
}

/// Runs the subcommand.
///
/// # Errors
///
/// Fails if a file cannot be read or the engine refuses the model or the options.
pub fn run(arguments: &Arguments) -> Outcome {
    let isa = match &arguments.isa {
        Some(name) => Isa::by_name(name)?,
        None => Isa::detect(),
    };
    let lines = read_lines(&arguments.lines, arguments.lines_max)?;
    let file = PackedFile::read(&arguments.file)?;
    let model = Model::from_image(file.image())?;
    let mode = arguments.activations;
    let options = options(&model, &lines, mode, isa, arguments.threads);
    let set = arguments.rules.unwrap_or(match options.precision {
        Precision::F32 => RuleSet::Exact,
        Precision::Int8 => RuleSet::Int8,
    });
    let rules = Rules::new(set, model.config().architecture);
    #[cfg(not(feature = "cuda"))]
    let report = check(&model, options, &lines, &rules)?;
    #[cfg(feature = "cuda")]
    let report = arguments.card.open(|cards| {
        let Some(asked) = cards else { return check(&model, options, &lines, &rules) };
        let pool = kernels::Pool::new(options.threads);
        let engine = super::card::engine(pool, asked, &model, options)?;
        check_on(Some(engine), &model, &lines, &rules)
    })?;
    show(&report, arguments.json)?;
    Ok(if report.holds { Verdict::Holds } else { Verdict::Refused })
}

fn show(report: &Report, is_json: bool) -> Result<(), Box<dyn Error>> {
    for (index, line) in report.lines.iter().enumerate() {
        if is_json {
            print(&serde_json::to_string(line)?);
            continue;
        }
        let verdict =
            if line.broken.is_empty() { "holds".to_owned() } else { line.broken.join(", ") };
        let (mean, max) = line.distance.unwrap_or_default();
        let nll = line.nll_error.unwrap_or_default() * 100.0;
        let split = line.split.map_or("none".to_owned(), |(step, margin)| {
            format!("step {step} (margin {margin:.4})")
        });
        print(&format!(
            "line {:2}  {:5} tokens  distance mean {mean:.5} max {max:.5}  \
             mean_nll {nll:.3} %  split {split}  {verdict}",
            index + 1,
            line.prompt_len,
        ));
    }
    if is_json {
        print(
            &serde_json::json!({
                "distance_mean": report.distance_mean,
                "distance_max": report.distance_max,
                "nll_error_max": report.nll_error_max,
                "split_margin_max": report.split_margin_max,
                "holds": report.holds,
            })
            .to_string(),
        );
    } else {
        print(&format!(
            "{} lines: distance mean {:.5} max {:.5}, mean_nll {:.3} % at most: {}",
            report.lines.len(),
            report.distance_mean,
            report.distance_max,
            report.nll_error_max * 100.0,
            if report.holds { "holds" } else { "does not hold" },
        ));
    }
    Ok(())
}
