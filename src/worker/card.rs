//! A worker whose model has layers on a card: everything of the driver happens before the seal, but launches,
//! copies and what gives memory back.
//!
//! The driver is found, the card opened, all of its code loaded, all memory taken, and a first text computed, so that
//! what the driver does when something is used for the first time is done. No request is known here yet.

use std::mem::ManuallyDrop;

use kernels::cuda::{Card, CudaError, Driver};

use super::{Failed, Start, serve_with};
use crate::engine::{self, BatchToken, Engine, Model, Needs, Options};
use crate::ipc::message::{GpuLayers, WorkerReport};

/// Tokens of the first text: more than are read one by one.
const FIRST_TOKENS_COUNT: usize = 12;

impl From<GpuLayers> for engine::GpuLayers {
    fn from(asked: GpuLayers) -> Self {
        match asked {
            GpuLayers::Auto => Self::Auto,
            GpuLayers::All => Self::All,
            GpuLayers::Count(count) => Self::Count(count.into()),
        }
    }
}

/// Serves with a card; without one that computes what is asked for, says why to the supervisor and ends.
pub(super) fn serve(
    start: Start<'_>,
    model: &Model<'_>,
    options: Options,
    asked: GpuLayers,
) -> Result<(), Failed> {
    let control = start.control;
    let refuse = |why: String| {
        // Nobody is left to hear of a failure here; the exit code says it too.
        let _ = control.send(&WorkerReport::NoCard { why }, &[]);
        Failed::Card
    };
    // Its library is never unloaded: that is done by the end of the process.
    let driver = ManuallyDrop::new(Driver::load().map_err(|error| refuse(error.to_string()))?);
    let cards = open(&driver).map_err(|error| refuse(error.to_string()))?;
    let named = usize::from(start.config.gpu_count);
    if cards.len() < named && asked != GpuLayers::Auto {
        let why = format!("the driver finds {} of the {named} cards of gpu_device", cards.len());
        return Err(refuse(why));
    }
    let plan = Needs::of(model, &options).and_then(|needs| {
        let free = cards.iter().map(Card::free_memory).collect::<Result<Vec<_>, _>>();
        needs.plan(asked.into(), &free.map_err(engine::Error::from)?)
    });
    let plan = plan.map_err(|error| refuse(error.to_string()))?;
    if plan.gpu_layers() == 0 {
        return Err(refuse(plan.to_string()));
    }
    let options = Options { gpu_layers: plan.gpu_layers(), ..options };
    let pool = start.pool(options.threads);
    let engine = Engine::on_cards(pool, model, options, &cards, &plan.layers());
    let mut engine = engine.map_err(|error| refuse(error.to_string()))?;
    compute_first(&mut engine).map_err(|error| refuse(error.to_string()))?;
    serve_with(start, engine, &plan.to_string())
}

/// Opens the cards whose device files are here, in the driver's order.
fn open(driver: &Driver) -> Result<Vec<Card<'_>>, CudaError> {
    driver.devices()?.iter().map(|device| Card::open(driver, device)).collect()
}

/// Computes a text in one step and a token after it, and leaves nothing of them.
fn compute_first(engine: &mut Engine<'_>) -> Result<(), engine::Error> {
    let room = engine.options().context_len.min(engine.options().tokens_max);
    let len = FIRST_TOKENS_COUNT.min(room.saturating_sub(1)).max(1);
    let seq = engine.sequence_start((len + 1).min(engine.options().context_len))?;
    engine.prefill(seq, &vec![0; len])?;
    if len < engine.options().context_len {
        engine.forward(&[BatchToken { seq, token: 0, logits: true }])?;
    }
    engine.sequence_end(seq)?;
    engine.erase()
}
