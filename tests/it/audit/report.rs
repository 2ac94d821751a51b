//! The report is one page that stands alone, is read by everyone, and lets no text of the log act.

use std::fs;

use super::story::HOSTILE;
use super::{Site, text};

fn report(site: &Site, name: &str, words: &[&str]) -> (Option<i32>, String) {
    let out = site.path(name);
    let done = site.audit("report", &[&["--out", out.as_str()], words].concat());
    assert!(fs::exists(&out).unwrap(), "{done:?}");
    (done.status.code(), fs::read_to_string(out).unwrap())
}

/// What stands between two marks, at each place.
fn between<'a>(text: &'a str, from: &str, to: &str) -> Vec<&'a str> {
    text.split(from).skip(1).map(|rest| rest.split(to).next().unwrap()).collect()
}

#[test]
fn the_page_stands_alone_under_its_own_policy() {
    let site = Site::of_story("report-alone");
    let (code, page) = report(&site, "report.html", &[]);
    assert_eq!(code, Some(0));
    for outside in [
        "http:",
        "https:",
        "://",
        "@import",
        " src=\"",
        "<script",
        "<link",
        "<iframe",
        "<object",
        "<form",
        "javascript:",
        "data:",
        "style=",
        "onerror=\"",
        "srcset",
    ] {
        let found = page
            .find(outside)
            .map(|at| page[at.saturating_sub(60)..].chars().take(120).collect::<String>());
        assert_eq!(found, None, "{outside}");
    }
    assert!(between(&page, "url(", ")").iter().all(|inside| inside.starts_with('#')));
    assert!(
        between(&page, "href=\"", "\"")
            .iter()
            .all(|link| page.contains(&format!("id=\"{}\"", &link[1..])))
    );
    let style = between(&page, "<style>", "</style>");
    assert_eq!(style.len(), 1);
    use base64::Engine as _;
    let digest = ring::digest::digest(&ring::digest::SHA256, style[0].as_bytes());
    let hash = base64::engine::general_purpose::STANDARD.encode(digest);
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'"
    );
    let metas = between(&page, "<meta http-equiv=\"Content-Security-Policy\" content=\"", "\"");
    assert_eq!(metas, [policy]);
    assert!(page.find("Content-Security-Policy") < page.find("<style>"));
}

