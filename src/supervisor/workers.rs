//! The workers' processes: started, heard, introduced to the gateway, buried.
//!
//! With `worker.lifetime = "request"` a model has several places, and each child that sits in one
//! serves one request; whom a worker serves is decided in `dispatch/pool.rs`.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use zeroize::Zeroizing;

use super::config::{Activations, Config, Devices, Lifetime};
use super::error::Error;
use super::ledger::request_name;
use super::opening::Opened;
use super::seat::{Doom, Seat};
use super::serve::{Supervisor, now};
use super::speed::Speed;
use crate::audit::Event;
use crate::audit::record::{ChildFacts, ModelFacts, ModelRefusedFacts};
use crate::ipc::data_pair;
use crate::ipc::message::{
    Digest, ModelIndex, ModelInfo, ToGateway, ToWorkerControl, WorkerConfig, WorkerIndex,
    WorkerReport,
};
use crate::spawner::message::Exit;

/// A model that is served.
pub(super) struct Served {
    pub(super) index: ModelIndex,
    pub(super) facts: ModelFacts,
    /// The sealed image that every worker of it maps; none once it is withdrawn.
    pub(super) image: Option<OwnedFd>,
    /// SHA-256 of the plaintext file.
    pub(super) digest: Digest,
    /// Its signature; none for one that is served unsigned.
    pub(super) bundle: Option<Zeroizing<Vec<u8>>>,
    /// Why it is served no more.
    pub(super) withdrawn: Option<String>,
    pub(super) loaded_s: u64,
    /// How fast it was opened.
    pub(super) speed: Speed,
    /// How long the last worker that became ready took for it.
    pub(super) ready_after: Option<Duration>,
    /// Workers that ended as they should, with their request.
    pub(super) ended_count: u64,
}

impl Served {
    pub(super) fn new(
        (index, facts): (ModelIndex, ModelFacts),
        (opened, bundle): (Opened, Option<Zeroizing<Vec<u8>>>),
        (loaded_s, speed): (u64, Speed),
    ) -> Self {
        let Opened { image, digest, .. } = opened;
        Self {
            index,
            facts,
            image: Some(image),
            digest,
            bundle,
            withdrawn: None,
            loaded_s,
            speed,
            ready_after: None,
            ended_count: 0,
        }
    }
}

/// A place for a worker.
pub(super) struct WorkerSeat {
    pub(super) index: WorkerIndex,
    pub(super) model: ModelIndex,
    pub(super) seat: Seat<ToWorkerControl>,
    /// The gateway's end of its data channel, until the gateway has it.
    data: Option<OwnedFd>,
    /// The cards that the one that sits there was started to use.
    pub(super) cards: Option<Devices>,
}

/// The places of all models' workers, each empty.
pub(super) fn worker_seats(config: &Config, models: &[Served]) -> Vec<WorkerSeat> {
    let count = config.worker.count();
    let each = models.iter().flat_map(|model| (1..=count).map(move |number| (model, number)));
    let seat = |(index, (model, number)): (u16, (&Served, u16))| {
        let name = match config.worker.lifetime {
            Lifetime::Model => format!("worker {}", model.facts.model),
            Lifetime::Request => format!("worker {} {number}", model.facts.model),
        };
        let (index, model) = (WorkerIndex(index), model.index);
        WorkerSeat { index, model, seat: Seat::new(name), data: None, cards: None }
    };
    (0..).zip(each).map(seat).collect()
}

impl Supervisor {
    pub(super) fn read_worker(&mut self, at: usize, frames_max: usize) -> Result<(), Error> {
        let worker = &mut self.workers[at];
        for _ in 0..frames_max {
            let done = match worker.seat.receive::<WorkerReport>() {
                Ok(Some(report)) => self
                    .dispatch
                    .hear_worker(worker.index, report, &mut self.ledger, now())
                    .map_err(Doom::from),
                Ok(None) => return Ok(()),
                Err(doom) => Err(doom),
            };
            if let Err(doom) = done {
                self.dispatch.worker_lost(worker.index);
                return worker.seat.doom(doom, &self.nursery);
            }
        }
        Ok(())
    }

