//! What `cloister bench` prints: medians, each beside the limit that it is a share of.

use kernels::Isa;
use kernels::limits::Speed;
use serde_json::{Value, json};

use super::limits::{Limit, Limits};
use super::measure::{Round, Row};
use super::work::Work;
use crate::cli::packed_file::LoadTimes;
use crate::engine::KvType;

impl Limits {
    fn json(&self, threads: usize) -> Value {
        let peak = |(isa, peak): &(Isa, f64)| (isa.name().to_owned(), json!(peak));
        let peaks: serde_json::Map<String, Value> = self.peaks.iter().map(peak).collect();
        json!({
            "threads": threads,
            "read_bandwidth_bytes_per_s": self.read_bandwidth,
            "int8_peak_macs_per_s": self.peak,
            "int8_peak_macs_per_s_by_isa": peaks,
        })
    }
}

/// Parts of a limit: of what the machine can do, and of what its neighbours left beside the rounds.
struct Share {
    full: f64,
    usual: f64,
}

impl Share {
    fn text(&self, of: &str) -> String {
        format!("{:>5.1} % of {of} ({:.1} % of its median)", self.full * 100.0, self.usual * 100.0)
    }
}

/// A row with its rounds.
pub(super) struct Measured {
    pub(super) row: Row,
    pub(super) rounds: Vec<Round>,
    /// Before and after each round; none where a card computes.
    pub(super) limits: Vec<Limit>,
    pub(super) cache_bytes: u64,
}

impl Measured {
    fn tokens_per_s(&self) -> f64 {
        median(self.rounds.iter().map(|round| round.tokens as f64 / round.seconds))
    }

    /// Returns the rounds' share of a limit, each of the mean of what stood before and after it, if tokens
    /// take so much of it.
    fn share(&self, of_a_token: f64, limit: fn(&Limit) -> Speed) -> Option<Share> {
        let of = |speed: fn(Speed) -> f64| {
            let limit = |it| speed(limit(it));
            let beside = self
                .limits
                .windows(2)
                .map(|pair| pair.iter().map(limit).sum::<f64>() / pair.len() as f64);
            let shares = self.rounds.iter().zip(beside);
            median(
                shares
                    .map(|(round, limit)| round.tokens as f64 / round.seconds * of_a_token / limit),
            )
        };
        let share = || Share { full: of(|speed| speed.full), usual: of(|speed| speed.usual) };
        (!self.limits.is_empty()).then(share)
    }

    fn first_token_s(&self) -> f64 {
        median(self.rounds.iter().filter_map(|round| round.first_token_s))
    }
}

/// All that was measured.
pub(super) struct Report {
    pub(super) isa: Isa,
    pub(super) kv: KvType,
    pub(super) times: LoadTimes,
    pub(super) packed_bytes: u64,
    pub(super) resident_peak_bytes: u64,
    /// Of the weights, in huge pages.
    pub(super) huge_bytes: u64,
    /// Tokens of each answer.
    pub(super) generate: u32,
    pub(super) work: Work,
    /// Threads of the first rows.
    pub(super) threads: usize,
    /// Those of the processors; none where a card computes.
    pub(super) limits: Option<Limits>,
    pub(super) measured: Vec<Measured>,
}

impl Report {
    /// Returns the report as lines for people.
    pub(super) fn lines(&self) -> Vec<String> {
        let Self { isa, kv, times, work, .. } = self;
        let mut lines = vec![
            format!(
                "model      {} G multiply-adds a prompt token, {} GB read a generated token",
                giga(work.layer_macs as f64, 3),
                giga(work.weight_bytes as f64, 3),
            ),
            self.machine(),
            format!(
                "load       {:.2} s: read {:.2}, pack {:.2}",
                (times.read + times.pack).as_secs_f64(),
                times.read.as_secs_f64(),
                times.pack.as_secs_f64(),
            ),
        ];
        for measured in &self.measured {
            lines.push(self.line(measured));
        }
        lines.push(format!(
            "memory     {:.0} MB resident at most, {:.2} × weights and cache, {:.0} % of the weights in huge pages",
            self.resident_peak_bytes as f64 / 1e6,
            self.resident_peak_bytes as f64 / self.data_bytes(),
            self.huge_bytes as f64 / self.packed_bytes as f64 * 100.0,
        ));
        lines.push(format!("kernels    {}, keys and values in {}", isa.name(), kv.name()));
        lines
    }

