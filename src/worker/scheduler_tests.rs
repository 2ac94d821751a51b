//! Requests through the scheduler: what is answered does not depend on guesses, prefixes or company.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use kernels::Isa;
use nix::unistd::pipe;

use super::link::{Mouth, Said, Sayings};
use super::prepare::{Digests, Prepared};
use super::scheduler::{Heard, Scheduler};
use super::text::Text;
use super::tickets::Right;
use super::turns::STEP_TOKENS_MAX;
use crate::cli::fetch::{SMOLLM2, fetch};
use crate::cli::packed_file::PackedFile;
use crate::engine::Engine;
use crate::engine::{CacheDomain, Model, Options};
use crate::ipc::message::{Digest, Finish, FromWorker, RequestId, Sampling, Ticket};

/// What was answered: text, why it ended, how many tokens, and how many were there before.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    text: String,
    finish: Finish,
    completion_tokens: u32,
    cached_tokens: u32,
}

struct Served<'m> {
    scheduler: Scheduler<'m>,
    said: Arc<Sayings>,
    sender: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
    steps: usize,
}

impl<'m> Served<'m> {
    fn new(model: &'m Model<'m>, text: &'m Text, keep: Duration, guess: usize) -> Self {
        let options = Options {
            sequences_max: 6,
            cache_len: 6 * 512,
            tokens_max: STEP_TOKENS_MAX,
            logits_max: 16,
            prefix_domains: 2,
            prefix_pages: 16,
            ..Options::fast(Isa::detect(), 2, 512)
        };
        let engine = Engine::new(model, options).unwrap();
        let said = Arc::<Sayings>::default();
        let (_, wake) = pipe().unwrap();
        let mouth = Mouth::new(Arc::clone(&said), Arc::new(wake));
        let scheduler = Scheduler::new(engine, text, mouth, (keep, guess));
        let (sender, heard) = mpsc::channel();
        Self { scheduler, said, sender, heard, steps: 0 }
    }

    fn answers(&mut self, requests: Vec<Prepared>) -> Vec<Answer> {
        let ids: Vec<RequestId> = requests.iter().map(|prepared| prepared.request).collect();
        for prepared in requests {
            self.sender.send(Heard::Start(Box::new(prepared))).unwrap();
        }
        let (mut texts, mut ended) = (HashMap::<RequestId, String>::new(), HashMap::new());
        while ended.len() < ids.len() {
            assert!(self.scheduler.turn(&self.heard));
            self.steps += 1;
            while let Some(said) = self.said.take() {
                match said {
                    Said::Gateway(FromWorker::Delta { request, text }) => {
                        texts.entry(request).or_default().push_str(&text);
                    }
                    Said::Gateway(FromWorker::Done {
                        request,
                        finish,
                        completion_tokens,
                        cached_tokens,
                        ..
                    }) => {
                        let text = texts.remove(&request).unwrap_or_default();
                        let answer = Answer { text, finish, completion_tokens, cached_tokens };
                        assert!(ended.insert(request, answer).is_none());
                    }
                    Said::Gateway(FromWorker::Failed { failure, .. }) => panic!("{failure:?}"),
                    Said::Gateway(FromWorker::Started { .. }) | Said::Supervisor(_) => {}
                }
            }
        }
        ids.iter().map(|id| ended[id].clone()).collect()
    }

    fn answer(&mut self, prepared: Prepared) -> Answer {
        self.answers(vec![prepared]).remove(0)
    }
}

fn prepared(id: u8, tokens: Vec<u32>, sampling: Sampling, domain: Option<[u8; 16]>) -> Prepared {
    let ticket = Ticket {
        request: RequestId([id; 16]),
        cache_domain: domain,
        max_tokens: 40,
        deadline_ms: 600_000,
    };
    Prepared {
        request: ticket.request,
        right: Right { ticket, deadline: Instant::now() + Duration::from_secs(600) },
        tokens,
        sampling,
        stop: vec!["3, 4, 5, 6, 1".to_owned()],
        max_tokens: ticket.max_tokens,
        digests: Digests { messages: Vec::new(), parameters: Digest([0; 32]) },
    }
}

/// Prompts that repeat themselves and others, each with another way of choosing tokens.
fn requests(text: &Text) -> Vec<Prepared> {
    let prompts = [
        "1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2, 3,",
        "let a = b + c; let d = b + c; let e = b + c; let f = b +",
        "Once upon a time there was",
    ];
    let seeded = |seed| Sampling {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        seed: Some(seed),
        ..Sampling::greedy()
    };
    let punished = Sampling {
        repeat_penalty: 1.1,
        frequency_penalty: 0.3,
        presence_penalty: 0.2,
        ..seeded(2)
    };
    let samplings = [Sampling::greedy(), seeded(1), punished];
    let pairs = prompts.iter().flat_map(|prompt| samplings.iter().map(move |one| (prompt, one)));
    (0..)
        .zip(pairs)
        .map(|(id, (prompt, sampling))| {
            prepared(id, text.prompt_tokens(prompt), sampling.clone(), None)
        })
        .collect()
}

