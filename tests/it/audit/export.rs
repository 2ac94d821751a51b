//! An export proves itself elsewhere, and no change of any of its files goes unseen.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::story::Writer;
use super::{Site, all, cells, cloister, name, story, text};

fn verify(site: &Site, folder: &str) -> (Option<i32>, Value) {
    let key = site.path("audit.vkey");
    let done = cloister(&["audit", "verify-export", folder, "--public-key", &key, "--json"]);
    (done.status.code(), serde_json::from_slice(&done.stdout).unwrap_or_default())
}

fn export(site: &Site, name: &str, words: &[&str]) -> String {
    let out = site.path(name);
    let done = site.audit("export", &[&["--out", out.as_str()], words].concat());
    assert!(done.status.success(), "{done:?}");
    // As on another machine: nothing of the log is there.
    fs::rename(site.folder.join("log"), site.folder.join("away")).unwrap();
    let (code, verdict) = verify(site, &out);
    assert_eq!((code, &verdict["verdict"]), (Some(0), &"WHOLE".into()), "{verdict}");
    fs::rename(site.folder.join("away"), site.folder.join("log")).unwrap();
    out
}

#[test]
fn an_export_of_a_period_verifies_without_the_log() {
    let site = Site::of_story("export");
    let words = ["--from", "2026-11-03", "--to", "2026-11-05"];
    let out = export(&site, "days", &words);
    let lines = fs::read_to_string(Path::new(&out).join("records.jsonl")).unwrap();
    assert_eq!(
        lines.lines().count(),
        site.lines("list", &[&["--json"], words.as_slice()].concat()).len()
    );
    let refused = export(&site, "refused", &["--event", "refused", "--event", "start"]);
    let want = all().iter().filter(|one| ["refused", "start"].contains(&name(one))).count();
    assert_eq!(verify(&site, &refused).1["records"], want);
    export(&site, "none", &["--to", "2020-01-01"]);
    export(&site, "all", &["--format", "csv", "--format", "ocsf", "--format", "cef"]);
    let other = Site::new("export-other");
    assert_eq!(verify(&other, &out).0, Some(1), "another log's key");
}

#[test]
fn a_change_of_any_file_of_an_export_is_caught() {
    let site = Site::of_story("export-change");
    let older = site.folder.join("older");
    {
        let story = story::story();
        fs::create_dir(&older).unwrap();
        let mut writer = Writer::new(&older);
        story[..700].iter().for_each(|record| writer.push(record));
        writer.publish(&site.signer);
    }
    let older = older.join("checkpoint").display().to_string();
    let words = [
        "--event",
        "refused",
        "--event",
        "model_opened",
        "--format",
        "csv",
        "--format",
        "ocsf",
        "--format",
        "cef",
        "--since",
        &older,
    ];
    let out = export(&site, "whole", &words);
    assert_eq!(verify(&site, &out).1["extends"], 700);
    let mut names: Vec<_> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert_eq!(names.len(), 9, "{names:?}");
    for path in names.iter().filter(|path| !path.ends_with("log.vkey")) {
        let good = fs::read(path).unwrap();
        for at in (0..good.len()).step_by((good.len() / 12).max(1)) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(path, &bad).unwrap();
            assert_eq!(verify(&site, &out).0, Some(1), "{} byte {at}", path.display());
        }
        for bad in [&good[..good.len() - 1], &[good.as_slice(), b"x\n"].concat()[..], b""] {
            fs::write(path, bad).unwrap();
            assert_eq!(verify(&site, &out).0, Some(1), "{} of {} bytes", path.display(), bad.len());
        }
        fs::write(path, &good).unwrap();
    }
    assert_eq!(verify(&site, &out).0, Some(0));
}

#[test]
fn a_log_that_does_not_extend_the_older_checkpoint_gives_no_export() {
    let site = Site::of_story("export-fork");
    let mut records = story::story();
    let note = site.folder.join("kept.txt");
    fs::copy(site.folder.join("log/checkpoint"), &note).unwrap();
    let kept = note.display().to_string();
    records.truncate(900);
    site.write(&records);
    let out = site.path("short");
    let done = site.audit("export", &["--out", &out, "--since", &kept]);
    assert_ne!(done.status.code(), Some(0), "a log that lost its tail: {done:?}");
    records.swap(10, 11);
    records.extend_from_slice(&story::story()[900..]);
    records.extend_from_slice(&story::story()[..5]);
    site.write(&records);
    let out = site.path("fork");
    let done = site.audit("export", &["--out", &out, "--since", &kept]);
    let is_caught = !done.status.success() || verify(&site, &out).0 == Some(1);
    assert!(is_caught, "{}", text(&done.stdout));
}

#[test]
fn converted_lines_are_of_their_shape() {
    let site = Site::of_story("export-shapes");
    let out = export(&site, "shapes", &["--format", "csv", "--format", "ocsf", "--format", "cef"]);
    let read = |name: &str| fs::read_to_string(Path::new(&out).join(name)).unwrap();
    let count = all().len();
    for line in read("records.ocsf.jsonl").lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        for member in [
            "activity_id",
            "category_uid",
            "class_uid",
            "type_uid",
            "time",
            "severity_id",
            "metadata",
            "unmapped",
        ] {
            assert!(!event[member].is_null(), "{member}: {line}");
        }
        let class = event["class_uid"].as_u64().unwrap();
        assert_eq!(event["type_uid"], class * 100 + event["activity_id"].as_u64().unwrap());
    }
    assert_eq!(
        read("records.cef").lines().filter(|line| line.starts_with("CEF:0|Cloister|")).count(),
        count
    );
    let csv = read("records.csv");
    let columns = csv.lines().next().unwrap().split(',').count();
    assert_eq!(csv.lines().count(), count + 1);
    for line in csv.lines().skip(1) {
        assert_eq!(cells(line).len(), columns, "{line}");
    }
}
