//! The TPM's counter of starts: it rises from start to start, or the log is refused at the start that it did not.

use super::super::record::samples;
use super::super::verify::CounterReport;
use super::*;

fn start(counter: Option<u64>) -> Event {
    let is_start = |event: &Event| matches!(event, Event::Start { .. });
    let Some(Event::Start { mut observed }) = samples::all().into_iter().find(is_start) else {
        panic!("a start has a sample")
    };
    observed.tpm_counter = counter;
    Event::Start { observed }
}

fn check(name: &str, counters: &[Option<u64>]) -> Result<Option<CounterReport>, Error> {
    let (folder, key) = (Folder::new(name), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    for counter in counters {
        log.append(start(*counter)).unwrap();
        log.append(refused(1)).unwrap();
    }
    log.commit().unwrap();
    key.check(&folder.0).map(|report| report.tpm_counter)
}

#[test]
fn a_counter_that_rises_is_told_with_what_no_start_recorded() {
    assert_eq!(check("counter-none", &[None, None]).unwrap(), None);
    let report = |first, last, starts, starts_without, unrecorded| {
        Some(CounterReport { first, last, starts, starts_without, unrecorded })
    };
    let some = |counters: &[u64]| counters.iter().copied().map(Some).collect::<Vec<_>>();
    assert_eq!(check("counter-rises", &some(&[5, 6, 7])).unwrap(), report(5, 7, 3, 0, 0));
    assert_eq!(check("counter-skips", &some(&[5, 6, 9])).unwrap(), report(5, 9, 3, 0, 2));
    let mixed = [None, Some(1), None, Some(2)];
    assert_eq!(check("counter-mixed", &mixed).unwrap(), report(1, 2, 2, 1, 0));
    assert_eq!(
        check("counter-most", &some(&[0, u64::MAX])).unwrap().unwrap().unrecorded,
        u64::MAX - 1
    );
}

#[test]
fn a_counter_that_stands_or_falls_is_refused_at_its_start() {
    for (counters, index, before, counter) in
        [([5, 5, 6], 2, 5, 5), ([5, 4, 6], 2, 5, 4), ([5, 7, 6], 4, 7, 6)]
    {
        let error = check("counter-falls", &counters.map(Some)).unwrap_err();
        let Error::CounterStands { index: Some(at), before: was, counter: is } = error else {
            panic!("{error}")
        };
        assert_eq!((at, was, is), (index, before, counter));
    }
    let error = check("counter-gap", &[Some(5), None, Some(4)]).unwrap_err();
    assert!(matches!(error, Error::CounterStands { index: Some(4), before: 5, counter: 4 }));
}

/// A start is held against the last one that had a counter, as who verifies does, or it would write a log that
/// nobody could verify any more.
#[test]
fn a_start_learns_of_the_last_counter_whatever_came_between() {
    let (folder, key) = (Folder::new("counter-carried"), Key::new());
    for (counter, known) in [(None, None), (Some(5), None), (None, Some(5)), (None, Some(5))] {
        let (mut log, found) = Log::open(&folder.0, key.signer()).unwrap();
        assert_eq!(found.last_tpm_counter, known);
        log.append(start(counter)).unwrap();
        log.close().unwrap();
    }
}
