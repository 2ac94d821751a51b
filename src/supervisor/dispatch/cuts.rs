//! Requests that must stop: given up by the gateway, out of time, revoked, not to be recorded.
//!
//! One that a worker has is revoked, and its worker's report is waited for; one that waits for a
//! worker ends at once.

use std::time::Duration;

use super::{Dispatch, Effect, Fault, Kind, Ledger, Now, Request, request_name};
use crate::audit::Event;
use crate::audit::record::MissingCause;
use crate::ipc::message::{RequestId, ToGateway, ToWorkerControl};

/// Time a worker has to report the end of a request that must stop, at least: a step of the engine
/// may take as long as a part that hangs is given.
const END_GRACE_MIN: Duration = Duration::from_secs(10);
/// Time a worker has to report the end of a request that the gateway never brought it.
const ABANDON_GRACE: Duration = Duration::from_secs(2);

impl Dispatch {
    /// The gateway has given a request up.
    pub(super) fn abandoned(
        &mut self,
        id: RequestId,
        ledger: &mut Ledger,
        now: Now,
    ) -> Result<(), Fault> {
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
        if request.worker.is_none() {
            self.end_waiting(id, MissingCause::Abandoned, false, ledger);
            return Ok(());
        }
        revoke(id, request, ABANDON_GRACE, now, &mut self.effects);
        Ok(())
    }

    /// Stops the requests of which `is_it` is true; those that have no worker end at once.
    pub(super) fn cut(
        &mut self,
        is_it: impl Fn(&Request) -> bool,
        cause: MissingCause,
        ledger: &mut Ledger,
        now: Now,
    ) {
        for id in self.waiting(&is_it) {
            self.end_waiting(id, cause, true, ledger);
        }
        let grace = self.end_grace();
        for (id, request) in &mut self.requests {
            if !request.is_stopping && is_it(request) {
                revoke(*id, request, grace, now, &mut self.effects);
            }
        }
    }

    /// Ends a request that never had a worker, and tells the gateway, if it asks to be told.
    pub(super) fn end_waiting(
        &mut self,
        id: RequestId,
        cause: MissingCause,
        tell_gateway: bool,
        ledger: &mut Ledger,
    ) {
        if self.close(id).is_none() {
            return;
        }
        ledger.append(Event::end_missing(request_name(id), cause));
        if tell_gateway {
            self.answer(ToGateway::Turn { request: id, worker: None });
        }
    }

    /// The requests that have no worker and of which `is_it` is true.
    pub(super) fn waiting(&self, is_it: impl Fn(&Request) -> bool) -> Vec<RequestId> {
        let waiting = self.requests.iter().filter(|(_, request)| request.worker.is_none());
        waiting.filter(|(_, request)| is_it(request)).map(|(id, _)| *id).collect()
    }

    /// Time a worker has to report the end of a request that must stop.
    fn end_grace(&self) -> Duration {
        self.limits.hang().max(END_GRACE_MIN)
    }

    /// Stops what ran out of time, gives up what did not stop, and lets those that wait have the
    /// workers that are free.
    pub(in crate::supervisor) fn expire(&mut self, ledger: &mut Ledger, now: Now) {
        for id in self.waiting(|request| now.instant >= request.deadline) {
            self.end_waiting(id, MissingCause::Deadline, true, ledger);
        }
        let (grace, mut overdue) = (self.end_grace(), Vec::new());
        for (id, request) in &mut self.requests {
            if now.instant < request.deadline {
                continue;
            }
            if request.is_stopping {
                overdue.push((*id, request.worker, request.is_abandoned));
            } else {
                revoke(*id, request, grace, now, &mut self.effects);
            }
        }
        for (id, worker, is_abandoned) in overdue {
            self.close(id);
            let cause = if is_abandoned { MissingCause::Abandoned } else { MissingCause::Deadline };
            ledger.append(Event::end_missing(request_name(id), cause));
            let Some(worker) = worker else { continue };
            if is_abandoned {
                self.worker_done(worker, id, Duration::ZERO, now);
            } else {
                let why = "did not stop a request in time";
                self.effects.push(Effect::WorkerStuck(worker, why));
            }
        }
        self.expire_workers(now);
        self.serve_waiting(now);
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
    let Some(worker) = request.worker else { return };
    request.is_stopping = true;
    request.deadline = now.instant + grace;
    effects.push(Effect::Worker(worker, ToWorkerControl::Revoke { request: id }));
}