    pub(super) fn worker_gone(&mut self, at: usize, exit: Exit) {
        let worker = &mut self.workers[at];
        worker.data = None;
        worker.cards = None;
        let served = self.dispatch.served(worker.index);
        let cause = worker.seat.leave(exit, served.is_some(), Instant::now());
        let (name, is_given_up) = (worker.seat.name.clone(), worker.seat.has_failed);
        let (index, model) = (worker.index, usize::from(worker.model.0));
        let panic = self.dispatch.worker_gone(index, is_given_up, &mut self.ledger);
        match (cause, served) {
            (None, Some(request)) => {
                self.models[model].ended_count += 1;
                let request = request_name(request);
                let observed = ChildFacts { child: name };
                self.ledger.append(Event::WorkerEnded { request, observed });
            }
            (cause, _) => self.record_death(name, Some(exit), cause.unwrap_or_default(), panic),
        }
    }

    /// The gateway's end of a data channel went with the gateway: a fresh worker takes its place.
    pub(super) fn replace_introduced_workers(&mut self) -> Result<(), Error> {
        for worker in self.workers.iter_mut().filter(|worker| worker.data.is_none()) {
            self.dispatch.worker_lost(worker.index);
            let doom = Doom::Replaced("started again for a fresh gateway");
            worker.seat.doom(doom, &self.nursery)?;
        }
        Ok(())
    }

    /// Tells the gateway that requests for a model are taken, once it serves.
    pub(super) fn show_model(&mut self, index: ModelIndex) -> Result<(), Error> {
        let Some(model) = self.models.get(usize::from(index.0)) else { return Ok(()) };
        let context = self.dispatch.context_len_tokens(index);
        let (true, Some(context_len_tokens)) = (self.dispatch.is_gateway_serving(), context) else {
            return Ok(());
        };
        let name = model.facts.model.clone();
        let info = ModelInfo { name, context_len_tokens, created_s: model.loaded_s };
        self.gateway.send(ToGateway::ModelUp { model: index, info }, Vec::new(), &self.nursery)
    }

    /// Brings gateway and worker together, once both serve.
    pub(super) fn introduce(&mut self, index: WorkerIndex) -> Result<(), Error> {
        let Some(worker) = self.workers.get_mut(usize::from(index.0)) else { return Ok(()) };
        if !self.dispatch.is_gateway_serving() || !self.dispatch.is_worker_serving(index) {
            return Ok(());
        }
        let Some(data) = worker.data.take() else { return Ok(()) };
        self.gateway.send(ToGateway::WorkerUp { worker: index }, vec![data], &self.nursery)
    }

    /// Brings a gateway that just became ready together with all that serve.
    pub(super) fn introduce_all(&mut self) -> Result<(), Error> {
        for at in 0..self.models.len() {
            self.show_model(self.models[at].index)?;
        }
        (0..self.workers.len()).try_for_each(|at| self.introduce(self.workers[at].index))
    }

    /// A worker became ready.
    pub(super) fn worker_ready(&mut self, index: WorkerIndex) -> Result<(), Error> {
        if let Some(worker) = self.workers.get(usize::from(index.0))
            && let Some(model) = self.models.get_mut(usize::from(worker.model.0))
        {
            model.ready_after = worker.seat.age(Instant::now());
        }
        self.introduce(index)
    }

    pub(super) fn doom_worker(&mut self, index: WorkerIndex, doom: Doom) -> Result<(), Error> {
        let Some(worker) = self.workers.get_mut(usize::from(index.0)) else { return Ok(()) };
        self.dispatch.worker_lost(index);
        worker.seat.doom(doom, &self.nursery)
    }

    /// Serves a model no more: its workers are ended, and nothing holds its weights any longer.
    pub(super) fn withdraw(&mut self, at: usize, why: String) {
        let Some(model) = self.models.get_mut(at) else { return };
        let (index, name) = (model.index, model.facts.model.clone());
        model.image = None;
        model.withdrawn = Some(why.clone());
        self.dispatch.close_model(index, &mut self.ledger);
        let observed = ModelRefusedFacts { model: name, check: why };
        self.ledger.append(Event::ModelRefused { observed, declared: None });
    }

