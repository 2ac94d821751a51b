//! Events with every member and every word that the code can write, for the tests of the schema.

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, Visitor, value};

use super::*;

/// The names of a closed set, as `serde` has them from the type itself.
struct Names;

impl<'de> Deserializer<'de> for Names {
    type Error = value::Error;

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom(names.join(" ")))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("no closed set"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// The names of all variants.
pub(crate) fn names<'de, T: Deserialize<'de> + std::fmt::Debug>() -> Vec<String> {
    let names = T::deserialize(Names).unwrap_err().to_string();
    names.split(' ').map(ToOwned::to_owned).collect()
}

/// All words of a closed set.
fn words<T: DeserializeOwned + std::fmt::Debug>() -> impl Iterator<Item = T> {
    names::<T>().into_iter().map(|name| serde_json::from_value(name.into()).unwrap())
}

fn sha256() -> String {
    "1f".repeat(32)
}

fn request() -> String {
    "2e".repeat(16)
}

fn id() -> String {
    "3d".repeat(8)
}

fn keyed() -> KeyedDigest {
    KeyedDigest { nonce: "4c".repeat(16), hmac: sha256() }
}

fn model() -> String {
    "a/model:1.5-q8_0".into()
}

/// At least one of each event.
pub(crate) fn all() -> Vec<Event> {
    [starts(), requests(), refusals(), keys(), children(), operators()].concat()
}

fn starts() -> Vec<Event> {
    let (supervisor, gateway, worker) = (sha256(), sha256(), sha256());
    let programs = ProgramFacts { supervisor, gateway, worker, worker_gpu: Some(sha256()) };
    let start = |profile: &str| StartFacts {
        version: env!("CARGO_PKG_VERSION").into(),
        profile: profile.into(),
        config_digest: sha256(),
        policy_digest: sha256(),
        build_digest: sha256(),
        programs: programs.clone(),
        landlock_abi: 7,
        retention: Some(RetentionTimes {
            preset: Some(RetentionPreset::Eu),
            min_s: 183 * 86_400,
            max_s: Some(366 * 86_400),
        }),
        tpm_counter: Some(17),
    };
    let by_us = RetentionTimes { preset: Some(RetentionPreset::Us), min_s: 1, max_s: None };
    let mut events = vec![
        Event::Start { observed: start("full") },
        Event::Start { observed: StartFacts { retention: Some(by_us), ..start("evaluation") } },
        Event::Stop {},
        Event::Recovered { observed: RecoveredFacts { dropped_bytes: 5 } },
        Event::EventsDropped { observed: DroppedFacts { count: 5 } },
        Event::ModelOpened {
            observed: ModelFacts {
                model: model(),
                digest: sha256(),
                signer: "a label".into(),
                sealed: true,
                admitted_s: Some(1_795_000_000),
            },
        },
        Event::ModelRefused {
            observed: ModelRefusedFacts { model: model(), check: "the loader refused it".into() },
            declared: Some(LoaderFacts { check: "tensor 3 of 4 is too short".into() }),
        },
    ];
    events.extend(words().map(|part| Event::ConfigChanged {
        observed: ChangeFacts { part, before: sha256(), after: sha256() },
    }));
    events.extend(words().map(|setting| Event::Override {
        observed: OverrideFacts { setting, model: Some(model()) },
    }));
    events.extend(
        words().map(|direction| Event::ClockJump {
            observed: ClockFacts { direction, by_s_max: 4096 },
        }),
    );
    events
}

fn requests() -> Vec<Event> {
    let begin = |role: &str, endpoint: &str| Event::Begin {
        request: request(),
        observed: BeginFacts {
            principal: id(),
            role: role.into(),
            model: model(),
            model_digest: sha256(),
            policy_digest: sha256(),
            build_digest: sha256(),
        },
        declared: AskedFacts { endpoint: endpoint.into(), max_tokens: 16, stream: true },
    };
    let end = |outcome: &str| Event::End {
        request: request(),
        observed: EndedFacts { duration_s_max: 2 },
        declared: EndFacts {
            outcome: outcome.into(),
            messages: vec![keyed(), keyed()],
            answer: keyed(),
            parameters: keyed(),
            prompt_tokens_max: 64,
            completion_tokens_max: 0,
        },
    };
    let mut events = vec![begin("user", "chat"), begin("admin", "completion")];
    events.extend(["stop", "length", "cancelled", "refused", "failed"].map(end));
    events.extend(words().map(|cause| Event::end_missing(request(), cause)));
    events
}

fn refusals() -> Vec<Event> {
    let mut events = vec![Event::TicketMissing {
        observed: TicketFacts { model: model() },
        declared: TicketRequestFacts { request: request() },
    }];
    events.extend(words().map(|reason| Event::Refused {
        observed: RefusedFacts { reason, count: 3, principal: Some(id()) },
    }));
    events.extend(words().map(|cause| Event::AuthenticationFailed {
        observed: Some(AuthenticationFacts { cause, count: 3, principal: Some(id()) }),
        declared: None,
    }));
    events.extend(words().map(|cause| Event::AuthenticationFailed {
        observed: None,
        declared: Some(UnaskedFacts { cause, count: 3 }),
    }));
    events
}

fn keys() -> Vec<Event> {
    let public = "cloister/audit+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    let rotation = |key, name: &str| Event::KeyRotated {
        observed: RotationFacts {
            key,
            before: name.into(),
            after: name.into(),
            uid: 0,
            size: Some(7),
            count: Some(2),
        },
    };
    let mut events = vec![rotation(KeyRole::Audit, public), rotation(KeyRole::Wrapping, &id())];
    for key in words() {
        events.push(Event::KeyCreated { observed: KeyFacts { key, id: id() } });
        events.push(Event::KeyUsed { observed: KeyUseFacts { key, count: 2 } });
        events.push(Event::KeyDestroyed { observed: KeyFacts { key, id: id() } });
    }
    events
}

