//! Which worker serves which request: one worker for all of a model's, or a fresh one for each.
//!
//! With a fresh one for each, as many serve at once as the configuration says; a request that
//! finds none waits for its turn, in the order of the begins. A worker that has served its request
//! is never given another and must be gone soon.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::pulse::Pulse;
use super::{Dispatch, Effect, Ledger, Now, Phase, Place, Request};
use crate::audit::record::MissingCause;
use crate::ipc::message::{
    ModelIndex, NO_TICKETS_COUNT_MAX, RequestId, Ticket, ToGateway, ToWorkerControl, WorkerIndex,
};
use crate::supervisor::config::Lifetime;

/// Time that a worker has from the end of its one request to its own: the last of an answer may
/// wait for the gateway to read it.
pub(super) const LEAVE_GRACE: Duration = Duration::from_secs(10);

/// A model, and what waits for its workers.
pub(super) struct Model {
    pub(super) name: String,
    pub(super) digest_hex: String,
    /// Whether requests for it are taken.
    pub(super) is_open: bool,
    pub(super) context_len_tokens: u32,
    /// What its last worker declared of itself.
    pub(super) engine: String,
    /// Begun requests that have no worker yet.
    waiting: VecDeque<RequestId>,
}

impl Model {
    pub(super) fn new(name: String, digest_hex: String) -> Self {
        let (engine, waiting) = (String::new(), VecDeque::new());
        Self { name, digest_hex, is_open: false, context_len_tokens: 0, engine, waiting }
    }
}

/// Whom a worker serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Duty {
    /// All requests of its model, beside each other.
    All,
    /// Nobody yet; then one request.
    Fresh,
    /// This request, and no other after it.
    One(RequestId),
    /// This request ended, and by then the worker too.
    Done(RequestId, Instant),
}

/// A place for a worker, and the one that has it.
pub(super) struct Worker {
    pub(super) model: ModelIndex,
    pub(super) place: Place,
    pub(super) pulse: Option<Pulse>,
    /// Where its panic came from, until its death is recorded.
    pub(super) panic: Option<String>,
    pub(super) duty: Duty,
    /// Refusals of requests without a ticket that it may still report.
    pub(super) no_tickets_left: usize,
    /// Whether it was started to use a card, so that it may say that it found none.
    pub(super) has_card: bool,
    /// No other will follow it.
    is_given_up: bool,
}

impl Worker {
    /// A place that nobody has.
    pub(super) fn down(model: ModelIndex, lifetime: Lifetime) -> Self {
        Self {
            model,
            place: Place::down(),
            pulse: None,
            panic: None,
            duty: first_duty(lifetime),
            no_tickets_left: 0,
            has_card: false,
            is_given_up: false,
        }
    }
}

fn first_duty(lifetime: Lifetime) -> Duty {
    match lifetime {
        Lifetime::Model => Duty::All,
        Lifetime::Request => Duty::Fresh,
    }
}

/// What a request finds.
pub(super) enum Found {
    /// A worker, now.
    Worker(WorkerIndex),
    /// One, later.
    Later,
    /// None: a child of the request is gone.
    Gone(MissingCause),
}

/// How many of a model's workers do what, and what waits for them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(in crate::supervisor) struct Counts {
    /// Workers that could take a request, or serve all.
    pub(in crate::supervisor) ready: usize,
    /// Workers that serve their one request.
    pub(in crate::supervisor) serving_one: usize,
    /// Requests without a worker.
    pub(in crate::supervisor) waiting: usize,
}

impl Dispatch {
    pub(super) fn model(&self, index: ModelIndex) -> Option<&Model> {
        self.models.get(usize::from(index.0))
    }

    pub(super) fn worker(&self, index: WorkerIndex) -> Option<&Worker> {
        self.workers.get(usize::from(index.0))
    }

