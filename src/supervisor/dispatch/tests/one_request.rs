//! Workers that serve one request each: who gets which, who waits, and what ends them.

use super::*;
use crate::supervisor::config::Worker;

/// The places of the first model: two that compute at once, one in spare.
const PLACES: [WorkerIndex; 3] = [WorkerIndex(0), WorkerIndex(1), WorkerIndex(2)];

/// An appliance whose gateway and workers serve, each worker one request.
fn serving_one_each(name: &str) -> Appliance {
    let worker =
        Worker { lifetime: Lifetime::Request, sequences: 2, spare: 1, ..Worker::default() };
    let mut it = appliance_of(name, worker);
    it.dispatch.limits.requests_per_key_max = 9;
    it.dispatch.limits.requests_max = 9;
    it.dispatch.gateway_started();
    it.gateway(FromGateway::Ready).unwrap();
    for place in PLACES {
        fresh(&mut it, place);
    }
    let ready = it.turn();
    let opened = ready.iter().filter(|effect| matches!(effect, Effect::ModelReady(MODEL)));
    assert_eq!(opened.count(), 1, "{ready:?}");
    it
}

/// A worker is started in a place, and ready.
fn fresh(it: &mut Appliance, place: WorkerIndex) {
    it.dispatch.worker_started(place, false);
    it.worker(place, ready()).unwrap();
}

/// Begins a request; its worker, if it has one at once.
fn begin(it: &mut Appliance) -> (RequestId, Option<WorkerIndex>) {
    it.ask("first").unwrap();
    let effects = it.turn();
    let begun = effects.iter().find_map(|effect| match effect {
        Effect::Gateway(ToGateway::Begun { request, worker, .. }) => Some((*request, *worker)),
        _ => None,
    });
    let (request, worker) = begun.unwrap();
    let ticket = effects.iter().find_map(|effect| match effect {
        Effect::Worker(worker, ToWorkerControl::Ticket(ticket)) => Some((ticket, *worker)),
        _ => None,
    });
    assert_eq!(
        ticket.map(|(ticket, worker)| (ticket.request, worker)),
        worker.map(|at| (request, at))
    );
    assert!(ticket.is_none_or(|(ticket, _)| ticket.cache_domain.is_none()), "nothing is kept");
    (request, worker)
}

/// Whose turn it is, by the effects.
fn turns(effects: &[Effect]) -> Vec<(RequestId, Option<WorkerIndex>)> {
    let turn = |effect: &Effect| match effect {
        Effect::Gateway(ToGateway::Turn { request, worker }) => Some((*request, *worker)),
        _ => None,
    };
    effects.iter().filter_map(turn).collect()
}

fn served(it: &mut Appliance, place: WorkerIndex, request: RequestId) {
    it.worker(place, WorkerReport::End(end(request))).unwrap();
}

#[test]
fn each_request_has_a_worker_of_its_own_and_one_too_many_waits_for_the_spare_one() {
    let mut it = serving_one_each("own");
    let (first, first_place) = begin(&mut it);
    let (second, second_place) = begin(&mut it);
    assert_eq!((first_place, second_place), (Some(PLACES[0]), Some(PLACES[1])));
    let (third, none) = begin(&mut it);
    let (fourth, _) = begin(&mut it);
    assert_eq!(none, None, "two compute at once");
    let counts = it.dispatch.counts(MODEL);
    assert_eq!((counts.ready, counts.serving_one, counts.waiting), (1, 2, 2));

    it.now.instant += Duration::from_secs(7);
    served(&mut it, PLACES[0], first);
    let effects = it.turn();
    assert_eq!(turns(&effects), [(third, Some(PLACES[2]))]);
    let Effect::Worker(place, ToWorkerControl::Ticket(ticket)) = &effects[0] else { panic!() };
    assert_eq!((*place, ticket.request), (PLACES[2], third), "the ticket comes first");
    assert_eq!(ticket.deadline_ms, 53_000, "it has waited for a part of its time");
    // Its worker is never given another, and its place has none until a fresh one is ready.
    assert_eq!(it.dispatch.served(PLACES[0]), Some(first));
    assert_eq!(it.dispatch.worker_gone(PLACES[0], false, &mut it.ledger), None);
    assert!(turns(&it.turn()).is_empty());
    served(&mut it, PLACES[1], second);
    assert!(turns(&it.turn()).is_empty(), "there is none");
    fresh(&mut it, PLACES[0]);
    assert_eq!(turns(&it.turn()), [(fourth, Some(PLACES[0]))]);
}

