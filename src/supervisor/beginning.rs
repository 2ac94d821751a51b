//! The first records of a run: what the last one left, the start itself, what has changed since the
//! last start, and which settings weaken a protection.

use super::clock::{Clocks, step_since};
use super::config::{Config, Profile};
use super::ledger::Ledger;
use super::swap;
use crate::audit::record::{
    ChangeFacts, ConfigPart, KeyRole, MissingCause, OverrideFacts, RecoveredFacts, StartFacts,
    WeakSetting,
};
use crate::audit::{Error, Event, Found, Log, PrincipalKeys, Signer, Verifier, WrappingKey};

/// Opens the log and the principals' keys, and makes the first records durable; a wrapping key that
/// `is_fresh` was made by this start.
pub(super) fn open_log(
    config: &Config,
    (audit, retired, wrapping, is_fresh): (Signer, Option<Verifier>, WrappingKey, bool),
    start: StartFacts,
    missing: &[String],
) -> Result<(Ledger, Clocks), Error> {
    let mut folders = vec![config.audit_folder.as_path()];
    folders.extend(config.audit_replica.as_deref());
    let (log, found) = Log::open_copies(&folders, config.audit_replica_mode, audit, retired)?;
    must_have_risen(&found, &start)?;
    let wrapping_id = wrapping.id().to_owned();
    let mut principals = PrincipalKeys::open(&config.principals_folder(), wrapping)?;
    principals.forbid(found.erased.iter().cloned());
    let mut ledger = Ledger::new(log, principals, &start);
    if is_fresh {
        ledger.key_created(KeyRole::Wrapping, wrapping_id);
    }
    let clocks = Clocks::now();
    let step = step_since(&found, ledger.boot(), clocks);
    ledger.append_all(step.map(|observed| Event::ClockJump { observed }));
    record(config, start, &found, missing, &mut ledger);
    ledger.finish_erasures()?;
    ledger.destroy_returned()?;
    Ok((ledger, clocks))
}

/// Refuses a counter of the TPM that did not rise since the last start that recorded one.
fn must_have_risen(found: &Found, start: &StartFacts) -> Result<(), Error> {
    match (found.last_tpm_counter, start.tpm_counter) {
        (Some(before), Some(counter)) if counter <= before => {
            Err(Error::CounterStands { index: None, before, counter })
        }
        _ => Ok(()),
    }
}

/// Appends them; `missing` are the protections that this machine or profile lacks, in sentences.
fn record(
    config: &Config,
    start: StartFacts,
    found: &Found,
    missing: &[String],
    ledger: &mut Ledger,
) {
    if found.dropped_bytes > 0 || !found.stopped_in_order {
        let observed = RecoveredFacts { dropped_bytes: found.dropped_bytes };
        ledger.append(Event::Recovered { observed });
    }
    for request in &found.open_requests {
        ledger.append(Event::end_missing(request.clone(), MissingCause::SupervisorGone));
    }
    let changes = found.last_start.as_ref().map(|before| changes(before, &start));
    ledger.append(Event::Start { observed: start });
    let changes = changes.into_iter().flatten();
    ledger.append_all(changes.map(|observed| Event::ConfigChanged { observed }));
    for (setting, model) in weak_settings(config, missing) {
        let model = model.map(ToOwned::to_owned);
        ledger.append(Event::Override { observed: OverrideFacts { setting, model } });
    }
}

/// What is not as it was at the last start.
fn changes(before: &StartFacts, after: &StartFacts) -> Vec<ChangeFacts> {
    let parts = [
        (ConfigPart::Configuration, &before.config_digest, &after.config_digest),
        (ConfigPart::Policy, &before.policy_digest, &after.policy_digest),
        (ConfigPart::Build, &before.build_digest, &after.build_digest),
    ];
    let changed = parts.into_iter().filter(|(_, before, after)| before != after);
    let facts = |(part, before, after): (_, &String, &String)| ChangeFacts {
        part,
        before: before.clone(),
        after: after.clone(),
    };
    changed.map(facts).collect()
}

/// The settings in force that weaken a protection, each with the model that it is about.
fn weak_settings<'a>(
    config: &'a Config,
    missing: &[String],
) -> Vec<(WeakSetting, Option<&'a str>)> {
    let unsigned = config.models.iter().filter(|model| model.allow_unsigned);
    let mut weak: Vec<_> =
        unsigned.map(|model| (WeakSetting::AllowUnsigned, Some(model.name.as_str()))).collect();
    let others = [
        (WeakSetting::EvaluationProfile, config.profile == Profile::Evaluation),
        (WeakSetting::Swap, missing.iter().any(|sentence| sentence == swap::MISSING)),
        (WeakSetting::GuessTokens, config.worker.guess_tokens > 0),
    ];
    let with_card = config.models.iter().filter(|model| model.gpu_layers.is_some());
    weak.extend(with_card.map(|model| (WeakSetting::GpuLayers, Some(model.name.as_str()))));
    weak.extend(others.into_iter().filter(|(_, is_so)| *is_so).map(|(setting, _)| (setting, None)));
    weak
}