#[test]
fn headings_are_in_order_and_every_chart_has_its_table() {
    let site = Site::of_story("report-order");
    let (_, page) = report(&site, "report.html", &[]);
    let levels: Vec<u32> = page
        .match_indices("<h")
        .filter_map(|(at, _)| page[at + 2..].chars().next()?.to_digit(10))
        .collect();
    assert_eq!(levels[0], 1);
    assert_eq!(levels.iter().filter(|level| **level == 1).count(), 1);
    assert!(levels.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{levels:?}");
    let figures = between(&page, "<figure", "</figure>");
    assert!(figures.len() > 5);
    for figure in &figures {
        assert!(figure.contains("<table>") && figure.contains("<caption>"), "{figure}");
        assert!(figure.contains("scope=\"col\"") && figure.contains("scope=\"row\""));
    }
    for svg in between(&page, "<svg", ">") {
        assert!(
            svg.contains("aria-hidden=\"true\"")
                || svg.contains("role=\"img\"") && svg.contains("aria-label=\""),
            "{svg}"
        );
    }
    let drawn: usize = figures.iter().map(|figure| figure.matches("<svg").count()).sum();
    assert_eq!(drawn + 1, page.matches("<svg").count(), "all but the patterns stand in figures");
    assert!(page.contains("<html lang=\"en\">") && page.contains("<main id=\"content\">"));
}

#[test]
fn the_logs_own_words_stand_beside_those_of_a_reader_and_keys_have_a_section() {
    let site = Site::of_story("report-words");
    let (_, page) = report(&site, "report.html", &[]);
    for words in [
        "too many requests at once <code>too_many_requests</code>",
        "no end: the worker was gone <code>worker_gone</code>",
        "events dropped while the log could not be written",
        "user 0: exported",
    ] {
        assert!(page.contains(words), "{words}");
    }
    let section = between(&page, "<h2 id=\"keys\">", "</section>")[0];
    let row = |key: &str| {
        between(section, &format!("<th scope=\"row\">{key}</th>"), "</tr>")[0].to_owned()
    };
    for (key, counts) in [
        ("the TLS key", ["0", "412", "0", "0"]),
        ("the key that wraps principals&#39; keys", ["0", "0", "1", "0"]),
        ("a principal&#39;s key", ["1", "0", "0", "1"]),
    ] {
        let row = row(key);
        assert_eq!(between(&row, "\">", "</td>"), counts, "{key}");
    }
    for change in ["key made", "key replaced", "key destroyed"] {
        assert!(section.contains(change), "{change}");
    }
    // A word of the schema outside of `code` is one that nobody says.
    let bare = between(&page, "<body>", "</body>")[0];
    let bare: String =
        bare.split("<code>").map(|part| part.split("</code>").last().unwrap()).collect();
    for raw in ["too_many_requests", "worker_gone", "model_unknown", "key_rotated", "by_s_max"] {
        assert!(!bare.contains(raw), "{raw}");
    }
}

#[test]
fn no_text_of_the_log_becomes_markup() {
    let site = Site::of_story("report-hostile");
    let (_, page) = report(&site, "report.html", &[]);
    assert!(page.contains("=cmd|&#39;&lt;img src"), "it is shown");
    assert!(!page.contains("<img") && !page.contains(HOSTILE));
    assert!(!page.chars().any(|char| char == '\u{1b}' || char == '\u{202e}'));
    // Every tag is one that the page itself writes.
    let known = [
        "!DOCTYPE",
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "a",
        "svg",
        "defs",
        "pattern",
        "rect",
        "path",
        "circle",
        "line",
        "header",
        "p",
        "h1",
        "h2",
        "h3",
        "div",
        "span",
        "dl",
        "dt",
        "dd",
        "nav",
        "ol",
        "li",
        "main",
        "section",
        "figure",
        "figcaption",
        "details",
        "summary",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "pre",
        "footer",
    ];
    let style = between(&page, "<style>", "</style>")[0];
    for tag in between(&page.replace(style, ""), "<", ">") {
        let name = tag.trim_start_matches('/').split([' ', '\n']).next().unwrap();
        assert!(known.contains(&name), "<{tag}>");
    }
}

#[test]
fn the_verdict_comes_first_and_is_the_right_one() {
    let site = Site::of_story("report-verdict");
    let verdict = |page: &str| between(page, "<p class=\"word\">", "</p>")[0].to_owned();
    let (code, page) = report(&site, "a.html", &[]);
    assert_eq!((code, verdict(&page).as_str()), (Some(0), "INTACT, UNANCHORED"));
    assert!(page.find("class=\"word\"") < page.find("<section"));
    let kept = site.path("kept.txt");
    fs::copy(site.path("log/checkpoint"), &kept).unwrap();
    let (_, page) = report(&site, "b.html", &["--checkpoint", &kept]);
    assert!(verdict(&page).starts_with("INTACT, ANCHORED by"), "{}", verdict(&page));
    let entries = site.folder.join("log/tile/entries/004");
    let mut bytes = fs::read(&entries).unwrap();
    bytes[60] ^= 1;
    fs::write(&entries, bytes).unwrap();
    let (code, page) = report(&site, "c.html", &[]);
    assert_eq!((code, verdict(&page).as_str()), (Some(1), "BROKEN"));
    assert!(page.contains("1024"), "the place is named");
    let done = site.audit("report", &["--out", &site.path("c.html")]);
    let told = text(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "a page is not overwritten: {told}");
    let named = format!("--out {}: there is a file already", site.path("c.html"));
    assert!(told.contains(&named) && told.contains("--force"), "{told}");
    assert_eq!(report(&site, "c.html", &["--force"]).0, Some(1));
}

#[test]
fn the_figures_are_those_of_the_records() {
    let site = Site::of_story("report-figures");
    let words = ["--from", "2026-11-03", "--to", "2026-11-12"];
    let (_, page) = report(&site, "report.html", &words);
    let tile = |name: &str| {
        let rest = page.split(&format!("<dt>{name}</dt><dd>")).nth(1).unwrap();
        rest.split("</dd>").next().unwrap().replace(',', "").parse::<usize>().unwrap()
    };
    let count = |more: &[&str]| site.lines("list", &[&["--json"], words.as_slice(), more].concat());
    assert_eq!(tile("Records"), count(&[]).len());
    assert_eq!(tile("Requests begun"), count(&["--event", "begin"]).len());
    assert_eq!(tile("Ends missing"), count(&["--event", "end_missing"]).len());
    let refused: u64 = count(&["--event", "refused"])
        .iter()
        .map(|one| one["event"]["refused"]["observed"]["count"].as_u64().unwrap())
        .sum();
    assert_eq!(tile("Requests refused") as u64, refused);
    assert!(refused > 20, "the control");
    let failed: u64 = count(&["--event", "authentication_failed"])
        .iter()
        .map(|one| one["event"]["authentication_failed"]["observed"]["count"].as_u64().unwrap())
        .sum();
    assert_eq!(tile("Failed authentications") as u64, failed);
    assert!(
        page.contains("kept for at least 183 days, removed after 366 days (preset eu: the AI Act")
    );
    for rule in [
        "164.312(b)",
        "164.312(c)(1)",
        "164.308(a)(1)(ii)(D)",
        "Art. 5(2)",
        "Art. 25",
        "Art. 32",
        "Art. 33",
        "Art. 35",
        "AI Act Art. 12",
        "Art. 19, 26(6)",
        "AU-2",
        "AU-3(3)",
        "AU-4",
        "AU-5",
        "AU-6",
        "AU-7",
        "AU-8",
        "AU-9(2)",
        "AU-9(3)",
        "AU-10",
        "AU-11",
        "AU-12",
    ] {
        assert!(page.contains(rule), "{rule}");
    }
}
