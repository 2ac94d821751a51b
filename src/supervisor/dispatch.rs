//! What follows from each message of the gateway and the workers: records, tickets, answers.
//!
//! No I/O but the audit log: messages come in, effects go out, so that every order of events can
//! be tested. A begin record is durable before its ticket exists, and the ticket is sent before
//! the gateway hears of it. A child that says what the table does not allow gets an `Err` here
//! and dies in `serve`.

mod pulse;
mod reload;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use self::pulse::{Pulse, alive};
use super::cache_domains::CacheDomains;
use super::config::Limits;
use super::ledger::{Ledger, request_name};
use super::records::{blind, end_event, endpoint_name, is_plain, panic_text, refusal_reason};
use super::refusals::Refusals;
use super::table::{Fault, Kind, Phase, Place, gateway_kind, worker_kind};
use super::tls::TlsKey;
use super::tokens::TokenTable;
use crate::audit::Event;
use crate::audit::principal_keys::hex;
use crate::audit::record::{AskedFacts, BeginFacts, KeyRole, MissingCause, bucket};
use crate::ipc::message::{
    Denial, Digest, EndReport, FromGateway, MESSAGES_COUNT_MAX, ModelIndex, Outcome, RequestId,
    Ticket, ToGateway, ToWorkerControl, WorkerReport,
};

/// Time a worker has to report the end of a request that must stop, at least: a step of the engine
/// may take as long as a part that hangs is given.
const END_GRACE_MIN: Duration = Duration::from_secs(10);
/// Time a worker has to report the end of a request that the gateway never brought it.
const ABANDON_GRACE: Duration = Duration::from_secs(2);
/// Ended requests that a late word of the other child may still name.
const ENDED_COUNT_MAX: usize = 4096;

/// The moment of a turn of the loop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// Seconds since 1970.
    pub(super) wall_s: u64,
    /// Never goes back.
    pub(super) instant: Instant,
}

