//! Children that hold an opening up without being silent.

use std::os::fd::AsFd as _;
use std::thread;

use super::*;

/// Plays a loader that says how far it is, again and again, until nobody listens.
fn image_of(next: impl Fn(u64) -> u64 + Send + 'static, deadline: Instant) -> Refusal {
    let (opener, _opener) = Channel::pair().unwrap();
    let (ours, theirs) = Channel::pair().unwrap();
    let (signals, _signals) = nix::unistd::pipe().unwrap();
    let loader = thread::spawn(move || {
        let mut done_bytes = 0;
        loop {
            done_bytes = next(done_bytes);
            let progress = FromLoader::Progress { done_bytes, total_bytes: 1 << 40 };
            if theirs.send(&progress, &[]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    let opening = Opening {
        opener: &opener,
        loader: &ours,
        signals: signals.as_fd(),
        progress: &|_| {},
        unwraps_count: Cell::new(0),
        deadline,
    };
    let refusal = opening.image().unwrap_err();
    drop(ours);
    loader.join().unwrap();
    refusal
}

#[test]
fn a_loader_that_is_always_about_to_go_on_ends_with_the_openings_time() {
    let start = Instant::now();
    let refusal = image_of(|done| done + 1, start + Duration::from_millis(500));
    assert!(matches!(refusal, Refusal::Deadline("loader")), "{refusal}");
    assert!(start.elapsed() >= Duration::from_millis(500));
}

#[test]
fn a_loader_whose_progress_is_none_breaks_the_protocol() {
    let later = Instant::now() + Duration::from_secs(60);
    for next in [|done: u64| done, |_| 7, |done| if done == 0 { 9 } else { done - 1 }] {
        let refusal = image_of(next, later);
        assert!(matches!(refusal, Refusal::Protocol("loader")), "{refusal}");
    }
}

#[test]
fn a_longer_model_is_given_more_time() {
    let time = |len_bytes| deadline(len_bytes).saturating_duration_since(Instant::now());
    assert!(time(0) > Duration::from_secs(590) && time(0) <= OPENING_DEADLINE);
    assert!(time(70 << 30) > Duration::from_secs(70 << 10));
}