fn children() -> Vec<Event> {
    let worker = || ChildFacts { child: "worker a/model:1.5-q8_0 2".into() };
    let died = |panic: &str| Event::ChildDied {
        observed: DeathFacts { child: "gateway".into(), cause: "killed by signal 9".into() },
        declared: Some(PanicFacts { panic: panic.into() }),
    };
    vec![
        Event::ChildStarted { observed: worker() },
        Event::WorkerEnded { request: request(), observed: worker() },
        died("declared a panic at src/worker/session.rs:90"),
        died("declared a panic outside of Cloister's own sources"),
        Event::SandboxViolation { observed: ViolationFacts { child: "opener".into(), signal: 31 } },
    ]
}

fn operators() -> Vec<Event> {
    let mut events = vec![
        Event::TokensLoaded {
            observed: TokensFacts { digest: sha256(), before: Some(sha256()), count: 1 },
        },
        Event::CertificateLoaded {
            observed: CertificateFacts { digest: sha256(), before: Some(sha256()) },
        },
        Event::RetentionRun {
            observed: RetentionFacts { before: 256, older_than_s: 86_400, forced: false },
        },
        Event::ErasureAsked {
            observed: ErasureAskedFacts { principal: id(), uid: 1000, confirmations: 1, needed: 2 },
        },
        Event::Erased { observed: ErasedFacts { principal: id(), by: vec![0, 1000] } },
    ];
    events.extend(words().map(|outcome| Event::Reloaded {
        observed: ReloadFacts { outcome, uid: Some(0), check: Some("token table".into()) },
    }));
    events.extend(words().map(|action| Event::LogRead {
        observed: ReaderFacts { uid: 0, count: Some(2) },
        declared: LogReadFacts {
            action,
            records_max: 1024,
            from_s: Some(1_794_000_000),
            to_s: Some(1_795_000_000),
        },
    }));
    events
}
