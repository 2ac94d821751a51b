//! Who may say what, when, how often: the one table that every message of a child passes.
//!
//! No line, no service; a message at the wrong moment or too often ends the child that sent it.

use std::fmt;

use crate::ipc::message::{FromGateway, WorkerReport};

/// Where a child is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// There is none.
    Down,
    /// Started; has not said `Ready`.
    Starting,
    /// Said `Ready`.
    Serving,
}

/// How often a child may say a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Often {
    /// Once in its life.
    Once,
    /// Once for each request; the handler knows the requests.
    OncePerRequest,
    /// Any number of times, a bounded number each turn.
    Any,
}

/// One line of the table.
struct Line {
    message: Kind,
    when: &'static [Phase],
    often: Often,
}

/// The kinds of messages that children send while serving.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    GatewayReady,
    Begin,
    Authorize,
    Sign,
    Abandoned,
    WorkerReady,
    NoTicket,
    End,
    Unused,
    Panicked,
    GatewayAlive,
    WorkerBroken,
    WorkerAlive,
    KeysMalformed,
    NoCard,
}

const fn line(message: Kind, when: &'static [Phase], often: Often) -> Line {
    Line { message, when, often }
}

const STARTING: &[Phase] = &[Phase::Starting];
const SERVING: &[Phase] = &[Phase::Serving];
const ALIVE: &[Phase] = &[Phase::Starting, Phase::Serving];

/// The table. The opener's and the loader's conversations are straight lines, in `opening`.
const TABLE: &[Line] = &[
    line(Kind::GatewayReady, STARTING, Often::Once),
    line(Kind::Begin, SERVING, Often::Any),
    line(Kind::Authorize, SERVING, Often::Any),
    line(Kind::Sign, SERVING, Often::Any),
    line(Kind::Abandoned, SERVING, Often::OncePerRequest),
    line(Kind::WorkerBroken, SERVING, Often::Any),
    line(Kind::KeysMalformed, SERVING, Often::Any),
    line(Kind::WorkerReady, STARTING, Often::Once),
    line(Kind::NoCard, STARTING, Often::Once),
    line(Kind::NoTicket, SERVING, Often::Any),
    line(Kind::End, SERVING, Often::OncePerRequest),
    line(Kind::Unused, SERVING, Often::OncePerRequest),
    line(Kind::Panicked, ALIVE, Often::Once),
    line(Kind::GatewayAlive, SERVING, Often::Any),
    line(Kind::WorkerAlive, SERVING, Often::Any),
];

/// How a child broke the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// Not at this moment.
    Moment(Kind),
    /// Not again.
    Repeated(Kind),
    /// About a request that is not this child's, or no more.
    UnknownRequest(Kind),
    /// A value that cannot be true.
    Value(Kind),
    /// Bytes that are no message.
    Codec(crate::ipc::Error),
    /// It did not take its messages.
    Stalled,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moment(kind) => write!(f, "broke protocol: {kind:?} at the wrong moment"),
            Self::Repeated(kind) => write!(f, "broke protocol: {kind:?} repeated"),
            Self::UnknownRequest(kind) => write!(f, "broke protocol: {kind:?} of no such request"),
            Self::Value(kind) => write!(f, "broke protocol: {kind:?} with an impossible value"),
            Self::Codec(error) => write!(f, "broke protocol: {error}"),
            Self::Stalled => write!(f, "did not take its messages"),
        }
    }
}

/// A child's place in the table.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Where it is in its life.
    pub(super) phase: Phase,
    said: Vec<Kind>,
}

impl Place {
    /// No child.
    pub(super) fn down() -> Self {
        Self { phase: Phase::Down, said: Vec::new() }
    }

    /// A fresh child.
    pub(super) fn starting() -> Self {
        Self { phase: Phase::Starting, said: Vec::new() }
    }

    /// Whether the child may say this now; notes that it did.
    pub(super) fn permit(&mut self, kind: Kind) -> Result<(), Fault> {
        let line = TABLE.iter().find(|line| line.message == kind).ok_or(Fault::Moment(kind))?;
        if line.often == Often::Once {
            if self.said.contains(&kind) {
                return Err(Fault::Repeated(kind));
            }
            self.said.push(kind);
        }
        if !line.when.contains(&self.phase) {
            return Err(Fault::Moment(kind));
        }
        Ok(())
    }
}

/// The kind of a gateway's message.
pub(super) fn gateway_kind(message: &FromGateway) -> Kind {
    match message {
        FromGateway::Ready => Kind::GatewayReady,
        FromGateway::Begin { .. } => Kind::Begin,
        FromGateway::Authorize { .. } => Kind::Authorize,
        FromGateway::Sign { .. } => Kind::Sign,
        FromGateway::Abandoned { .. } => Kind::Abandoned,
        FromGateway::Alive => Kind::GatewayAlive,
        FromGateway::WorkerBroken { .. } => Kind::WorkerBroken,
        FromGateway::KeysMalformed { .. } => Kind::KeysMalformed,
    }
}

/// The kind of a worker's message.
pub(super) fn worker_kind(message: &WorkerReport) -> Kind {
    match message {
        WorkerReport::Ready { .. } => Kind::WorkerReady,
        WorkerReport::NoTicket { .. } => Kind::NoTicket,
        WorkerReport::End(_) => Kind::End,
        WorkerReport::Unused { .. } => Kind::Unused,
        WorkerReport::NoCard { .. } => Kind::NoCard,
        WorkerReport::Panicked { .. } => Kind::Panicked,
        WorkerReport::Alive => Kind::WorkerAlive,
    }
}
