//! The kernels of the card beside the card's own limits: how long each takes at the sizes of real models,
//! what it must read and compute at least, and which share of the limit that is.
//!
//! Limits are measured in the same run, by kernels that do nothing else (`kernels/cuda/limits.cu`). Times
//! are the card's own, of launches repeated in a graph, so that what the host takes is left out. Weights and
//! caches are read from several copies in turn, so that none is found in the card's cache. Values are random:
//! speed does not depend on them.
//!
//! `cuda_roofline [--json] [--shape 1b,8b,70b]`. The shape `tiny` is for the emulation, where times mean
//! nothing.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that measures")]

mod between;
mod heads;
mod launch;
mod limits;
mod products;
mod report;
mod shapes;

use std::error::Error;
use std::process::ExitCode;

use kernels::cuda::{Card, CudaError, Driver};

use launch::Bench;
use shapes::Shape;

/// Shapes that are measured if none is named.
const DEFAULT: &str = "1b,8b,70b";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cuda_roofline: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let (mut is_json, mut names) = (false, DEFAULT.to_owned());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => is_json = true,
            "--shape" => names = words.next().ok_or("--shape: name one of 1b, 8b, 70b, tiny")?,
            _ => return Err(format!("{word}: give --json, or --shape 1b,8b,70b").into()),
        }
    }
    let shapes: Vec<Shape> = names
        .split(',')
        .map(|name| Shape::by_name(name).ok_or(format!("--shape {name}: there is no such shape")))
        .collect::<Result<_, _>>()?;
    let driver = Driver::load()?;
    let devices = driver.devices()?;
    let device = devices.first().ok_or(CudaError::NoDevice)?;
    let card = Card::open(&driver, device)?;
    let is_tiny = shapes.iter().all(|shape| shape.name == "tiny");
    let bench = Bench::new(&card, is_tiny)?;
    let limits = limits::measure(&bench, device.multiprocessors, is_tiny)?;
    let mut rows = Vec::new();
    for shape in &shapes {
        products::measure(&bench, shape, &limits, &mut rows)?;
        between::measure(&bench, shape, &limits, &mut rows)?;
        heads::measure(&bench, shape, &limits, &mut rows)?;
    }
    if is_json {
        println!("{}", report::json(device, &limits, &shapes, &rows));
    } else {
        report::lines(device, &limits, &shapes, &rows).iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}
