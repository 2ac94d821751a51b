//! One worker process for each request: another process each time, the last one gone, its text with it, and
//! an appliance that says all the while that it is ready.
//!
//! ```text
//! cargo test --release --test it what_a_worker -- --ignored --nocapture      # what it costs
//! ```

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use super::live_memory::{canary, gone, hunt};
use super::*;

const ONE_EACH: &str = "[worker]\nlifetime = \"request\"\nsequences = 2\n";

/// An appliance of SmolLM2 whose workers serve one request each, two at once.
fn one_each(user: As) -> Appliance {
    let mut appliance = Appliance::start(user);
    appliance.stop();
    appliance.change_config("[worker]\n", ONE_EACH);
    give_to(&appliance.folder, user);
    appliance.start_again();
    appliance.wait_until_ready();
    appliance
}

fn status(appliance: &Appliance) -> Value {
    let told = cloister(&["status", "--json", "--socket", &appliance.path("control.sock")]);
    serde_json::from_slice(&told.stdout).unwrap_or_default()
}

fn workers(appliance: &Appliance) -> BTreeSet<i32> {
    appliance.children("cloister-worker").into_iter().filter(|pid| is_running(*pid)).collect()
}

/// Waits until every place has a fresh worker.
fn all_fresh(appliance: &Appliance) -> BTreeSet<i32> {
    eventually("three fresh workers", || status(appliance)["models"][0]["workers"]["ready"] == 3);
    workers(appliance)
}

/// Asks for readiness and the list of models as long as `work` takes, and expects no other answer than yes.
fn always_ready<T>(appliance: &Appliance, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(appliance.get("/health/ready").unwrap().0, 200);
                let (status, models) = appliance.get("/v1/models").unwrap();
                assert!(status == 200 && models.contains("\"smol\""), "{status}: {models}");
                count += 1;
                std::thread::sleep(Duration::from_millis(3));
            }
            count
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        assert!(watcher.join().unwrap() > 0);
        outcome.unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    })
}