    fn workers_of(&self, model: ModelIndex) -> impl Iterator<Item = (WorkerIndex, &Worker)> {
        let all = (0..).map(WorkerIndex).zip(&self.workers);
        all.filter(move |(_, worker)| worker.model == model)
    }

    /// How many of a model's workers do what.
    pub(in crate::supervisor) fn counts(&self, model: ModelIndex) -> Counts {
        let waiting = self.model(model).map_or(0, |model| model.waiting.len());
        let mut counts = Counts { waiting, ..Counts::default() };
        for (_, worker) in self.workers_of(model) {
            let is_serving = worker.place.phase == Phase::Serving;
            match worker.duty {
                Duty::All | Duty::Fresh => counts.ready += usize::from(is_serving),
                Duty::One(_) => counts.serving_one += 1,
                Duty::Done(..) => {}
            }
        }
        counts
    }

    /// Requests that wait for a worker of their own.
    pub(in crate::supervisor) fn waiting_count(&self) -> usize {
        self.models.iter().map(|model| model.waiting.len()).sum()
    }

    /// What a request that has just begun finds.
    pub(super) fn find_worker(&self, model: ModelIndex) -> Found {
        if self.gateway.phase != Phase::Serving {
            return Found::Gone(MissingCause::GatewayGone);
        }
        let is_open = self.model(model).is_some_and(|model| model.is_open);
        match self.free_worker(model) {
            Some(worker) if is_open => Found::Worker(worker),
            None if is_open && self.lifetime == Lifetime::Request => Found::Later,
            _ => Found::Gone(MissingCause::WorkerGone),
        }
    }

    /// A worker that can take a request now.
    fn free_worker(&self, model: ModelIndex) -> Option<WorkerIndex> {
        let is_full = self.counts(model).serving_one >= usize::from(self.computing_count);
        let is_free = |worker: &Worker| match worker.duty {
            Duty::All => true,
            Duty::Fresh => !is_full,
            Duty::One(_) | Duty::Done(..) => false,
        };
        let mut free = self
            .workers_of(model)
            .filter(|(_, worker)| worker.place.phase == Phase::Serving && is_free(worker));
        free.next().map(|(index, _)| index)
    }

    /// Gives a request to a worker: sends the ticket, good for what is left of the request's time.
    pub(super) fn give(
        &mut self,
        index: WorkerIndex,
        ticket: Ticket,
        mut request: Request,
        now: Now,
    ) {
        let id = ticket.request;
        if let Some(worker) = self.workers.get_mut(usize::from(index.0))
            && worker.duty == Duty::Fresh
        {
            worker.duty = Duty::One(id);
        }
        let left = request.deadline.saturating_duration_since(now.instant).as_millis();
        let deadline_ms = u32::try_from(left).unwrap_or(u32::MAX);
        let ticket = Ticket { deadline_ms, ..ticket };
        request.worker = Some(index);
        self.requests.insert(id, request);
        self.effects.push(Effect::Worker(index, ToWorkerControl::Ticket(ticket)));
    }

    /// Lets a request wait for its turn.
    pub(super) fn wait(&mut self, id: RequestId, request: Request) {
        if let Some(model) = self.models.get_mut(usize::from(request.model.0)) {
            model.waiting.push_back(id);
            self.requests.insert(id, request);
        }
    }

    /// Gives those that wait the workers that are free.
    pub(super) fn serve_waiting(&mut self, now: Now) {
        for index in (0..).map(ModelIndex).take(self.models.len()) {
            while let Some(worker) = self.free_worker(index) {
                let model = self.models.get_mut(usize::from(index.0));
                let Some(id) = model.and_then(|model| model.waiting.pop_front()) else { break };
                let Some(request) = self.requests.remove(&id) else { continue };
                self.give(worker, request.ticket, request, now);
                self.answer(ToGateway::Turn { request: id, worker: Some(worker) });
            }
        }
    }