fn hold_guesses(path: &Path, saves_steps: bool) {
    let file = PackedFile::read(path).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let text = Text::from_metadata(&model.header().metadata).unwrap();
    let serve = |guess| Served::new(&model, &text, Duration::from_secs(600), guess);
    let mut plain = serve(0);
    let want: Vec<_> = requests(&text).into_iter().map(|one| plain.answer(one)).collect();
    for guess in [1, 15] {
        let mut served = serve(guess);
        let found: Vec<_> = requests(&text).into_iter().map(|one| served.answer(one)).collect();
        assert_eq!(found, want, "alone, {guess} guessed");
        if saves_steps && guess > 1 {
            assert!(served.steps * 5 < plain.steps * 4, "{} of {}", served.steps, plain.steps);
        }
        let together = serve(guess).answers(requests(&text));
        assert_eq!(together, want, "together, {guess} guessed");
    }
    assert_eq!(serve(0).answers(requests(&text)), want, "together");
    assert!(want.iter().any(|answer| answer.finish == Finish::Stop) || !saves_steps);
    assert!(want.iter().any(|answer| answer.completion_tokens == 40));
}

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(format!("{name}.gguf"))
}

#[test]
fn an_idle_scheduler_holds_no_token_of_a_prompt() {
    const TOKEN: u32 = 0x77;
    let file = PackedFile::read(&tiny("llama")).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let text = Text::from_metadata(&model.header().metadata).unwrap();
    let mut served = Served::new(&model, &text, Duration::from_secs(600), 0);
    let count = |served: &Served<'_>| {
        let held = served.scheduler.held();
        held.chunks_exact(4).filter(|word| *word == TOKEN.to_ne_bytes()).count()
    };
    served.answer(prepared(1, vec![TOKEN; 100], Sampling::greedy(), None));
    assert!(count(&served) >= 99, "steps of answers are shorter");
    served.sender.send(Heard::AreYouThere).unwrap();
    assert!(served.scheduler.turn(&served.heard));
    assert_eq!(count(&served), 0);
}

fn smollm2() -> PathBuf {
    fetch(&SMOLLM2, &Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models")).unwrap()
}

#[test]
fn guesses_change_no_answer_of_a_real_model_and_save_steps() {
    hold_guesses(&smollm2(), true);
}

#[test]
fn guesses_change_no_answer_of_a_tiny_model() {
    for name in ["llama3_ropefreqs", "qwen2", "gemma3"] {
        hold_guesses(&tiny(name), false);
    }
}

#[test]
fn prefixes_change_no_answer_and_end_when_they_must() {
    let file = PackedFile::read(&smollm2()).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let text = Text::from_metadata(&model.header().metadata).unwrap();
    let prompt = text.prompt_tokens(&"The sheep jumps over the fence. ".repeat(12));
    assert!((65..400).contains(&prompt.len()));
    let whole = u32::try_from((prompt.len() - 1) / 32 * 32).unwrap();
    let ask = |served: &mut Served<'_>, domain: Option<u8>| {
        let domain = domain.map(|number| [number; 16]);
        served.answer(prepared(1, prompt.clone(), Sampling::greedy(), domain))
    };
    for guess in [0, 8] {
        let mut served = Served::new(&model, &text, Duration::from_secs(600), guess);
        let cold = ask(&mut served, Some(1));
        assert_eq!(cold.cached_tokens, 0);
        let warm = Answer { cached_tokens: whole, ..cold.clone() };
        assert_eq!(ask(&mut served, Some(1)), warm);
        assert_eq!(ask(&mut served, None), cold);
        assert_eq!(ask(&mut served, Some(2)), cold);
        // What a cancelled request had read is kept too.
        let long = text.prompt_tokens(&"A wolf watches them. ".repeat(60));
        let read = |served: &mut Served<'_>| {
            let asked = prepared(2, long.clone(), Sampling::greedy(), Some([1; 16]));
            served.sender.send(Heard::Start(Box::new(asked))).unwrap();
            assert!(served.scheduler.turn(&served.heard));
            served.sender.send(Heard::Cancel(RequestId([2; 16]))).unwrap();
            assert!(served.scheduler.turn(&served.heard));
        };
        read(&mut served);
        while served.said.take().is_some() {}
        let again = served.answer(prepared(3, long.clone(), Sampling::greedy(), Some([1; 16])));
        assert!(again.cached_tokens > 0);
        served.sender.send(Heard::Forget(CacheDomain([1; 16]))).unwrap();
        assert_eq!(ask(&mut served, Some(1)), cold, "forgotten");
        let mut at_once = Served::new(&model, &text, Duration::ZERO, guess);
        for _ in 0..2 {
            assert_eq!(ask(&mut at_once, Some(1)), cold, "kept for no time");
        }
    }
}