    /// Starts the workers that are due, kills those that are late or whose model is withdrawn.
    pub(super) fn replace_workers(&mut self, now: Instant) -> Result<(), Error> {
        for at in 0..self.workers.len() {
            let worker = &mut self.workers[at];
            if self.models[usize::from(worker.model.0)].withdrawn.is_some() {
                self.dispatch.worker_lost(worker.index);
                worker.data = None;
                worker.seat.retire("its model is withdrawn", &self.nursery)?;
            }
            if self.workers[at].seat.is_due(now) {
                self.start_worker_again(at)?;
            }
            let worker = &mut self.workers[at];
            let is_serving = self.dispatch.is_worker_serving(worker.index);
            worker.seat.doom_if_late(is_serving, now, &self.nursery)?;
        }
        Ok(())
    }

    /// One that the system does not let start now may start later.
    fn start_worker_again(&mut self, at: usize) -> Result<(), Error> {
        match self.start_worker(at) {
            Err(error @ Error::Spawn(..)) => {
                let worker = &mut self.workers[at];
                worker.seat.not_started(Instant::now());
                let (name, index) = (worker.seat.name.clone(), worker.index);
                let is_given_up = worker.seat.has_failed;
                self.dispatch.worker_gone(index, is_given_up, &mut self.ledger);
                self.record_death(name, None, error.to_string(), None);
                Ok(())
            }
            started => started,
        }
    }

    pub(super) fn start_worker(&mut self, at: usize) -> Result<(), Error> {
        let since = Instant::now();
        let Some((child, cards)) = self.spawn_worker(at)? else { return Ok(()) };
        let worker = &mut self.workers[at];
        let model_at = usize::from(worker.model.0);
        let (model, place) = (&self.models[model_at], &self.places[model_at]);
        worker.seat.sit(child, since);
        let has_card = cards.is_some();
        let gpu_count = cards.as_ref().map_or(0, Devices::count);
        worker.cards = cards;
        self.dispatch.worker_started(worker.index, has_card);
        let (near, far) = data_pair().map_err(Error::Channel)?;
        worker.data = Some(near);
        let (asked, limits) = (self.config.worker, self.config.limits);
        let one_request = asked.lifetime == Lifetime::Request;
        // What a worker of one request keeps is of use to nobody.
        let unless_one = |value| if one_request { 0 } else { value };
        let config = WorkerConfig {
            threads: place.threads,
            processors: place.processors.clone(),
            exact: asked.activations == Activations::F32,
            kv: asked.kv.format(),
            context_len_tokens: asked.context,
            sequences_max: if one_request { 1 } else { asked.sequences },
            prefix_domains: asked.prefix_principals,
            prefix_len_tokens: unless_one(asked.prefix_tokens),
            prefix_keep_s: asked.prefix_keep_s,
            guess_tokens: asked.guess_tokens,
            texts_len_max_bytes: match asked.lifetime {
                Lifetime::Model => limits.texts_len_max_bytes(),
                Lifetime::Request => limits.body_len_max_bytes.into(),
            },
            one_request,
            gpu_layers: self.config.models[model_at].gpu_layers.filter(|_| has_card),
            gpu_count,
        };
        let Some(image) = &model.image else { return Ok(()) };
        let image = image.try_clone();
        let image = image.map_err(|_| Error::System("copy the image", Errno::EMFILE))?;
        let observed = ChildFacts { child: worker.seat.name.clone() };
        self.ledger.append(Event::ChildStarted { observed });
        worker.seat.send(ToWorkerControl::Config(config), vec![image, far], &self.nursery)
    }

    /// Lets go of data channels that no gateway will take any more, so that their workers end.
    pub(super) fn drop_data_channels(&mut self) {
        self.workers.iter_mut().for_each(|worker| worker.data = None);
    }
}
