//! The table, and the same as JSON.

use kernels::cuda::Device;
use serde_json::{Value, json};

use crate::launch::Row;
use crate::limits::Limits;
use crate::shapes::{Shape, Step};

fn step_name(step: Step, shape: &Shape) -> String {
    match step {
        Step::One => format!("a token of an answer at {}", shape.prompt),
        Step::Many => format!("a token of each of {} answers at {}", shape.many, shape.prompt),
        Step::Prompt => format!("a prompt of {}", shape.prompt),
    }
}

/// A step as a whole: its tokens, the seconds of its kernels, and what their limits would take.
struct Sum {
    step: Step,
    tokens: usize,
    seconds: f64,
    limit: f64,
}

fn sums(shape: &Shape, limits: &Limits, rows: &[Row]) -> Vec<Sum> {
    let sum = |(step, tokens): (Step, usize)| {
        let own = rows.iter().filter(|row| row.shape == shape.name && row.work.step == step);
        let (mut seconds, mut limit) = (0.0, 0.0);
        for Row { work, seconds: each, .. } in own {
            seconds += each * work.count;
            limit += limits.seconds(work) * work.count;
        }
        Sum { step, tokens, seconds, limit }
    };
    shape.steps().into_iter().map(sum).collect()
}

pub(crate) fn lines(
    device: &Device,
    limits: &Limits,
    shapes: &[Shape],
    rows: &[Row],
) -> Vec<String> {
    let mut lines = vec![
        device.name.clone(),
        format!(
            "limits, measured: {:.0} GB/s read, {:.1} T operations/s on bytes, {:.1} on floats",
            limits.bytes / 1e9,
            limits.int8_ops / 1e12,
            limits.float_ops / 1e12
        ),
    ];
    for shape in shapes {
        lines.push(String::new());
        lines.push(format!(
            "{:<5} {:<17} {:<22} {:>6} {:>10} {:>9} {:>9} {:>7} of",
            shape.name, "part", "kernel", "tokens", "µs", "GB/s", "T op/s", "share"
        ));
        for row in rows.iter().filter(|row| row.shape == shape.name) {
            let Row { work, seconds, .. } = row;
            lines.push(format!(
                "{:<5} {:<17} {:<22} {:>6} {:>10.2} {:>9.1} {:>9.3} {:>5.1} % {}",
                "",
                work.part,
                row.kernel(),
                work.tokens,
                seconds * 1e6,
                work.bytes / seconds / 1e9,
                (work.int8_ops + work.float_ops) / seconds / 1e12,
                limits.seconds(work) / seconds * 100.0,
                limits.name(work),
            ));
        }
        for sum in sums(shape, limits, rows) {
            lines.push(format!(
                "{:<5} {}: {:.3} ms in kernels, {:.0} tokens/s; {:.3} ms at their limits",
                shape.name,
                step_name(sum.step, shape),
                sum.seconds * 1e3,
                sum.tokens as f64 / sum.seconds,
                sum.limit * 1e3,
            ));
        }
    }
    lines
}

impl Row {
    fn kernel(&self) -> &str {
        self.work.launches.first().map_or("", |launch| &launch.kernel)
    }
}

pub(crate) fn json(device: &Device, limits: &Limits, shapes: &[Shape], rows: &[Row]) -> Value {
    let of_rows = rows.iter().map(|row| {
        let Row { shape, work, seconds } = row;
        json!({
            "shape": shape, "part": work.part, "kernel": row.kernel(), "tokens": work.tokens,
            "step": format!("{:?}", work.step), "count": work.count, "seconds": seconds,
            "bytes": work.bytes, "int8_ops": work.int8_ops, "float_ops": work.float_ops,
            "limit": limits.name(work), "share": limits.seconds(work) / seconds,
        })
    });
    let of_steps = shapes.iter().flat_map(|shape| {
        sums(shape, limits, rows).into_iter().map(|sum| {
            json!({
                "shape": shape.name, "step": format!("{:?}", sum.step), "tokens": sum.tokens,
                "seconds": sum.seconds, "limit_seconds": sum.limit,
                "tokens_per_s": sum.tokens as f64 / sum.seconds,
            })
        })
    });
    json!({
        "card": device.name,
        "limits": {
            "bytes_per_s": limits.bytes, "int8_ops_per_s": limits.int8_ops,
            "float_ops_per_s": limits.float_ops,
        },
        "rows": of_rows.collect::<Vec<_>>(),
        "steps": of_steps.collect::<Vec<_>>(),
    })
}
