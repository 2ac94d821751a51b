//! A writer that is killed at any moment, again and again: what it acknowledged is there, what was
//! signed is never contradicted, and each start records the gap.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use cloister::audit::Checkpoint;
use cloister::audit::verify::verify;

use super::*;
use crate::support;

const KILLS_COUNT: u64 = 300;

#[test]
fn a_writer_that_is_killed_300_times_loses_nothing_that_it_acknowledged() {
    let folder = Folder::new("killed");
    let program = support::build_example("writer");
    let verifier = folder.signer().verifier();
    let mut anchor: Option<Checkpoint> = None;
    let mut cut_count = 0;
    for kill in 0..KILLS_COUNT {
        let mut writer = Command::new(&program)
            .arg(folder.log())
            .arg(folder.path("audit.key"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut acknowledged: u64 = lines.next().unwrap().unwrap().parse().unwrap();
        std::thread::sleep(Duration::from_micros(kill * 7919 % 40_000));
        writer.kill().unwrap();
        writer.wait().unwrap();
        // The last line may be half of one.
        while let Some(Ok(line)) = lines.next() {
            acknowledged = line.parse::<u64>().unwrap_or(acknowledged).max(acknowledged);
        }
        let report = verify(&folder.log(), &verifier, anchor.as_ref(), &mut |_, _| {});
        let report = report.unwrap_or_else(|error| panic!("after {kill} kills: {error}"));
        let durable = report.size + report.unsigned_tail;
        assert!(durable >= acknowledged, "{durable} of {acknowledged} after {kill} kills");
        let recovered = report.events.get("recovered").copied().unwrap_or(0);
        assert_eq!(recovered, kill, "each start but the first records the gap");
        cut_count += u64::from(durable > acknowledged);
        let note = fs::read(folder.log().join("checkpoint")).unwrap();
        anchor = Some(Checkpoint::parse(verifier.open(&note).unwrap()).unwrap());
    }
    // A control: some were killed between a commit and its word.
    assert!(cut_count > 0);
}
