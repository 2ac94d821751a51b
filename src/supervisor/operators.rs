//! What operators ask for: the state, a reload, a stop; and the line that says ready.

use serde_json::{Value, json};

use super::compute::Place;
use super::config::{Config, Devices, Lifetime, Swap};
use super::control::Command;
use super::nursery::spawner_profile;
use super::readings::Reading;
use super::seat::Seat;
use super::serve::{Supervisor, now};
use super::swap;
use super::workers::Served;
use crate::ipc::message::{ListenerKind, ModelIndex};

impl Supervisor {
    /// Does the day's work, and answers who asked on the control socket.
    pub(super) fn answer_operators(&mut self) {
        self.keep_retention(now().instant);
        for mut question in self.control.turn(now().instant) {
            let answer = match question.command.clone() {
                Command::Status {} => self.status(),
                Command::Reload { certificate, lists } => {
                    self.reload(&mut question, certificate, lists.as_deref())
                }
                Command::Prune { older_than_s, force } => self.prune(older_than_s, force),
                Command::Stop {} => {
                    self.begin_stop();
                    json!({ "ok": true })
                }
                Command::LogRead { action, records, from_s, to_s } => {
                    let reading = Reading { action, records, from_s, to_s };
                    json!({ "ok": self.record_reading(question.uid, reading) })
                }
                Command::Erase { principal } => self.erase(&principal, question.uid),
                Command::RotateWrappingKey {} => self.rotate_wrapping(&mut question),
                Command::RotateAuditKey {} => self.rotate_audit(&mut question),
            };
            self.control.answer(question, &answer);
        }
    }

    /// `serving` when every part does.
    fn state(&self) -> &'static str {
        let has_failed =
            self.gateway.has_failed || self.workers.iter().any(|worker| worker.seat.has_failed);
        let has_withdrawn = self.models.iter().any(|model| model.withdrawn.is_some());
        let is_serving = self.dispatch.is_gateway_serving()
            && self.models.iter().all(|model| self.dispatch.engine(model.index).is_some());
        match (self.stop, is_serving) {
            (Some(_), _) => "stopping",
            _ if has_failed => "failed",
            _ if self.ledger.is_failing() || has_withdrawn => "degraded",
            (None, true) => "serving",
            (None, false) => "starting",
        }
    }

    /// Says once that all parts serve, and tells the service manager of every change.
    pub(super) fn announce(&mut self) {
        let state = self.state();
        if std::mem::replace(&mut self.told_state, state) != state {
            self.manager.status(&self.summary());
        }
        if self.is_announced || state != "serving" {
            return;
        }
        self.is_announced = true;
        self.manager.ready(&self.summary());
        for (kind, listen) in self.listeners.iter().map(|one| one.0).zip(&self.config.listen) {
            let names: Vec<_> =
                self.models.iter().map(|model| model.facts.model.as_str()).collect();
            let url = url(kind, &listen.to_string());
            super::say(&format!("ready: {url} model {}", names.join(", ")));
        }
    }

    /// The state in a line, for the service manager.
    pub(super) fn summary(&self) -> String {
        let names: Vec<_> = self.models.iter().map(|model| model.facts.model.as_str()).collect();
        format!("{}: {}", self.state(), names.join(", "))
    }

    fn status(&self) -> Value {
        let now = now();
        let listen: Vec<_> = self
            .listeners
            .iter()
            .zip(&self.config.listen)
            .map(|((kind, _), listen)| url(*kind, &listen.to_string()))
            .collect();
        let mut children = vec![child(&self.gateway, self.dispatch.is_gateway_serving())];
        for worker in &self.workers {
            let is_serving = self.dispatch.is_worker_serving(worker.index);
            children.push(child(&worker.seat, is_serving));
        }
        let models = self.models.iter().zip(&self.places);
        let models: Vec<_> = models.map(|(model, place)| self.model(model, place)).collect();
        json!({
            "state": self.state(),
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "profile": self.config.profile.name(),
            "uptime_s": now.instant.saturating_duration_since(self.started).as_secs(),
            "listen": listen,
            "models": models,
            "children": children,
            "requests_open": self.dispatch.open_count(),
            "tokens_valid": self.dispatch.tokens_valid_count(now),
            "audit": {
                "folder": self.config.audit_folder,
                "records": self.ledger.size(),
                "writable": !self.ledger.is_failing(),
                "copies": self.ledger.copies(),
            },
            "missing_protections": self.missing_now().collect::<Vec<_>>(),
        })
    }

    fn model(&self, model: &Served, place: &Place) -> Value {
        let engine = self.dispatch.engine(model.index);
        json!({
            "name": model.facts.model,
            "state": match engine {
                Some(_) => "serving",
                None if model.withdrawn.is_some() => "withdrawn",
                None if self.all_have_failed(model.index) => "failed",
                None => "starting",
            },
            "context_len_tokens": self.dispatch.context_len_tokens(model.index),
            "withdrawn": model.withdrawn,
            "loaded_s": model.loaded_s,
            "opened": model.speed.json(),
            "numa_node": place.node,
            "threads": place.threads,
            "gpu_devices": self.cards_of(model.index).map(Devices::numbers),
            "workers": self.workers_of(model),
            "observed": model.facts,
            "declared": { "engine": engine },
        })
    }
}

impl Supervisor {
    fn all_have_failed(&self, model: ModelIndex) -> bool {
        let mut its = self.workers.iter().filter(|worker| worker.model == model);
        its.all(|worker| worker.seat.has_failed)
    }

    /// How many of a model's workers do what, and what waits for them.
    fn workers_of(&self, model: &Served) -> Value {
        let counts = self.dispatch.counts(model.index);
        let ready_after_ms = model.ready_after.map(|after| after.as_millis());
        json!({
            "lifetime": match self.config.worker.lifetime {
                Lifetime::Model => "model",
                Lifetime::Request => "request",
            },
            "ready": counts.ready,
            "serving_one": counts.serving_one,
            "requests_waiting": counts.waiting,
            "ended_after_one": model.ended_count,
            "ready_after_ms": ready_after_ms.and_then(|ms| u64::try_from(ms).ok()),
        })
    }
}

/// What this profile and this machine lack, in sentences; not to be asked later. What a card takes away is told
/// beside it.
pub(super) fn missing_protections(config: &Config) -> Vec<String> {
    let missing = spawner_profile(config.profile).missing();
    let missing = missing.iter().map(|one| format!("{}: {}", one.name, one.sentence));
    let is_swapped = config.sandbox.swap != Swap::Lock && swap::is_possible();
    missing.chain(is_swapped.then(|| swap::MISSING.to_owned())).collect()
}

fn child<M>(seat: &Seat<M>, is_serving: bool) -> Value {
    json!({
        "name": seat.name,
        "pid": seat.child.as_ref().and_then(|running| running.child.pid),
        "state": match (&seat.child, is_serving) {
            (Some(_), true) => "serving",
            (Some(_), false) => "starting",
            (None, _) if seat.has_failed => "failed",
            (None, _) => "down",
        },
        "restarts": seat.restarts_count,
    })
}

fn url(kind: ListenerKind, address: &str) -> String {
    match kind {
        ListenerKind::Tls => format!("https://{address}"),
        ListenerKind::PlainLoopback => format!("http://{address}"),
        ListenerKind::Unix => address.to_owned(),
    }
}
