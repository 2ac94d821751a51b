//! `cloister model synth`: write a model of a real shape with random weights, for timing where no real
//! weights of that size are at hand.
//!
//! The same shape, formats, layers and seed give the same bytes. The file is written as it is made; no
//! more than a piece of a tensor is in memory.

mod blocks;
mod header;
mod shape;
mod vocabulary;

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum as _};
use nix::sys::statvfs::statvfs;

use self::shape::{Content, Quant, Shape, ShapeName, Tensor};
use super::model_report::{fail, progress_bar};
use super::{Outcome, Verdict, print};
use crate::engine::Random;
use crate::package::files::{NewFile, Overwrite, io_error};

/// Blocks that are made at a time.
const PIECE_BLOCKS: usize = 8192;
/// Most layers of a shape.
const LAYERS_MAX: i64 = 80;

/// Arguments of `cloister model synth`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    cloister model synth --shape 8b --out 8b.gguf\n  \
    cloister model synth --shape 70b --layers 8 --out slice.gguf --seed 7\n  \
    cloister model synth --shape 1b --quant q8_0 --out 1b-q8.gguf && cloister bench 1b-q8.gguf\n\n\
    The model has the tensors, formats and sizes of the real one, a vocabulary of bytes and pairs of\n\
    letters, and a chat template: it can be loaded and served, here and by llama.cpp, and answers\n\
    noise. Weights are made as blocks of their format, not quantised from floats. They are such that\n\
    activations stay near 1 in size.")]
pub struct Arguments {
    /// Whose shape.
    #[arg(long, value_enum)]
    shape: ShapeName,
    /// The formats of the matrices.
    #[arg(long, value_enum, default_value = "q4_k_m")]
    quant: Quant,
    /// Fewer layers than the shape has.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=LAYERS_MAX))]
    layers: Option<u32>,
    /// What the weights are drawn from: the same number, the same file.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Where the model goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace an existing file.
    #[arg(long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister model synth`.
///
/// # Errors
///
/// More layers than the shape has; a file that is there, cannot be written, or does not fit the disk.
pub fn run(arguments: &Arguments) -> Outcome {
    let Arguments { quant, seed, out, .. } = arguments;
    let name = arguments.shape.to_possible_value().map_or_else(String::new, |value| {
        format!("{}, random weights, seed {seed}", value.get_name())
    });
    let whole = Shape::new(arguments.shape, None);
    let n_layers = arguments.layers.map(|layers| layers as usize);
    if let Some(layers) = n_layers.filter(|&layers| layers > whole.n_layers) {
        return Err(format!("--layers {layers}: the shape has {}", whole.n_layers).into());
    }
    let shape = Shape::new(arguments.shape, n_layers);
    let tensors = shape.tensors(*quant);
    let header = header::write(&shape, *quant, &tensors, &name);
    let sizes = tensors.iter().map(|tensor| header::padded(tensor.size()));
    let len_bytes = header.len() as u64 + sizes.sum::<u64>();
    let overwrite = if arguments.force { Overwrite::Force } else { Overwrite::No };
    let mut file = match NewFile::create(out, 0o644, overwrite) {
        Ok(file) => file,
        Err(error) => return fail(out, &error, arguments.json),
    };
    check_room(out, len_bytes)?;
    let bar = progress_bar("writing", len_bytes);
    let mut random = Random::new(*seed);
    let mut write = |bytes: &[u8]| {
        bar.inc(bytes.len() as u64);
        file.write_all(bytes)
    };
    let written = write(&header).and_then(|()| {
        tensors.iter().try_for_each(|tensor| write_tensor(tensor, &mut random, &mut write))
    });
    bar.finish_and_clear();
    if let Err(error) = written.map_err(io_error("write", out)).and_then(|()| file.finish()) {
        return fail(out, &error, arguments.json);
    }
    let weights: u64 = tensors.iter().map(Tensor::len).sum();
    if arguments.json {
        let report = serde_json::json!({
            "file": out, "len_bytes": len_bytes, "weights": weights, "layers": shape.n_layers,
            "seed": seed,
        });
        print(&report.to_string());
    } else {
        print(&format!(
            "{}: {:.3} GB, {:.3} G weights, {} layers, seed {seed}",
            out.display(),
            len_bytes as f64 / 1e9,
            weights as f64 / 1e9,
            shape.n_layers,
        ));
    }
    Ok(Verdict::Holds)
}

/// Writes a tensor and the zeros after it.
fn write_tensor(
    tensor: &Tensor,
    random: &mut Random,
    write: &mut impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let piece_size = (PIECE_BLOCKS * tensor.ty.block_size()) as u64;
    let mut piece = Vec::new();
    let mut left = tensor.size();
    while left > 0 {
        let size = left.min(piece_size);
        piece.resize(usize::try_from(size).unwrap_or(0), 0);
        match &tensor.content {
            Content::Weights(deviation) => blocks::fill(tensor.ty, *deviation, random, &mut piece),
            Content::Factors => blocks::fill_factors(random, &mut piece),
            Content::Given(values) => {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes());
                piece.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
            }
        }
        write(&piece)?;
        left -= size;
    }
    let zeros = header::padded(tensor.size()) - tensor.size();
    write(&[0; crate::gguf::ALIGNMENT_DEFAULT as usize][..usize::try_from(zeros).unwrap_or(0)])
}

/// Refuses a file that its disk has no room for, before any of it is made.
fn check_room(path: &Path, needed: u64) -> Result<(), Box<dyn Error>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let disk = statvfs(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    if free < needed {
        let (needed, free) = (needed as f64 / 1e9, free as f64 / 1e9);
        return Err(format!(
            "{}: the file takes {needed:.1} GB and the disk has {free:.1} GB free: give another \
             place with --out, or fewer --layers",
            path.display()
        )
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_refused_before_anything_is_written() {
        let path = std::env::temp_dir().join("large.gguf");
        assert!(check_room(&path, 1).is_ok());
        let told = check_room(&path, u64::MAX).unwrap_err().to_string();
        assert!(told.contains("large.gguf") && told.contains("GB free"), "{told}");
        let told = check_room(Path::new("/no/such/folder/a.gguf"), 1).unwrap_err().to_string();
        assert!(told.starts_with("/no/such/folder"), "{told}");
    }
}
