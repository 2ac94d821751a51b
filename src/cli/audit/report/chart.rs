//! Charts as inline SVG, each with the table of its numbers; readable in black and white.
//!
//! A series is told from another by its pattern, not by its colour alone. All text is outside of the
//! drawing, so that it keeps its size on a phone.

use std::fmt::Write as _;

use super::super::text::html;

/// Size of a drawing, in its own units.
const WIDTH: u64 = 480;
const HEIGHT: u64 = 100;

/// One kind of value, at each step.
pub(super) struct Series<'a> {
    /// Its name in legend and table.
    pub(super) name: &'a str,
    /// Its class in the style sheet: `solid`, `hatched` or `dotted`.
    pub(super) class: &'a str,
    /// Its values.
    pub(super) values: Vec<u64>,
}

/// Stacked columns over steps of time, with legend and table.
pub(super) fn columns(id: &str, title: &str, labels: &[String], series: &[Series<'_>]) -> String {
    let sums: Vec<u64> =
        (0..labels.len()).map(|at| series.iter().map(|one| one.values[at]).sum()).collect();
    let top = round_up(sums.iter().copied().max().unwrap_or(0));
    let mut out = format!("<figure class=\"chart\" id=\"{id}\"><figcaption>{}", html(title));
    out.push_str("<span class=\"legend\">");
    for one in series {
        let (name, class) = (html(one.name), one.class);
        let total: u64 = one.values.iter().sum();
        let _ = write!(
            out,
            "<span><svg class=\"key\" viewBox=\"0 0 12 12\" aria-hidden=\"true\"><rect width=\"12\" height=\"12\" \
             class=\"{class}\"/></svg> {name}: {}</span>",
            grouped(total)
        );
    }
    out.push_str("</span></figcaption>");
    let _ = write!(
        out,
        "<div class=\"plot\"><div class=\"scale\" aria-hidden=\"true\"><span>{}</span><span>{}</span><span>0</span></div>",
        grouped(top),
        grouped(top / 2)
    );
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}: \
        highest step {}; the numbers are in the table below\">",
        html(title),
        grouped(sums.iter().copied().max().unwrap_or(0))
    );
    for y in [0, HEIGHT / 2, HEIGHT] {
        let _ = write!(out, "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{y}\" y2=\"{y}\"/>");
    }
    let wide = WIDTH * 1000 / (labels.len() as u64).max(1);
    for at in 0..labels.len() {
        let mut base = HEIGHT * 1000;
        for one in series.iter().filter(|one| one.values[at] > 0) {
            // A thousandth of a unit is finer than a pixel; what is there is seen, however small.
            let height =
                (one.values[at].saturating_mul(HEIGHT * 1000) / top.max(1)).max(900).min(base);
            base -= height;
            let _ = write!(
                out,
                "<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
                one.class,
                thousandths(at as u64 * wide + wide / 10),
                thousandths(base),
                thousandths(wide * 8 / 10),
                thousandths(height)
            );
        }
    }
    out.push_str("</svg><div class=\"times\" aria-hidden=\"true\">");
    let shown = [0, labels.len() / 2, labels.len().saturating_sub(1)];
    let mut last = None;
    for at in shown.into_iter().filter(|at| *at < labels.len()) {
        if last != Some(at) {
            let _ = write!(out, "<span>{}</span>", html(&labels[at]));
        }
        last = Some(at);
    }
    out.push_str("</div></div><details><summary>The numbers as a table</summary>");
    let names: Vec<&str> = series.iter().map(|one| one.name).collect();
    let head: Vec<&str> = std::iter::once("From (UTC)").chain(names).collect();
    let rows = labels.iter().enumerate().map(|(at, label)| {
        let values = series.iter().map(|one| grouped(one.values[at]));
        std::iter::once(label.clone()).chain(values).collect()
    });
    out.push_str(&table(title, &head, rows));
    out.push_str("</details></figure>");
    out
}

/// A name and a count.
pub(super) struct Bar<'a> {
    /// Its name, for a reader.
    pub(super) name: String,
    /// The log's own word, where that is another.
    pub(super) raw: Option<&'a str>,
    /// How many.
    pub(super) count: u64,
}

