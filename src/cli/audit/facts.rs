//! What review looks for in a record: the one place that knows each event.

use serde_json::Value;

use crate::audit::Event;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Area {
    /// A request, served or given up.
    Request,
    /// Who may do what.
    Access,
    /// The service and its parts.
    Service,
    /// What the sandbox or the tickets stopped.
    Sandbox,
    /// Models.
    Model,
    /// Configuration, tokens and certificates.
    Configuration,
    /// Long-term keys.
    Key,
    /// The log itself: read, kept, erased; and its clock.
    Log,
}

impl Area {
    /// The name in outputs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Access => "access",
            Self::Service => "service",
            Self::Sandbox => "sandbox",
            Self::Model => "model",
            Self::Configuration => "configuration",
            Self::Key => "key",
            Self::Log => "log",
        }
    }
}

/// How much a reviewer should look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    /// Everyday.
    Plain,
    /// Worth a look.
    Notice,
    /// Something was refused, lost or broke.
    Warning,
}

/// What review looks for in a record.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// What it is about.
    pub(super) area: Area,
    /// How much to look at it.
    pub(super) weight: Weight,
    /// What stands in the record, without the event's name.
    pub(super) members: Value,
}

/// Members that say how something came out, the first that is there.
const OUTCOMES: &[&str] =
    &["outcome", "reason", "cause", "check", "setting", "direction", "action", "part"];

impl Facts {
    /// The facts of an event.
    pub(super) fn of(event: &Event) -> Self {
        let (area, weight) = kind(event);
        Self { area, weight, members: members(event) }
    }

    /// A member, wherever it stands: what the supervisor saw comes first.
    pub(super) fn member(&self, name: &str) -> Option<&Value> {
        let places = [&self.members["observed"], &self.members["declared"], &self.members];
        places.into_iter().find_map(|place| place.get(name))
    }

    /// A member that is a text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.member(name).and_then(Value::as_str)
    }

    /// A member that is a number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.member(name).and_then(Value::as_u64)
    }

    /// The principal's pseudonym.
    pub(super) fn principal(&self) -> Option<&str> {
        self.text("principal")
    }

    /// The model's name.
    pub(super) fn model(&self) -> Option<&str> {
        self.text("model")
    }

    /// How it came out: an outcome, a reason, a cause.
    pub(super) fn outcome(&self) -> Option<&str> {
        OUTCOMES.iter().find_map(|name| self.text(name))
    }

    /// How many such happenings the record stands for.
    pub(super) fn count(&self) -> u64 {
        self.number("count").unwrap_or(1)
    }
}

/// What an event is about, and how much to look at it. An event that is not here does not compile.
fn kind(event: &Event) -> (Area, Weight) {
    use Area::{Access, Configuration, Key, Log, Model, Request, Sandbox, Service};
    use Weight::{Notice, Plain, Warning};
    match event {
        Event::Start { .. } | Event::Stop {} => (Service, Notice),
        Event::ChildStarted { .. } | Event::WorkerEnded { .. } => (Service, Plain),
        Event::ChildDied { .. } => (Service, Warning),
        Event::SandboxViolation { .. } | Event::TicketMissing { .. } => (Sandbox, Warning),
        Event::ModelOpened { .. } => (Model, Notice),
        Event::ModelRefused { .. } => (Model, Warning),
        Event::Begin { .. } => (Request, Plain),
        Event::End { declared, .. } => match declared.outcome.as_str() {
            "failed" | "refused" => (Request, Notice),
            _ => (Request, Plain),
        },
        Event::EndMissing { .. } => (Request, Warning),
        Event::Refused { .. } | Event::AuthenticationFailed { .. } => (Access, Warning),
        Event::KeyUsed { .. } => (Key, Plain),
        Event::KeyCreated { .. } | Event::KeyRotated { .. } | Event::KeyDestroyed { .. } => {
            (Key, Notice)
        }
        Event::TokensLoaded { .. } | Event::CertificateLoaded { .. } | Event::Reloaded { .. } => {
            (Configuration, Notice)
        }
        Event::ConfigChanged { .. } | Event::Override { .. } => (Configuration, Warning),
        Event::Recovered { .. } | Event::EventsDropped { .. } | Event::ClockJump { .. } => {
            (Log, Warning)
        }
        Event::LogRead { .. } => (Log, Plain),
        Event::RetentionRun { .. } | Event::ErasureAsked { .. } | Event::Erased { .. } => {
            (Log, Notice)
        }
    }
}

/// What stands in a record under the event's name.
pub(super) fn members(event: &Event) -> Value {
    let mut value = serde_json::to_value(event).unwrap_or_default();
    value.get_mut(event.name()).map(Value::take).unwrap_or_default()
}