    fn machine(&self) -> String {
        let threads = self.threads;
        let Some(Limits { read_bandwidth, peaks, .. }) = &self.limits else {
            return format!(
                "machine    {threads} threads, and a card, whose limits the example cuda_roofline of \
                 the crate kernels measures"
            );
        };
        let peak = |(isa, peak): &(Isa, f64)| format!("{} {}", isa.name(), giga(*peak, 0));
        format!(
            "machine    {threads} threads: read bandwidth {} GB/s, int8 peak in G multiply-adds/s: {}",
            giga(*read_bandwidth, 1),
            peaks.iter().map(peak).collect::<Vec<_>>().join(", "),
        )
    }

    fn line(&self, measured: &Measured) -> String {
        let (speed, row) = (measured.tokens_per_s(), measured.row);
        let share = match row {
            Row::Prefill { .. } => {
                let share = self.peak_share(measured).map_or_else(
                    || format!("{} G multiply-adds/s", giga(speed * self.macs(row), 0)),
                    |share| share.text("the int8 peak"),
                );
                format!("{share}, first token {:.3} s", measured.first_token_s())
            }
            Row::Warm { .. } => {
                let ratio = self.ratio_to_cold(measured);
                let cold =
                    ratio.map_or_else(String::new, |ratio| format!(", {ratio:.2} × of cold"));
                format!("first token {:.3} s{cold}", measured.first_token_s())
            }
            Row::Decode { .. } => {
                let speed = giga(speed * self.bytes(row), 1);
                self.bandwidth_share(measured).map_or_else(
                    || format!("{speed} GB/s"),
                    |share| format!("{}, {speed} GB/s", share.text("bandwidth")),
                )
            }
        };
        let oversubscribed = self.ratio(measured).map_or_else(String::new, |ratio| {
            format!(", {} threads: {ratio:.2} × of {}", row.threads(), self.threads)
        });
        format!("{:<32} {speed:>9.1} tokens/s {share}{oversubscribed}", row.to_string())
    }

    /// Returns the speed of a row as a ratio to the same one with the first number of threads.
    fn ratio(&self, measured: &Measured) -> Option<f64> {
        let row = measured.row.with_threads(self.threads);
        let first = self.measured.iter().find(|other| other.row == row)?;
        (row != measured.row).then(|| measured.tokens_per_s() / first.tokens_per_s())
    }

    /// Returns the time to the first token as a ratio to that of the same prompt without a prefix.
    fn ratio_to_cold(&self, measured: &Measured) -> Option<f64> {
        let Row::Warm { threads, prompt, .. } = measured.row else { return None };
        let cold = Row::Prefill { threads, prompt };
        let cold = self.measured.iter().find(|other| other.row == cold)?;
        Some(measured.first_token_s() / cold.first_token_s())
    }

    fn peak_share(&self, measured: &Measured) -> Option<Share> {
        measured.share(self.macs(measured.row), |limit| limit.peak)
    }

    fn bandwidth_share(&self, measured: &Measured) -> Option<Share> {
        measured.share(self.bytes(measured.row), |limit| limit.read_bandwidth)
    }

    /// Returns the multiply-adds that a token of a row takes.
    fn macs(&self, row: Row) -> f64 {
        match row {
            Row::Warm { .. } => f64::NAN,
            Row::Prefill { prompt, .. } => self.work.prefill_macs(prompt) / prompt as f64,
            Row::Decode { batch, .. } => self.work.decode_macs(batch) / batch as f64,
        }
    }