/// What the loop must do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Tell the gateway.
    Gateway(ToGateway),
    /// Tell a worker.
    Worker(ModelIndex, ToWorkerControl),
    /// The gateway serves: tell it of the workers that do.
    GatewayReady,
    /// A worker serves: tell the gateway.
    WorkerReady(ModelIndex),
    /// A worker is to be ended, and why.
    WorkerStuck(ModelIndex, &'static str),
    /// A worker is to be replaced, and why.
    WorkerBroken(ModelIndex, &'static str),
    /// The gateway is to be ended, and why.
    GatewayStuck(&'static str),
}

/// A model and its worker.
struct Model {
    name: String,
    digest_hex: String,
    worker: Place,
    pulse: Option<Pulse>,
    context_len_tokens: u32,
    /// What the worker declared of itself.
    engine: String,
    /// Where its panic came from, until its death is recorded.
    panic: Option<String>,
}

/// A request between begin and end.
struct Request {
    model: ModelIndex,
    principal: String,
    begun: Instant,
    deadline: Instant,
    max_tokens: u32,
    is_stopping: bool,
    is_abandoned: bool,
}

/// A begin that waits for the commit of this turn.
struct Waiting {
    correlation: u64,
    id: RequestId,
    ticket: Ticket,
    request: Request,
}

/// The state behind the table.
pub(super) struct Dispatch {
    limits: Limits,
    tokens: TokenTable,
    tls: Option<TlsKey>,
    models: Vec<Model>,
    gateway: Place,
    gateway_pulse: Option<Pulse>,
    requests: HashMap<RequestId, Request>,
    waiting: Vec<Waiting>,
    ended: VecDeque<RequestId>,
    ended_set: HashSet<RequestId>,
    refusals: Refusals,
    cache_domains: CacheDomains,
    random: SystemRandom,
    /// Of this start alone.
    blinding: hmac::Key,
    effects: Vec<Effect>,
    is_stopping: bool,
}

impl Dispatch {
    /// No child serves yet. `models` are names and digests in the order of the configuration.
    ///
    /// `None` when the system gives no random bytes.
    pub(super) fn new(
        limits: Limits,
        cache_domains_max: u16,
        tokens: TokenTable,
        tls: Option<TlsKey>,
        models: Vec<(String, Digest)>,
    ) -> Option<Self> {
        let random = SystemRandom::new();
        let cache_domains = CacheDomains::new(cache_domains_max, &random)?;
        let models = models.into_iter().map(|(name, digest)| Model {
            name,
            digest_hex: hex(&digest.0),
            worker: Place::down(),
            pulse: None,
            context_len_tokens: 0,
            engine: String::new(),
            panic: None,
        });
        Some(Self {
            limits,
            tokens,
            tls,
            models: models.collect(),
            gateway: Place::down(),
            gateway_pulse: None,
            requests: HashMap::new(),
            waiting: Vec::new(),
            ended: VecDeque::new(),
            ended_set: HashSet::new(),
            refusals: Refusals::default(),
            cache_domains,
            blinding: hmac::Key::generate(hmac::HMAC_SHA256, &random).ok()?,
            random,
            effects: Vec::new(),
            is_stopping: false,
        })
    }

    /// Takes what the loop must do now.
    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Requests between begin and end.
    pub(super) fn open_count(&self) -> usize {
        self.requests.len() + self.waiting.len()
    }

    /// Whether begins wait for the commit of this turn.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Tokens that are valid now.
    pub(super) fn tokens_valid_count(&self, now: Now) -> usize {
        self.tokens.valid_count(now.wall_s)
    }

    /// Counts a use of the identity that opens models.
    pub(super) fn identity_used(&mut self) {
        self.refusals.key_used(KeyRole::ModelIdentity);
    }

    /// Appends all counted events, before the last record.
    pub(super) fn flush_counts(&mut self, ledger: &mut Ledger) {
        self.refusals.flush_now(ledger);
    }

    /// What the worker of a model declared of itself; `None` while it does not serve.
    pub(super) fn engine(&self, model: ModelIndex) -> Option<&str> {
        let model = self.models.get(usize::from(model.0))?;
        (model.worker.phase == Phase::Serving).then_some(model.engine.as_str())
    }

    /// The context that a serving worker declared.
    pub(super) fn context_len_tokens(&self, model: ModelIndex) -> Option<u32> {
        let model = self.models.get(usize::from(model.0))?;
        (model.worker.phase == Phase::Serving).then_some(model.context_len_tokens)
    }

    /// Whether the gateway said `Ready`.
    pub(super) fn is_gateway_serving(&self) -> bool {
        self.gateway.phase == Phase::Serving
    }

    /// A fresh gateway was started.
    pub(super) fn gateway_started(&mut self) {
        self.gateway = Place::starting();
    }

    /// A fresh worker was started.
    pub(super) fn worker_started(&mut self, model: ModelIndex) {
        if let Some(model) = self.models.get_mut(usize::from(model.0)) {
            model.worker = Place::starting();
            model.panic = None;
        }
    }

    /// From now on every begin is denied.
    pub(super) fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// The gateway is gone: whom its requests were for, nobody can tell any more.
    pub(super) fn gateway_gone(&mut self, ledger: &mut Ledger) {
        self.gateway = Place::down();
        self.gateway_pulse = None;
        self.close_all(ledger, MissingCause::GatewayGone, |_| true);
    }

    /// A worker is gone. Returns where it panicked, if it said so.
    pub(super) fn worker_gone(&mut self, index: ModelIndex, ledger: &mut Ledger) -> Option<String> {
        self.close_all(ledger, MissingCause::WorkerGone, |request| request.model == index);
        let model = self.models.get_mut(usize::from(index.0))?;
        let panic = model.panic.take();
        let was_serving = model.worker.phase == Phase::Serving;
        model.worker = Place::down();
        model.pulse = None;
        if was_serving {
            self.answer(ToGateway::WorkerDown { model: index });
        }
        panic
    }

    fn close_all(
        &mut self,
        ledger: &mut Ledger,
        cause: MissingCause,
        is_hit: impl Fn(&Request) -> bool,
    ) {
        let hit: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(_, request)| is_hit(request))
            .map(|(id, _)| *id)
            .collect();
        for id in hit {
            self.close(id);
            ledger.append(Event::EndMissing { request: request_name(id), cause });
        }
    }

    /// Forgets a request but for its name.
    fn close(&mut self, id: RequestId) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        self.ended.push_back(id);
        self.ended_set.insert(id);
        if self.ended.len() > ENDED_COUNT_MAX
            && let Some(oldest) = self.ended.pop_front()
        {
            self.ended_set.remove(&oldest);
        }
        Some(request)
    }

    /// One message of the gateway.
    ///
    /// # Errors
    ///
    /// [`Fault`]: the gateway must die.
    pub(super) fn hear_gateway(
        &mut self,
        message: FromGateway,
        ledger: &mut Ledger,
        now: Now,
    ) -> Result<(), Fault> {
        self.gateway.permit(gateway_kind(&message))?;
        match message {
            FromGateway::Ready => {
                self.gateway.phase = Phase::Serving;
                self.gateway_pulse = Some(Pulse::new(self.limits.hang(), now.instant));
                self.effects.push(Effect::GatewayReady);
            }
            FromGateway::Begin { correlation, key, endpoint, model, max_tokens, stream } => {
                let asked = AskedFacts {
                    endpoint: endpoint_name(endpoint).to_owned(),
                    max_tokens: bucket(max_tokens.into()),
                    stream,
                };
                if let Err((denial, principal)) =
                    self.begin(correlation, &key, &model, max_tokens, asked, (ledger, now))
                {
                    self.deny(correlation, denial, principal);
                }
            }
            FromGateway::Authorize { correlation, key } => {
                match self.tokens.find(&key, now.wall_s) {
                    Some(_) => self.answer(ToGateway::Authorized { correlation }),
                    None => self.deny(correlation, Denial::KeyInvalid, None),
                }
            }
            FromGateway::Sign { correlation, scheme, message } => {
                let key = self.tls.as_ref().ok_or(Fault::Moment(Kind::Sign))?;
                let signature = key.sign(scheme, &message).ok_or(Fault::Value(Kind::Sign))?;
                self.refusals.key_used(KeyRole::Tls);
                self.answer(ToGateway::Signature { correlation, signature });
            }
            FromGateway::Abandoned { request } => self.abandoned(request, now)?,
            FromGateway::Alive => alive(&mut self.gateway_pulse, Kind::GatewayAlive, now)?,
            FromGateway::WorkerBroken { model } => self.worker_broken(model)?,
        }
        Ok(())
    }

    fn begin(
        &mut self,
        correlation: u64,
        key: &Digest,
        model: &str,
        max_tokens: u32,
        declared: AskedFacts,
        (ledger, now): (&mut Ledger, Now),
    ) -> Result<(), (Denial, Option<String>)> {
        let token = self.tokens.find(key, now.wall_s).ok_or((Denial::KeyInvalid, None))?;
        let (principal, role) = (token.name.clone(), token.role);
        let denied = |denial| (denial, Some(principal.clone()));
        if self.is_stopping {
            return Err(denied(Denial::Stopping));
        }
        let index = match model {
            "" => Some(0),
            name => self.models.iter().position(|model| model.name == name),
        };
        let index = index.ok_or_else(|| denied(Denial::ModelUnknown))?;
        let model = self.models.get(index).ok_or_else(|| denied(Denial::ModelUnknown))?;
        if model.worker.phase != Phase::Serving {
            return Err(denied(Denial::ModelUnavailable));
        }
        let its_count = self.requests.values().chain(self.waiting.iter().map(|one| &one.request));
        let its_count = its_count.filter(|request| request.principal == principal).count();
        if self.open_count() >= self.limits.requests_max.into()
            || its_count >= self.limits.requests_per_key_max.into()
        {
            return Err(denied(Denial::TooManyRequests));
        }
        let unavailable = || denied(Denial::LogUnavailable);
        let mut id = [0; 16];
        self.random.fill(&mut id).map_err(|_| unavailable())?;
        let id = RequestId(id);
        let pseudonym = ledger.pseudonym(&principal).map_err(|_| unavailable())?;
        let observed = BeginFacts {
            principal: pseudonym,
            role: role.name().to_owned(),
            model: model.name.clone(),
            model_digest: model.digest_hex.clone(),
        };
        let limit = self.token_limit(max_tokens, model.context_len_tokens);
        let ticket = Ticket {
            request: id,
            cache_domain: self.cache_domains.find(&self.tokens, &principal),
            max_tokens: limit,
            deadline_ms: self.limits.request_deadline_ms,
        };
        let request = Request {
            model: ModelIndex(u16::try_from(index).map_err(|_| denied(Denial::ModelUnknown))?),
            principal: principal.clone(),
            begun: now.instant,
            deadline: now.instant + Duration::from_millis(self.limits.request_deadline_ms.into()),
            max_tokens: limit,
            is_stopping: false,
            is_abandoned: false,
        };
        ledger.append(Event::Begin { request: request_name(id), observed, declared });
        self.waiting.push(Waiting { correlation, id, ticket, request });
        Ok(())
    }

    /// The least of what was asked, what is allowed, and the context.
    fn token_limit(&self, asked: u32, context_len_tokens: u32) -> u32 {
        let some = |limit: u32| if limit == 0 { u32::MAX } else { limit };
        some(asked).min(some(self.limits.completion_tokens_max)).min(some(context_len_tokens))
    }

    fn answer(&mut self, message: ToGateway) {
        if self.gateway.phase == Phase::Serving {
            self.effects.push(Effect::Gateway(message));
        }
    }

    fn deny(&mut self, correlation: u64, reason: Denial, principal: Option<String>) {
        self.refusals.refused(refusal_reason(reason), principal);
        self.answer(ToGateway::Denied { correlation, reason });
    }

    fn abandoned(&mut self, id: RequestId, now: Now) -> Result<(), Fault> {
        let Some(request) = self.requests.get_mut(&id) else {
            // Its end crossed the gateway's word.
            return match self.ended_set.contains(&id) {
                true => Ok(()),
                false => Err(Fault::UnknownRequest(Kind::Abandoned)),
            };
        };
        if std::mem::replace(&mut request.is_abandoned, true) {
            return Err(Fault::Repeated(Kind::Abandoned));
        }
        revoke(id, request, ABANDON_GRACE, now, &mut self.effects);
        Ok(())
    }

    /// What passes between the two is not seen here: the gateway's word ends a worker, which it
    /// could also do itself. It does not count as a crash, so that no gateway brings a model to fail.
    fn worker_broken(&mut self, index: ModelIndex) -> Result<(), Fault> {
        let model = self.models.get(usize::from(index.0));
        let model = model.ok_or(Fault::Value(Kind::WorkerBroken))?;
        if model.worker.phase == Phase::Serving {
            let why = "sent the gateway what is no frame, by its word";
            self.effects.push(Effect::WorkerBroken(index, why));
        }
        Ok(())
    }

    /// One message of a worker.
    ///
    /// # Errors
    ///
    /// [`Fault`]: the worker must die.
    pub(super) fn hear_worker(
        &mut self,
        index: ModelIndex,
        report: WorkerReport,
        ledger: &mut Ledger,
        now: Now,
    ) -> Result<(), Fault> {
        let kind = worker_kind(&report);
        let model = self.models.get_mut(usize::from(index.0)).ok_or(Fault::Moment(kind))?;
        model.worker.permit(kind)?;
        match report {
            WorkerReport::Ready { context_len_tokens, engine } => {
                if context_len_tokens == 0 || !is_plain(&engine) {
                    return Err(Fault::Value(kind));
                }
                model.worker.phase = Phase::Serving;
                model.pulse = Some(Pulse::new(self.limits.hang(), now.instant));
                model.context_len_tokens = context_len_tokens;
                model.engine = engine;
                self.effects.push(Effect::WorkerReady(index));
            }
            WorkerReport::NoTicket { request } => {
                let name = blind(&self.blinding, request);
                self.refusals.ticket_missing(&model.name, &name);
            }
            WorkerReport::End(report) => self.end(index, &report, ledger, now)?,
            WorkerReport::Alive => alive(&mut model.pulse, kind, now)?,
            WorkerReport::Panicked { file, line } => {
                if !is_plain(&file) {
                    return Err(Fault::Value(kind));
                }
                model.panic = Some(panic_text(&file, line));
            }
        }
        Ok(())
    }

    fn end(
        &mut self,
        index: ModelIndex,
        report: &EndReport,
        ledger: &mut Ledger,
        now: Now,
    ) -> Result<(), Fault> {
        let Some(request) = self.requests.get(&report.request) else {
            return Err(match self.ended_set.contains(&report.request) {
                true => Fault::Repeated(Kind::End),
                false => Fault::UnknownRequest(Kind::End),
            });
        };
        if request.model != index {
            return Err(Fault::UnknownRequest(Kind::End));
        }
        let context_len_tokens =
            self.models.get(usize::from(index.0)).map_or(0, |model| model.context_len_tokens);
        let is_possible = report.messages.len() <= MESSAGES_COUNT_MAX
            && report.completion_tokens <= request.max_tokens
            && (report.outcome == Outcome::Refused || report.prompt_tokens <= context_len_tokens);
        if !is_possible {
            return Err(Fault::Value(Kind::End));
        }
        let duration = now.instant.saturating_duration_since(request.begun);
        let event = end_event(report, &request.principal, duration, ledger);
        self.close(report.request);
        ledger.append(event);
        Ok(())
    }

    /// Ends a turn: makes its records durable, then lets the begins have their tickets.
    ///
    /// Returns whether the log could be written.
    pub(super) fn commit(&mut self, ledger: &mut Ledger, now: Now) -> bool {
        self.refusals.flush(ledger, now.instant);
        if !ledger.is_pending() {
            return true;
        }
        let is_durable = ledger.commit().is_ok();
        for Waiting { correlation, id, ticket, request } in std::mem::take(&mut self.waiting) {
            if !is_durable {
                self.deny(correlation, Denial::LogUnavailable, Some(request.principal));
                continue;
            }
            let model = request.model;
            if let Some(cause) = self.missing(model) {
                ledger.append(Event::EndMissing { request: request_name(id), cause });
                self.deny(correlation, Denial::ModelUnavailable, Some(request.principal));
                continue;
            }
            self.requests.insert(id, request);
            self.effects.push(Effect::Worker(model, ToWorkerControl::Ticket(ticket)));
            self.answer(ToGateway::Begun { correlation, request: id, model });
        }
        if !is_durable {
            // What runs now could not be recorded to its end: cut it.
            let grace = self.end_grace();
            for (id, request) in self.requests.iter_mut().filter(|(_, one)| !one.is_stopping) {
                revoke(*id, request, grace, now, &mut self.effects);
            }
        }
        is_durable
    }

    /// Time a worker has to report the end of a request that must stop.
    fn end_grace(&self) -> Duration {
        self.limits.hang().max(END_GRACE_MIN)
    }

    /// Which child of a request died in the turn that it began.
    fn missing(&self, model: ModelIndex) -> Option<MissingCause> {
        if self.gateway.phase != Phase::Serving {
            return Some(MissingCause::GatewayGone);
        }
        let model = self.models.get(usize::from(model.0));
        let is_serving = model.is_some_and(|model| model.worker.phase == Phase::Serving);
        (!is_serving).then_some(MissingCause::WorkerGone)
    }

    /// Stops what ran out of time, and gives up what did not stop.
    pub(super) fn expire(&mut self, ledger: &mut Ledger, now: Now) {
        let (grace, mut overdue) = (self.end_grace(), Vec::new());
        for (id, request) in &mut self.requests {
            if now.instant < request.deadline {
                continue;
            }
            if request.is_stopping {
                overdue.push((*id, request.model, request.is_abandoned));
            } else {
                revoke(*id, request, grace, now, &mut self.effects);
            }
        }
        for (id, model, is_abandoned) in overdue {
            self.close(id);
            let cause = if is_abandoned { MissingCause::Abandoned } else { MissingCause::Deadline };
            ledger.append(Event::EndMissing { request: request_name(id), cause });
            if !is_abandoned {
                let why = "did not stop a request in time";
                self.effects.push(Effect::WorkerStuck(model, why));
            }
        }
    }
}

/// Tells the worker to stop a request within `grace`.
fn revoke(
    id: RequestId,
    request: &mut Request,
    grace: Duration,
    now: Now,
    effects: &mut Vec<Effect>,
) {
    request.is_stopping = true;
    request.deadline = now.instant + grace;
    effects.push(Effect::Worker(request.model, ToWorkerControl::Revoke { request: id }));
}

#[cfg(test)]
mod tests;