    /// Takes a request that is closed out of those that wait.
    pub(super) fn stop_waiting(&mut self, id: RequestId, request: &Request) {
        if request.worker.is_none()
            && let Some(model) = self.models.get_mut(usize::from(request.model.0))
        {
            model.waiting.retain(|waiting| *waiting != id);
        }
    }

    /// The one request of a worker ended: the worker is to be gone within a grace, or at once.
    pub(super) fn worker_done(
        &mut self,
        index: WorkerIndex,
        id: RequestId,
        grace: Duration,
        now: Now,
    ) {
        if let Some(worker) = self.workers.get_mut(usize::from(index.0))
            && worker.duty == Duty::One(id)
        {
            worker.duty = Duty::Done(id, now.instant + grace);
        }
    }

    /// Gives up the workers that are still there although their request ended long ago.
    pub(super) fn expire_workers(&mut self, now: Now) {
        for (index, worker) in (0..).map(WorkerIndex).zip(&self.workers) {
            if let Duty::Done(_, until) = worker.duty
                && now.instant >= until
            {
                self.effects.push(Effect::WorkerDone(index));
            }
        }
    }

    /// The request that a worker served, if that has ended: its own end is to be expected.
    pub(in crate::supervisor) fn served(&self, index: WorkerIndex) -> Option<RequestId> {
        match self.worker(index)?.duty {
            Duty::Done(request, _) => Some(request),
            _ => None,
        }
    }

    /// Whether a worker said `Ready` and nothing is known against it.
    pub(in crate::supervisor) fn is_worker_serving(&self, index: WorkerIndex) -> bool {
        self.worker(index).is_some_and(|worker| worker.place.phase == Phase::Serving)
    }

    /// A fresh worker was started, to use a card or not.
    pub(in crate::supervisor) fn worker_started(&mut self, index: WorkerIndex, has_card: bool) {
        let duty = first_duty(self.lifetime);
        if let Some(worker) = self.workers.get_mut(usize::from(index.0)) {
            worker.place = Place::starting();
            worker.panic = None;
            worker.duty = duty;
            worker.no_tickets_left = NO_TICKETS_COUNT_MAX;
            worker.has_card = has_card;
        }
    }

    /// A worker is being killed: it is given nothing more.
    pub(in crate::supervisor) fn worker_lost(&mut self, index: WorkerIndex) {
        if let Some(worker) = self.workers.get_mut(usize::from(index.0)) {
            worker.place.phase = Phase::Down;
            worker.pulse = None;
        }
    }

    /// A worker is gone, for good if `is_given_up`. Returns where it panicked, if it said so.
    pub(in crate::supervisor) fn worker_gone(
        &mut self,
        index: WorkerIndex,
        is_given_up: bool,
        ledger: &mut Ledger,
    ) -> Option<String> {
        self.close_all(ledger, MissingCause::WorkerGone, |one| one.worker == Some(index));
        let duty = first_duty(self.lifetime);
        let worker = self.workers.get_mut(usize::from(index.0))?;
        worker.place = Place::down();
        worker.pulse = None;
        worker.duty = duty;
        worker.is_given_up = is_given_up;
        let (model, panic) = (worker.model, worker.panic.take());
        let is_served_on = self.lifetime == Lifetime::Request
            && self.workers_of(model).any(|(_, worker)| !worker.is_given_up);
        if !is_served_on {
            self.close_model(model, ledger);
        }
        panic
    }

    /// Takes no more requests for a model, until one of its workers is ready.
    pub(in crate::supervisor) fn close_model(&mut self, index: ModelIndex, ledger: &mut Ledger) {
        let Some(model) = self.models.get_mut(usize::from(index.0)) else { return };
        if !std::mem::replace(&mut model.is_open, false) {
            return;
        }
        self.answer(ToGateway::ModelDown { model: index });
        for id in self.waiting(|request| request.model == index) {
            self.end_waiting(id, MissingCause::WorkerGone, true, ledger);
        }
    }
}