    /// Returns the bytes that a token of a decode row reads.
    fn bytes(&self, row: Row) -> f64 {
        match row {
            Row::Decode { depth, batch, .. } => {
                self.work.decode_bytes(depth, batch, self.generate as usize) / batch as f64
            }
            Row::Prefill { .. } | Row::Warm { .. } => f64::NAN,
        }
    }

    /// Returns the bytes of packed weights and of the largest cache.
    fn data_bytes(&self) -> f64 {
        let cache = self.measured.iter().map(|measured| measured.cache_bytes).max();
        (self.packed_bytes + cache.unwrap_or(0)) as f64
    }

    /// Returns the report as JSON.
    pub(super) fn json(&self) -> Value {
        let Self { isa, kv, times, work, limits, .. } = self;
        let list = |is_its: fn(&Row) -> bool| {
            let rows = self.measured.iter().filter(|measured| is_its(&measured.row));
            rows.map(|measured| self.row(measured)).collect::<Vec<_>>()
        };
        json!({
            "isa": isa.name(),
            "kv": kv.name(),
            "kv_bytes_per_position": work.kv_bytes_a_position(),
            "model": {
                "macs_per_prompt_token": work.layer_macs,
                "macs_per_logits": work.output_macs,
                "weight_bytes_per_step": work.weight_bytes,
                "packed_weight_bytes": self.packed_bytes,
            },
            "limits": limits.as_ref().map(|limits| limits.json(self.threads)),
            "load": {
                "read_s": times.read.as_secs_f64(),
                "pack_s": times.pack.as_secs_f64(),
                "total_s": (times.read + times.pack).as_secs_f64(),
            },
            "prefill": list(|row| matches!(row, Row::Prefill { .. })),
            "warm_prefix": list(|row| matches!(row, Row::Warm { .. })),
            "decode": list(|row| matches!(row, Row::Decode { .. })),
            "resident_peak_bytes": self.resident_peak_bytes,
            "huge_page_bytes": self.huge_bytes,
            "resident_peak_to_weights_and_cache": self.resident_peak_bytes as f64 / self.data_bytes(),
        })
    }

    fn row(&self, measured: &Measured) -> Value {
        let rounds = measured.rounds.iter().map(|round| round.tokens as f64 / round.seconds);
        let rounds: Vec<f64> = rounds.collect();
        let speed = measured.tokens_per_s();
        let mut row = match measured.row {
            Row::Prefill { threads, prompt } => json!({
                "threads": threads, "prompt_tokens": prompt,
                "prefill_tokens_per_s": speed,
                "first_token_s": measured.first_token_s(),
            }),
            Row::Warm { threads, prompt, common } => json!({
                "threads": threads, "prompt_tokens": prompt, "common_tokens": common,
                "first_token_s": measured.first_token_s(),
                "ratio_to_cold": self.ratio_to_cold(measured),
            }),
            Row::Decode { threads, depth, batch } => json!({
                "threads": threads, "depth": depth, "batch": batch,
                "generated_tokens": self.generate,
                "decode_tokens_per_s": speed,
                "bytes_per_s": speed * self.bytes(measured.row),
                "bandwidth_share": self.bandwidth_share(measured).map(|share| share.full),
                "bandwidth_usual_share": self.bandwidth_share(measured).map(|share| share.usual),
            }),
        };
        row["macs_per_s"] = json!(speed * self.macs(measured.row));
        row["int8_peak_share"] = json!(self.peak_share(measured).map(|share| share.full));
        row["int8_peak_usual_share"] = json!(self.peak_share(measured).map(|share| share.usual));
        row["cache_bytes"] = json!(measured.cache_bytes);
        row["rounds_tokens_per_s"] = json!(rounds);
        if let Some(ratio) = self.ratio(measured) {
            row["ratio_to_first_threads"] = json!(ratio);
        }
        row
    }
}

fn giga(value: f64, digits: usize) -> String {
    format!("{:.digits$}", value / 1e9)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()).to_bits(), 2.5_f64.to_bits());
        assert!(median(std::iter::empty()).is_nan());
    }
}
