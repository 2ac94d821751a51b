//! What follows from each message of the gateway and the workers: records, tickets, answers.
//!
//! No I/O but the audit log: messages come in, effects go out, so that every order of events can
//! be tested. A begin record is durable before its ticket exists, and the ticket is sent before
//! the gateway hears of it. A child that says what the table does not allow gets an `Err` here
//! and dies in `serve`.

mod authenticate;
mod cuts;
mod pool;
mod pulse;
mod reload;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use self::pool::{Found, Model, Worker};
use self::pulse::{Pulse, alive};
use super::cache_domains::CacheDomains;
use super::config::{self, Lifetime, Limits};
use super::ledger::{Ledger, Principal, request_name};
use super::records::{blind, end_event, endpoint_name, is_plain, panic_text, refusal_reason};
use super::refusals::Refusals;
use super::table::{Fault, Kind, Phase, Place, gateway_kind, worker_kind};
use super::tls::TlsKey;
use super::tokens::TokenTable;
use crate::audit::Event;
use crate::audit::principal_keys::hex;
use crate::audit::record::{AskedFacts, KeyRole, MissingCause, bucket};
use crate::ipc::message::{
    Denial, Digest, EndReport, FromGateway, MESSAGES_COUNT_MAX, ModelIndex, Outcome, RequestId,
    Ticket, ToGateway, ToWorkerControl, WorkerIndex, WorkerReport,
};

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
    Worker(WorkerIndex, ToWorkerControl),
    /// The gateway serves: tell it of the models and workers that do.
    GatewayReady,
    /// Requests for a model are taken: tell the gateway.
    ModelReady(ModelIndex),
    /// A worker serves: bring it and the gateway together.
    WorkerReady(WorkerIndex),
    /// No card computes what was asked of a worker, and why, by its word.
    NoCard(WorkerIndex, String),
    /// A worker is to be ended, and why.
    WorkerStuck(WorkerIndex, &'static str),
    /// A worker is to be replaced, and why.
    WorkerBroken(WorkerIndex, &'static str),
    /// A worker has served its one request and is to be ended.
    WorkerDone(WorkerIndex),
    /// The gateway is to be ended, and why.
    GatewayStuck(&'static str),
}

/// A request between begin and end.
struct Request {
    model: ModelIndex,
    /// Which worker has its ticket; none while it waits for one.
    worker: Option<WorkerIndex>,
    ticket: Ticket,
    principal: Principal,
    begun: Instant,
    deadline: Instant,
    max_tokens: u32,
    /// Why it must stop; its worker has been told.
    stopping: Option<MissingCause>,
    is_abandoned: bool,
}

/// A begin that waits for the commit of this turn.
struct Beginning {
    correlation: u64,
    id: RequestId,
    request: Request,
}

/// The state behind the table.
pub(super) struct Dispatch {
    limits: Limits,
    lifetime: Lifetime,
    /// Workers of a model that serve one request each, at once.
    computing_count: u16,
    tokens: TokenTable,
    tls: Option<TlsKey>,
    models: Vec<Model>,
    workers: Vec<Worker>,
    gateway: Place,
    gateway_pulse: Option<Pulse>,
    requests: HashMap<RequestId, Request>,
    beginning: Vec<Beginning>,
    ended: VecDeque<RequestId>,
    /// Those, and whether its worker's answer to an order to stop may still come.
    ended_set: HashMap<RequestId, bool>,
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
        worker: config::Worker,
        tokens: TokenTable,
        tls: Option<TlsKey>,
        models: Vec<(String, Digest)>,
    ) -> Option<Self> {
        let random = SystemRandom::new();
        let lifetime = worker.lifetime;
        let cache_domains_max = match lifetime {
            Lifetime::Model => worker.prefix_principals,
            // Nothing is kept.
            Lifetime::Request => 0,
        };
        let cache_domains = CacheDomains::new(cache_domains_max, &random)?;
        let indices = (0..).map(ModelIndex).take(models.len());
        let places = indices
            .flat_map(|model| (0..worker.count()).map(move |_| Worker::down(model, lifetime)));
        let workers = places.collect();
        let models = models.into_iter().map(|(name, digest)| Model::new(name, hex(&digest.0)));
        Some(Self {
            limits,
            lifetime,
            computing_count: worker.computing_count(),
            tokens,
            tls,
            models: models.collect(),
            workers,
            gateway: Place::down(),
            gateway_pulse: None,
            requests: HashMap::new(),
            beginning: Vec::new(),
            ended: VecDeque::new(),
            ended_set: HashMap::new(),
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
        self.requests.len() + self.beginning.len()
    }

    /// Whether begins wait for the commit of this turn.
    pub(super) fn has_beginning(&self) -> bool {
        !self.beginning.is_empty()
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

    /// What a worker of a model declared of itself; `None` while the model is not served.
    pub(super) fn engine(&self, model: ModelIndex) -> Option<&str> {
        self.model(model).filter(|model| model.is_open).map(|model| model.engine.as_str())
    }

    /// The context that a worker of a served model declared.
    pub(super) fn context_len_tokens(&self, model: ModelIndex) -> Option<u32> {
        self.model(model).filter(|model| model.is_open).map(|model| model.context_len_tokens)
    }

    /// Whether the gateway said `Ready`.
    pub(super) fn is_gateway_serving(&self) -> bool {
        self.gateway.phase == Phase::Serving
    }

    /// A fresh gateway was started.
    pub(super) fn gateway_started(&mut self) {
        self.gateway = Place::starting();
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
            ledger.append(Event::end_missing(request_name(id), cause));
        }
    }

    /// Forgets a request but for its name.
    fn close(&mut self, id: RequestId) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        self.stop_waiting(id, &request);
        self.ended.push_back(id);
        self.ended_set.insert(id, request.stopping.is_some());
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
            FromGateway::Authorize { correlation, key } => match self.authenticate(&key, now) {
                Some(_) => self.answer(ToGateway::Authorized { correlation }),
                None => self.deny(correlation, Denial::KeyInvalid, None),
            },
            FromGateway::Sign { correlation, scheme, message } => {
                let key = self.tls.as_ref().ok_or(Fault::Moment(Kind::Sign))?;
                let signature = key.sign(scheme, &message).ok_or(Fault::Value(Kind::Sign))?;
                self.refusals.key_used(KeyRole::Tls);
                self.answer(ToGateway::Signature { correlation, signature });
            }
            FromGateway::Abandoned { request } => self.abandoned(request, ledger, now)?,
            FromGateway::Alive => alive(&mut self.gateway_pulse, Kind::GatewayAlive, now)?,
            FromGateway::WorkerBroken { worker } => self.worker_broken(worker)?,
            FromGateway::KeysMalformed { count: 0 } => {
                return Err(Fault::Value(Kind::KeysMalformed));
            }
            FromGateway::KeysMalformed { count } => self.refusals.keys_malformed(count),
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
        let token = self.authenticate(key, now).ok_or((Denial::KeyInvalid, None))?;
        let (principal, role) = token;
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
        if !model.is_open {
            return Err(denied(Denial::ModelUnavailable));
        }
        let its_count = self.requests.values().chain(self.beginning.iter().map(|one| &one.request));
        let its_count = its_count.filter(|request| request.principal.name == principal).count();
        if self.open_count() >= self.limits.requests_max.into()
            || its_count >= self.limits.requests_per_key_max.into()
        {
            return Err(denied(Denial::TooManyRequests));
        }
        let unavailable = || denied(Denial::LogUnavailable);
        let mut id = [0; 16];
        self.random.fill(&mut id).map_err(|_| unavailable())?;
        let id = RequestId(id);
        let about = (model.name.as_str(), model.digest_hex.as_str());
        let observed = ledger.begin_facts(&principal, role.name(), about);
        let observed = observed.map_err(|_| unavailable())?;
        let limit = self.token_limit(max_tokens, model.context_len_tokens);
        let ticket = Ticket {
            request: id,
            cache_domain: self.cache_domains.find(&self.tokens, &principal),
            max_tokens: limit,
            deadline_ms: self.limits.request_deadline_ms,
        };
        let request = Request {
            model: ModelIndex(u16::try_from(index).map_err(|_| denied(Denial::ModelUnknown))?),
            worker: None,
            ticket,
            principal: Principal { name: principal.clone(), pseudonym: observed.principal.clone() },
            begun: now.instant,
            deadline: now.instant + Duration::from_millis(self.limits.request_deadline_ms.into()),
            max_tokens: limit,
            stopping: None,
            is_abandoned: false,
        };
        ledger.append(Event::Begin { request: request_name(id), observed, declared });
        self.beginning.push(Beginning { correlation, id, request });
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
        if let Some(reason) = refusal_reason(reason) {
            self.refusals.refused(reason, principal);
        }
        self.answer(ToGateway::Denied { correlation, reason });
    }

    /// What passes between the two is not seen here: the gateway's word ends a worker, which it
    /// could also do itself. It does not count as a crash, so that no gateway brings a model to fail.
    fn worker_broken(&mut self, index: WorkerIndex) -> Result<(), Fault> {
        let worker = self.worker(index).ok_or(Fault::Value(Kind::WorkerBroken))?;
        if worker.place.phase == Phase::Serving {
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
        index: WorkerIndex,
        report: WorkerReport,
        ledger: &mut Ledger,
        now: Now,
    ) -> Result<(), Fault> {
        let kind = worker_kind(&report);
        let worker = self.workers.get_mut(usize::from(index.0)).ok_or(Fault::Moment(kind))?;
        worker.place.permit(kind)?;
        let model_index = worker.model;
        let model = self.models.get_mut(usize::from(model_index.0)).ok_or(Fault::Moment(kind))?;
        match report {
            WorkerReport::Ready { context_len_tokens, engine } => {
                if context_len_tokens == 0 || !is_plain(&engine) {
                    return Err(Fault::Value(kind));
                }
                worker.place.phase = Phase::Serving;
                worker.pulse = Some(Pulse::new(self.limits.hang(), now.instant));
                // One on the processors may follow one with a card.
                model.engine = engine;
                if !std::mem::replace(&mut model.is_open, true) {
                    model.context_len_tokens = context_len_tokens;
                    self.effects.push(Effect::ModelReady(model_index));
                }
                self.effects.push(Effect::WorkerReady(index));
            }
            WorkerReport::NoTicket { request } => {
                let left = worker.no_tickets_left.checked_sub(1);
                worker.no_tickets_left = left.ok_or(Fault::Repeated(kind))?;
                let name = blind(&self.blinding, request);
                self.refusals.ticket_missing(&model.name, &name);
            }
            WorkerReport::End(report) => self.end(index, &report, ledger, now)?,
            WorkerReport::Unused { request } => self.unused(index, request, ledger, now)?,
            WorkerReport::Alive => alive(&mut worker.pulse, kind, now)?,
            WorkerReport::NoCard { .. } if !worker.has_card => return Err(Fault::Moment(kind)),
            WorkerReport::NoCard { why } => {
                if !is_plain(&why) {
                    return Err(Fault::Value(kind));
                }
                self.effects.push(Effect::NoCard(index, why));
            }
            WorkerReport::Panicked { file, line } => {
                if !is_plain(&file) {
                    return Err(Fault::Value(kind));
                }
                worker.panic = Some(panic_text(&file, line));
            }
        }
        Ok(())
    }

    fn end(
        &mut self,
        index: WorkerIndex,
        report: &EndReport,
        ledger: &mut Ledger,
        now: Now,
    ) -> Result<(), Fault> {
        let Some(request) = self.requests.get(&report.request) else {
            return Err(match self.ended_set.contains_key(&report.request) {
                true => Fault::Repeated(Kind::End),
                false => Fault::UnknownRequest(Kind::End),
            });
        };
        if request.worker != Some(index) {
            return Err(Fault::UnknownRequest(Kind::End));
        }
        let context_len_tokens =
            self.model(request.model).map_or(0, |model| model.context_len_tokens);
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
        self.worker_done(index, report.request, pool::LEAVE_GRACE, now);
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
        for Beginning { correlation, id, request } in std::mem::take(&mut self.beginning) {
            if !is_durable {
                self.deny(correlation, Denial::LogUnavailable, Some(request.principal.name));
                continue;
            }
            let model = request.model;
            let worker = match self.find_worker(model) {
                Found::Worker(worker) => {
                    self.give(worker, request.ticket, request, now);
                    Some(worker)
                }
                Found::Later => {
                    self.wait(id, request);
                    None
                }
                Found::Gone(cause) => {
                    ledger.append(Event::end_missing(request_name(id), cause));
                    self.deny(correlation, Denial::ModelUnavailable, Some(request.principal.name));
                    continue;
                }
            };
            self.answer(ToGateway::Begun { correlation, request: id, model, worker });
        }
        if !is_durable {
            // What runs now could not be recorded to its end: cut it.
            self.cut(|_| true, MissingCause::LogUnavailable, ledger, now);
        }
        is_durable
    }
}

#[cfg(test)]
mod tests;
