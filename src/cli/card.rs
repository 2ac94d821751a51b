//! The card that `--gpu-layers` asks for. In a program without the feature `cuda` there is none.

use std::error::Error;

use clap::Args;
use kernels::cuda::{Card, CudaError, Device, Driver};

use super::tell;
use crate::engine::{self, GpuLayers, Model, Needs, Options};

/// Which layers a card computes.
#[derive(Args, Debug)]
pub struct CardArguments {
    /// Layers on a card: the last so many, and the output; -1 for all, `auto` for as many as fit.
    #[arg(long, value_name = "N", default_value = "0", allow_hyphen_values = true)]
    gpu_layers: GpuLayers,
    /// Which card, as `nvidia-smi -L` counts them.
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu_device: usize,
}

impl CardArguments {
    /// Returns whether layers on a card are asked for.
    pub(super) fn is_asked(&self) -> bool {
        self.gpu_layers != GpuLayers::Count(0)
    }

    /// Opens the card and goes on with it, and with how many layers are asked for; without one if none
    /// is asked for, or `auto` finds none, which it says.
    ///
    /// # Errors
    ///
    /// Names what is missing where layers are asked for by number; fails as `then` does.
    pub(super) fn open<T>(
        &self,
        then: impl FnOnce(Option<(&Card<'_>, GpuLayers)>) -> Result<T, Box<dyn Error>>,
    ) -> Result<T, Box<dyn Error>> {
        if !self.is_asked() {
            return then(None);
        }
        let found = self.find();
        let card = found.as_ref().map_err(|error| *error);
        match card.and_then(|(driver, device)| Card::open(driver, device)) {
            Ok(card) => then(Some((&card, self.gpu_layers))),
            Err(error) if self.gpu_layers == GpuLayers::Auto => {
                tell(&format!("no layer on a card: {error}"));
                then(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the card, says what goes there, and goes on with it.
    ///
    /// # Errors
    ///
    /// As [`CardArguments::open`]; [`engine::Error`] if the layers do not fit.
    pub(super) fn with<T>(
        &self,
        model: &Model<'_>,
        options: Options,
        then: impl FnOnce(Options, Option<&Card<'_>>) -> Result<T, Box<dyn Error>>,
    ) -> Result<T, Box<dyn Error>> {
        self.open(|card| match card {
            Some((card, asked)) => then(plan(card, asked, model, &options)?, Some(card)),
            None => then(options, None),
        })
    }

    fn find(&self) -> Result<(Driver, Device), CudaError> {
        let driver = Driver::load()?;
        let device = driver.devices()?.into_iter().nth(self.gpu_device);
        let device = device.ok_or(CudaError::UnknownDevice(self.gpu_device))?;
        Ok((driver, device))
    }
}

/// Decides how many layers go to a card, and says so; where `auto` finds a card that computes none of them, none.
///
/// # Errors
///
/// [`engine::Error`] if the layers that are asked for by number do not fit, or the card does not compute them.
pub(super) fn plan(
    card: &Card<'_>,
    asked: GpuLayers,
    model: &Model<'_>,
    options: &Options,
) -> Result<Options, engine::Error> {
    let planned = Needs::of(model, options).and_then(|needs| {
        let free = card.free_memory().map_err(engine::Error::from)?;
        needs.plan(asked, free)
    });
    let gpu_layers = match planned {
        Ok(plan) => {
            tell(&plan.to_string());
            plan.gpu_layers
        }
        Err(error) if asked == GpuLayers::Auto => {
            tell(&format!("no layer on a card: {error}"));
            0
        }
        Err(error) => return Err(error),
    };
    Ok(Options { gpu_layers, ..*options })
}
