//! Requests that must stop: given up by the gateway, out of time, revoked, not to be recorded.
//!
//! One that a worker has is revoked, and its worker says whether it served any of it or none; one that
//! waits for a worker ends at once. The gateway's word alone ends nothing that a worker may have begun.

use std::time::Duration;

use super::{Dispatch, Effect, Fault, Kind, Ledger, Now, Request, request_name};
use crate::audit::Event;
use crate::audit::record::MissingCause;
use crate::ipc::message::{RequestId, ToGateway, ToWorkerControl, WorkerIndex};

/// Time a worker has to report the end of a request that must stop, at least: a step of the engine
/// may take as long as a part that hangs is given.
const END_GRACE_MIN: Duration = Duration::from_secs(10);

impl Dispatch {
    /// The gateway has given a request up.
    pub(super) fn abandoned(
        &mut self,
        id: RequestId,
        ledger: &mut Ledger,
        now: Now,
    ) -> Result<(), Fault> {
        let grace = self.end_grace();
        let Some(request) = self.requests.get_mut(&id) else {
            // Its end crossed the gateway's word.
            return match self.ended_set.contains_key(&id) {
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
        revoke(id, request, MissingCause::Abandoned, (grace, now), &mut self.effects);
        Ok(())
    }

    /// A worker has nothing of a request that it was told to stop.
    pub(super) fn unused(
        &mut self,
        index: WorkerIndex,
        id: RequestId,
        ledger: &mut Ledger,
        now: Now,
    ) -> Result<(), Fault> {
        let Some(request) = self.requests.get(&id) else {
            // Its end may have crossed the order to stop, once.
            return match self.ended_set.get_mut(&id).map(std::mem::take) {
                Some(true) => Ok(()),
                Some(false) => Err(Fault::Repeated(Kind::Unused)),
                None => Err(Fault::UnknownRequest(Kind::Unused)),
            };
        };
        if request.worker != Some(index) {
            return Err(Fault::UnknownRequest(Kind::Unused));
        }
        let cause = request.stopping.ok_or(Fault::Moment(Kind::Unused))?;
        self.close(id);
        self.ended_set.insert(id, false);
        ledger.append(Event::end_missing(request_name(id), cause));
        self.worker_done(index, id, Duration::ZERO, now);
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
            if is_it(request) {
                revoke(*id, request, cause, (grace, now), &mut self.effects);
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
            match request.stopping {
                Some(cause) => overdue.push((*id, request.worker, cause)),
                None => {
                    let cause = MissingCause::Deadline;
                    revoke(*id, request, cause, (grace, now), &mut self.effects);
                }
            }
        }
        for (id, worker, cause) in overdue {
            self.close(id);
            ledger.append(Event::end_missing(request_name(id), cause));
            let why = "did not stop a request in time";
            self.effects.extend(worker.map(|worker| Effect::WorkerStuck(worker, why)));
        }
        self.expire_workers(now);
        self.serve_waiting(now);
    }
}

/// Tells the worker to stop a request within `grace`, once: a second reason gives it no more time.
fn revoke(
    id: RequestId,
    request: &mut Request,
    cause: MissingCause,
    (grace, now): (Duration, Now),
    effects: &mut Vec<Effect>,
) {
    let (Some(worker), None) = (request.worker, request.stopping) else { return };
    request.stopping = Some(cause);
    request.deadline = now.instant + grace;
    effects.push(Effect::Worker(worker, ToWorkerControl::Revoke { request: id }));
}