fn text(answer: &(u16, Value)) -> String {
    assert_eq!(answer.0, 200, "{}", answer.1);
    answer.1["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn every_request_has_a_process_of_its_own_which_is_gone_after_it() {
    for user in users() {
        let mut shared = Appliance::start(user);
        let question = ask("What is the capital of France?", 24);
        let expected = text(&shared.chat(&question));
        shared.stop();
        drop(shared);

        let mut appliance = one_each(user);
        always_ready(&appliance, || {
            let mut seen = all_fresh(&appliance);
            for _ in 0..4 {
                let before = workers(&appliance);
                assert_eq!(text(&appliance.chat(&question)), expected);
                eventually("the end of a worker", || !before.is_subset(&workers(&appliance)));
                let fresh = all_fresh(&appliance);
                assert_eq!(fresh.difference(&before).count(), 1, "{before:?} {fresh:?}");
                assert!(fresh.difference(&before).all(|pid| seen.insert(*pid)), "a new process");
            }
        });
        let ended = &status(&appliance)["models"][0]["workers"]["ended_after_one"];
        assert_eq!(ended, 4, "{ended}");
        appliance.stop();
        for (end, ended) in appliance.records("end").iter().zip(appliance.records("worker_ended")) {
            let (end, ended) = (&end["event"]["end"], &ended["event"]["worker_ended"]);
            assert_eq!(end["request"], ended["request"]);
        }
        assert_eq!(appliance.records("worker_ended").len(), 4);
        assert!(appliance.records("child_died").is_empty());
        // Before it was changed, a gateway and a worker; then a gateway, three workers, and one after each
        // request.
        assert_eq!(appliance.records("child_started").len(), 2 + 1 + 3 + 4);
        assert_eq!(appliance.verify_log()["verdict"], "INTACT");
    }
}

#[test]
fn many_at_once_a_cancel_a_refusal_and_a_kill_leave_it_ready() {
    let mut appliance = one_each(As::Oneself);
    let question = ask("Name three colours.", 12);
    always_ready(&appliance, || {
        all_fresh(&appliance);
        // Eight at once, with two that compute: all are answered, alike.
        let answers: Vec<String> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                (0..8).map(|_| scope.spawn(|| text(&appliance.chat(&question)))).collect();
            asked.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");

        // A fresh worker that is killed is followed by another. Until its death is seen, which takes the kernel as
        // long as it needs to take back its memory, it can be given a request, which is then told to try again.
        let killed = *all_fresh(&appliance).first().unwrap();
        kill(killed, "KILL");
        eventually("its death on the record", || appliance.records("child_died").len() == 1);
        assert_eq!(text(&appliance.chat(&question)), answers[0]);

        // A client that leaves in the middle, a request that is refused by its worker.
        let before = all_fresh(&appliance);
        drop(start_stream(&appliance));
        eventually("the end of the cancelled one's worker", || {
            !before.is_subset(&workers(&appliance))
        });
        let before = all_fresh(&appliance);
        assert_eq!(appliance.chat(&ask("too long", 4000)).0, 400);
        eventually("the end of the refused one's worker", || {
            !before.is_subset(&workers(&appliance))
        });

        // One that dies in the middle fails its request alone.
        let before = all_fresh(&appliance);
        let stream = start_stream(&appliance);
        assert_eq!(status(&appliance)["models"][0]["workers"]["serving_one"], 1);
        for pid in &before {
            kill(*pid, "KILL");
        }
        drain(stream);
        eventually("their deaths on the record", || appliance.records("child_died").len() == 4);
        assert_eq!(text(&appliance.chat(&question)), answers[0]);
        all_fresh(&appliance);
    });
    assert_eq!(status(&appliance)["state"], "serving");
    appliance.stop();
    assert_eq!(appliance.records("end_missing").len(), 1);
    assert_eq!(appliance.records("child_died").len(), 4, "one, and three");
    let outcomes = appliance.records("end");
    let count = |outcome: &str| {
        let is_it = |end: &&Value| end["event"]["end"]["declared"]["outcome"] == outcome;
        outcomes.iter().filter(is_it).count()
    };
    assert_eq!((count("cancelled"), count("refused")), (1, 1));
    assert_eq!(appliance.records("worker_ended").len(), outcomes.len());
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

#[test]
fn nothing_of_a_request_is_in_any_process_after_its_worker() {
    if !is_root() {
        return support::skip("the memory of living processes", "the tests run as a plain user");
    }
    let mut appliance = one_each(As::Oneself);
    let before = all_fresh(&appliance);
    let [prompt, stop] = [canary(21), canary(22)];
    let mut stream = ask(&format!("Count from one to a million, in honour of {prompt}"), 1500);
    stream["stream"] = true.into();
    stream["stop"] = stop.clone().into();
    let mut open = appliance.post("/v1/chat/completions", &stream);
    open.read_exact(&mut [0; 400]).unwrap();
    let found = hunt(&appliance, &stop);
    assert!(found.iter().any(|at| at.starts_with("worker")), "the control: {found:?}");
    drop(open);
    eventually("the end of its worker", || !before.is_subset(&workers(&appliance)));
    let answered = canary(23);
    assert_eq!(appliance.chat(&ask(&format!("Say: {answered}"), 16)).0, 200);
    eventually("the end of both workers", || appliance.records("worker_ended").len() == 2);
    for text in [prompt, stop, answered] {
        gone(&appliance, &text, "its worker");
    }
    appliance.stop();
}

/// The middle of some measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Milliseconds from a question to the first text of its answer.
fn first_text_ms(appliance: &Appliance, question: &Value) -> f64 {
    let start = Instant::now();
    let stream = appliance.post("/v1/chat/completions", question);
    let mut lines = BufReader::new(&stream).lines().map(|line| line.unwrap());
    assert!(
        lines.any(|line| line.contains("\"content\":\"") && !line.contains("\"content\":\"\""))
    );
    let waited = start.elapsed();
    lines.for_each(drop);
    waited.as_secs_f64() * 1e3
}

/// Requests in a second, of eight clients that ask three times each.
fn requests_per_s(appliance: &Appliance, question: &Value) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..3).for_each(|_| assert_eq!(appliance.chat(question).0, 200)));
        }
    });
    24.0 / start.elapsed().as_secs_f64()
}

#[test]
#[ignore = "a measurement: a minute with --release"]
fn what_a_worker_for_each_request_costs() {
    let mut shared = Appliance::start(As::Oneself);
    shared.stop();
    // The same number at once, and nothing kept, so that both compute the same.
    shared.change_config("[worker]\n", "[worker]\nsequences = 2\nprefix_tokens = 0\n");
    shared.start_again();
    shared.wait_until_ready();
    let one_each = one_each(As::Oneself);
    let mut stream = ask("Name three colours and say where they are seen.", 32);
    stream["stream"] = true.into();
    let mut figures = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    let mut ready_ms = Vec::new();
    for round in 0..7 {
        for (appliance, [first, rate]) in [&shared, &one_each].into_iter().zip(&mut figures) {
            for _ in 0..5 {
                first.push(first_text_ms(appliance, &stream));
            }
            rate.push(requests_per_s(appliance, &ask("Name three colours.", 32)));
            let workers = &status(appliance)["models"][0]["workers"];
            if round > 0 && workers["lifetime"] == "request" {
                ready_ms.push(workers["ready_after_ms"].as_f64().unwrap());
            }
        }
        all_fresh(&one_each);
    }
    let [[first, rate], [first_each, rate_each]] = figures.map(|each| each.map(median));
    support::tell(&format!(
        "a worker for each request (SmolLM2, two at once, medians of 7 rounds by turns): \
         ready {:.0} ms after its start is ordered; first text of a lone request {first_each:.0} ms \
         beside {first:.0} ms; {rate_each:.2} requests/s of 8 clients beside {rate:.2} ({:.2} x)",
        median(ready_ms),
        rate_each / rate
    ));
}
