//! Runs launches that come on standard input on a card, and gives buffers back on standard output: the
//! requests of `kernels/cuda/emulated/main.cpp`, through the driver. For tests, on a real card or on the
//! stand-in for the driver.
//!
//! `cuda_run --kernels` names the kernels; `cuda_run --devices` the cards. With `CLOISTER_CUDA_GRAPH` set, the
//! launches are recorded as a graph first.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program of the tests")]

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use kernels::cuda::{Card, CudaError, Driver, KERNELS, Memory};

/// What every buffer without bytes holds.
const POISON: u8 = 0xFF;

/// Reads a request.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }

    fn number(&mut self) -> usize {
        let bytes = self.bytes(4).try_into().unwrap_or_default();
        u32::from_le_bytes(bytes) as usize
    }

    fn small(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap_or_default())
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().unwrap_or_default())
    }
}

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let done = match argument.as_deref() {
        Some("--kernels") => {
            KERNELS.iter().for_each(|name| println!("{name}"));
            Ok(())
        }
        Some("--devices") => tell_devices(),
        _ => run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn tell_devices() -> Result<(), CudaError> {
    for device in Driver::load()?.devices()? {
        let (major, minor) = device.capability;
        println!(
            "{}: {}, compute capability {major}.{minor}, {} multiprocessors, {} MiB",
            device.number,
            device.name,
            device.multiprocessors,
            device.memory >> 20
        );
    }
    Ok(())
}

fn run() -> Result<(), CudaError> {
    let mut request = Vec::new();
    if io::stdin().read_to_end(&mut request).is_err() {
        return Ok(());
    }
    let driver = Driver::load()?;
    let devices = driver.devices()?;
    let device = devices.first().ok_or(CudaError::NoDevice)?;
    let card = Card::open(&driver, device)?;
    let mut reader = Reader(&request);
    // The order of threads is the card's.
    reader.long();
    let mut buffers = Vec::new();
    for _ in 0..reader.number() {
        buffers.push(buffer(&card, &mut reader)?);
    }
    let mut launches =
        || (0..reader.number()).try_for_each(|_| launch(&card, &buffers, &mut reader));
    if std::env::var_os("CLOISTER_CUDA_GRAPH").is_some() {
        let graph = card.record(launches)?;
        // SAFETY: as for each launch.
        unsafe { graph.launch()? };
    } else {
        launches()?;
    }
    card.finish()?;
    let mut output = io::stdout().lock();
    for (memory, _) in buffers.iter().filter(|(_, is_returned)| *is_returned) {
        let mut bytes = vec![0; memory.size()];
        memory.read(0, &mut bytes)?;
        let _ = output.write_all(&bytes);
    }
    Ok(())
}

/// Allocates a buffer of a request; whether it is returned.
fn buffer<'c>(
    card: &'c Card<'c>,
    reader: &mut Reader<'_>,
) -> Result<(Memory<'c>, bool), CudaError> {
    let size = usize::try_from(reader.long()).unwrap_or(usize::MAX);
    let (has_bytes, is_returned) = (reader.number() > 0, reader.number() > 0);
    let mut memory = card.allocate(size)?;
    if has_bytes {
        memory.write(0, reader.bytes(size))?;
    } else {
        memory.fill(POISON)?;
    }
    Ok((memory, is_returned))
}

fn launch(
    card: &Card<'_>,
    buffers: &[(Memory<'_>, bool)],
    reader: &mut Reader<'_>,
) -> Result<(), CudaError> {
    let len = reader.number();
    let name = String::from_utf8_lossy(reader.bytes(len)).into_owned();
    let grid = [reader.small(), reader.small(), reader.small()];
    let (threads, _, _) = (reader.small(), reader.small(), reader.small());
    let shared = reader.small();
    let mut arguments = Vec::new();
    for _ in 0..reader.number() {
        let len = reader.number();
        let mut argument = reader.bytes(len).to_vec();
        for _ in 0..reader.number() {
            let (at, index, offset) = (reader.number(), reader.number(), reader.long());
            let address = buffers[index].0.address() + offset;
            argument[at..at + 8].copy_from_slice(&address.to_le_bytes());
        }
        arguments.push(argument);
    }
    let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
    // SAFETY: the tests' requests are those of the kernels' README, and the buffers outlive the run.
    unsafe { card.launch(&name, grid, threads, shared, &arguments) }
}
