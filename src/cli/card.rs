//! The cards that `--gpu-layers` asks for. In a program without the feature `cuda` there is none.

use std::error::Error;

use clap::Args;
use kernels::Pool;
use kernels::cuda::{Card, CudaError, Driver};

use super::tell;
use crate::engine::{self, Engine, GpuLayers, Model, Needs, Options, Plan};

/// Which layers cards compute.
#[derive(Args, Debug)]
pub struct CardArguments {
    /// Layers on a card: the last so many, and the output; -1 for all, `auto` for as many as fit.
    #[arg(long, value_name = "N", default_value = "0", allow_hyphen_values = true)]
    gpu_layers: GpuLayers,
    /// Which card, as `nvidia-smi -L` counts them; several, as in `0,1`, each take some layers.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0")]
    gpu_device: Vec<usize>,
}

impl CardArguments {
    /// Returns whether layers on a card are asked for.
    pub(super) fn is_asked(&self) -> bool {
        self.gpu_layers != GpuLayers::Count(0)
    }

    /// Opens the cards and goes on with them, and with how many layers are asked for; without one if none
    /// is asked for, or `auto` finds none, which it says.
    ///
    /// # Errors
    ///
    /// Names what is missing where layers are asked for by number; fails as `then` does.
    pub(super) fn open<T>(
        &self,
        then: impl FnOnce(Option<(&[Card<'_>], GpuLayers)>) -> Result<T, Box<dyn Error>>,
    ) -> Result<T, Box<dyn Error>> {
        if !self.is_asked() {
            return then(None);
        }
        let driver = Driver::load();
        let cards = driver.as_ref().map_err(|error| *error).and_then(|driver| self.cards(driver));
        match cards {
            Ok(cards) => then(Some((&cards, self.gpu_layers))),
            Err(error) if self.gpu_layers == GpuLayers::Auto => {
                tell(&format!("no layer on a card: {error}"));
                then(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn cards<'d>(&self, driver: &'d Driver) -> Result<Vec<Card<'d>>, CudaError> {
        let devices = driver.devices()?;
        let open = |number: &usize| {
            let device = devices.get(*number).ok_or(CudaError::UnknownDevice(*number))?;
            Card::open(driver, device)
        };
        self.gpu_device.iter().map(open).collect()
    }
}

/// Makes an engine with the layers on cards that are asked for, and says which go where; with none where `auto`
/// finds a model that no card computes.
pub(super) fn engine<'m>(
    pool: Pool,
    (cards, asked): (&'m [Card<'m>], GpuLayers),
    model: &'m Model<'m>,
    options: Options,
) -> Result<Engine<'m>, engine::Error> {
    let plan = match plan(cards, asked, model, &options) {
        Ok(plan) => plan,
        Err(error) if asked == GpuLayers::Auto => {
            tell(&format!("no layer on a card: {error}"));
            return Engine::on(pool, model, options);
        }
        Err(error) => return Err(error),
    };
    tell(&plan.to_string());
    let options = Options { gpu_layers: plan.gpu_layers(), ..options };
    Engine::on_cards(pool, model, options, cards, &plan.layers())
}

fn plan(
    cards: &[Card<'_>],
    asked: GpuLayers,
    model: &Model<'_>,
    options: &Options,
) -> Result<Plan, engine::Error> {
    let free = cards.iter().map(Card::free_memory).collect::<Result<Vec<_>, _>>()?;
    Needs::of(model, options)?.plan(asked, &free)
}