#[test]
fn a_worker_that_has_served_and_stays_is_ended() {
    let mut it = serving_one_each("stays");
    let (request, place) = begin(&mut it);
    served(&mut it, place.unwrap(), request);
    assert!(it.turn().is_empty());
    it.now.instant += Duration::from_secs(10);
    assert!(matches!(it.turn()[..], [Effect::WorkerDone(place)] if place == PLACES[0]));
    // One that the gateway never brought its request is of no use any more either.
    let (request, place) = begin(&mut it);
    it.gateway(FromGateway::Abandoned { request }).unwrap();
    it.turn();
    it.worker(place.unwrap(), WorkerReport::Unused { request }).unwrap();
    let effects = it.turn();
    let is_ended = |effect: &Effect| matches!(effect, Effect::WorkerDone(at) if Some(*at) == place);
    assert!(effects.iter().any(is_ended), "{effects:?}");
    assert_eq!(it.dispatch.served(place.unwrap()), Some(request));
}

#[test]
fn a_worker_that_dies_takes_its_request_along_and_neither_the_model_nor_those_that_wait() {
    let mut it = serving_one_each("dies");
    begin(&mut it);
    begin(&mut it);
    let (waiting, _) = begin(&mut it);
    assert_eq!(it.dispatch.served(PLACES[0]), None, "an end that nobody expects");
    it.dispatch.worker_gone(PLACES[0], false, &mut it.ledger);
    assert_eq!(turns(&it.turn()), [(waiting, Some(PLACES[2]))]);
    assert!(journal(&it.folder).contains("worker_gone"));
    assert!(it.dispatch.engine(MODEL).is_some());
    for place in PLACES {
        it.dispatch.worker_gone(place, false, &mut it.ledger);
    }
    it.turn();
    let (waiting, none) = begin(&mut it);
    assert_eq!(none, None, "workers can be started");
    for place in PLACES {
        it.dispatch.worker_gone(place, true, &mut it.ledger);
    }
    let effects = it.turn();
    assert!(matches!(effects[0], Effect::Gateway(ToGateway::ModelDown { model: MODEL })));
    assert_eq!(turns(&effects), [(waiting, None)]);
    assert!(it.dispatch.engine(MODEL).is_none());
    it.ask("first").unwrap();
    assert_eq!(it.denied(), Denial::ModelUnavailable);
}

#[test]
fn what_waits_ends_with_its_time_its_token_its_client_and_its_gateway() {
    let mut it = serving_one_each("waits");
    begin(&mut it);
    begin(&mut it);
    let (left, _) = begin(&mut it);
    it.gateway(FromGateway::Abandoned { request: left }).unwrap();
    assert!(it.turn().is_empty(), "who left is told nothing");
    assert!(journal(&it.folder).contains("abandoned"));

    let (revoked, _) = begin(&mut it);
    let tokens = it.dispatch.tokens.clone();
    it.dispatch.set_tokens(TokenTable::default(), &mut it.ledger, it.now);
    let effects = it.turn();
    assert_eq!(turns(&effects), [(revoked, None)]);
    assert!(journal(&it.folder).contains("revoked"));
    // Its word may cross the supervisor's.
    it.gateway(FromGateway::Abandoned { request: revoked }).unwrap();
    it.dispatch.set_tokens(tokens, &mut it.ledger, it.now);

    let (late, _) = begin(&mut it);
    it.now.instant += Duration::from_secs(60);
    assert_eq!(turns(&it.turn()), [(late, None)]);
    assert!(journal(&it.folder).contains("\"cause\":\"deadline\""));

    begin(&mut it);
    it.dispatch.gateway_gone(&mut it.ledger);
    it.turn();
    assert_eq!((it.dispatch.waiting_count(), it.dispatch.open_count()), (0, 0));
    assert_eq!(journal(&it.folder).matches("gateway_gone").count(), 3);
}

#[test]
fn another_workers_request_is_not_ended_by_a_worker() {
    let mut it = serving_one_each("others");
    let (first, _) = begin(&mut it);
    begin(&mut it);
    let report = it.worker(PLACES[1], WorkerReport::End(end(first)));
    assert_eq!(report, Err(Fault::UnknownRequest(Kind::End)));
}