/// A table of names and counts, a bar beside each count.
pub(super) fn bars(id: &str, title: &str, heads: [&str; 2], rows: &[Bar<'_>]) -> String {
    let top = rows.iter().map(|row| row.count).max().unwrap_or(0).max(1);
    let mut out = format!(
        "<figure class=\"bars\" id=\"{id}\"><div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"{0}\"><table><caption>{0}</caption><thead><tr><th scope=\"col\">{1}</th>\
         <th scope=\"col\" class=\"number\">{2}</th><td></td></tr></thead><tbody>",
        html(title),
        html(heads[0]),
        html(heads[1])
    );
    for Bar { name, raw, count } in rows {
        let width = count.saturating_mul(1000) / top;
        let raw = raw.map_or(String::new(), |raw| format!(" <code>{}</code>", html(raw)));
        let _ = write!(
            out,
            "<tr><th scope=\"row\">{}{raw}</th><td class=\"number\">{}</td><td class=\"bar\"><svg viewBox=\"0 0 1000 10\" \
             preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect class=\"solid\" width=\"{}\" height=\"10\"/></svg></td></tr>",
            html(name),
            grouped(*count),
            width.max(u64::from(*count > 0) * 4)
        );
    }
    out.push_str("</tbody></table></div></figure>");
    out
}

/// A table; the first cell of each row names it. Wide ones scroll by themselves, and those of many columns
/// stand as lists on a phone.
pub(super) fn table(
    title: &str,
    heads: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> String {
    let mut out = format!(
        "<div class=\"wide{1}\" role=\"region\" tabindex=\"0\" aria-label=\"{0}\"><table>\
         <caption>{0}</caption><thead><tr>",
        html(title),
        if heads.len() > 3 { " stack" } else { "" }
    );
    for head in heads {
        let _ = write!(out, "<th scope=\"col\">{}</th>", html(head));
    }
    out.push_str("</tr></thead><tbody>");
    for row in rows {
        out.push_str("<tr>");
        for (at, cell) in row.iter().enumerate() {
            let class = if is_time(cell) { " class=\"time\"" } else { "" };
            let cell = html(cell);
            let head = html(heads.get(at).copied().unwrap_or_default());
            let _ = match at {
                0 => write!(out, "<th scope=\"row\"{class}>{cell}</th>"),
                _ => write!(out, "<td data-head=\"{head}\"{class}>{cell}</td>"),
            };
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
    out
}

/// Whether a cell is a time, which is not broken into lines.
fn is_time(cell: &str) -> bool {
    (10..=19).contains(&cell.len())
        && cell.bytes().all(|byte| byte.is_ascii_digit() || b"- :".contains(&byte))
        && cell.bytes().filter(|byte| *byte == b'-').count() == 2
}

/// The patterns that the style sheet fills shapes with.
pub(super) const PATTERNS: &str = "<svg class=\"patterns\" width=\"0\" height=\"0\" aria-hidden=\"true\"><defs>\
    <pattern id=\"hatch\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\"><rect width=\"4\" height=\"4\" class=\"hatch-ground\"/>\
    <path d=\"M-1 1l2-2M0 4l4-4M3 5l2-2\" class=\"hatch-line\"/></pattern>\
    <pattern id=\"dots\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\"><rect width=\"4\" height=\"4\" class=\"dots-ground\"/>\
    <circle cx=\"2\" cy=\"2\" r=\"1.1\" class=\"dots-dot\"/></pattern></defs></svg>";

/// `1234567` as `1,234,567`.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn thousandths(value: u64) -> String {
    format!("{}.{:03}", value / 1000, value % 1000)
}

/// The next number that is a 2, 4, 6 or 10 with zeros: its half is whole.
fn round_up(count: u64) -> u64 {
    let mut unit: u64 = 1;
    loop {
        let fits = [2, 4, 6, 10]
            .into_iter()
            .map(|step| unit.saturating_mul(step))
            .find(|top| *top >= count);
        match fits {
            Some(top) => return top,
            None => unit = unit.saturating_mul(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hold_what_they_show() {
        for count in [0, 1, 2, 3, 5, 7, 10, 11, 99, 101, 12_345, u64::MAX / 2] {
            let top = round_up(count);
            assert!(top >= count && top.is_multiple_of(2), "{count} {top}");
        }
        assert_eq!([0, 3, 7, 11, 61].map(round_up), [2, 4, 10, 20, 100]);
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
