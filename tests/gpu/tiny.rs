//! The tiny models, as they are and with weights of 8 and 4 bits, and engines of them on a card.

use std::fs;
use std::path::PathBuf;

use cloister::engine::{Engine, Model, Options};
use cloister::gguf::{self, Header, TensorInfo};
use half::f16;
use kernels::Pool;
use kernels::cuda::Card;

/// What the data of a tensor starts at a multiple of.
const ALIGNMENT: usize = 32;
/// GGML's numbers of the formats.
const Q4_0: u32 = 2;
const Q8_0: u32 = 8;

/// The folder of the models. Tests run where the package lies, which on a machine with a card need not be
/// where they were built.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from("tests/golden/tiny")
}

pub(crate) fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.gguf"))
}

/// An engine on one thread and a card.
pub(crate) fn engine<'m>(model: &'m Model<'m>, options: Options, card: &'m Card<'m>) -> Engine<'m> {
    Engine::on_card(Pool::new(1), model, options, card).unwrap()
}

/// Writes a tiny model anew with its matrices in 8 bits, those of values and of the gate in 4.
pub(crate) fn quantised(name: &str) -> PathBuf {
    let file = fs::read(path(name)).unwrap();
    let header = gguf::parse(&file, file.len() as u64).unwrap();
    let mut table = Vec::new();
    let mut data = Vec::new();
    for tensor in &header.tensors {
        let start = usize::try_from(header.data_range(tensor).start).unwrap();
        let source = &file[start..][..usize::try_from(tensor.size).unwrap()];
        let ty = type_of(tensor);
        table.extend((tensor.name.len() as u64).to_le_bytes());
        table.extend(tensor.name.as_bytes());
        table.extend(u32::try_from(tensor.shape.len()).unwrap().to_le_bytes());
        tensor.shape.iter().for_each(|dim| table.extend(dim.to_le_bytes()));
        table.extend(ty.to_le_bytes());
        table.extend((data.len() as u64).to_le_bytes());
        match ty {
            Q8_0 => floats(source).chunks_exact(32).for_each(|block| put_q8_0(block, &mut data)),
            Q4_0 => floats(source).chunks_exact(32).for_each(|block| put_q4_0(block, &mut data)),
            _ => data.extend_from_slice(source),
        }
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
    }
    let mut out = file[..table_start(&file, &header)].to_vec();
    out.extend(table);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out.extend(data);
    let target = std::env::temp_dir();
    let target = target.join(format!("cloister-{name}-{}.gguf", std::process::id()));
    fs::write(&target, out).unwrap();
    target
}

/// Where the table of tensors starts: at the name of the first.
fn table_start(file: &[u8], header: &Header) -> usize {
    let name = header.tensors[0].name.as_bytes();
    let first = [&(name.len() as u64).to_le_bytes()[..], name].concat();
    file.windows(first.len()).position(|window| window == first).unwrap()
}

fn type_of(tensor: &TensorInfo) -> u32 {
    match tensor.shape.len() {
        1 => tensor.ty.id(),
        _ if tensor.name.contains("attn_v") || tensor.name.contains("ffn_gate") => Q4_0,
        _ => Q8_0,
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn put_q8_0(block: &[f32], to: &mut Vec<u8>) {
    let scale = block.iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 127.0;
    to.extend(f16::from_f32(scale).to_le_bytes());
    #[expect(clippy::cast_possible_truncation, reason = "at most 127")]
    to.extend(block.iter().map(|x| ((x / scale).round() as i8).cast_unsigned()));
}

fn put_q4_0(block: &[f32], to: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0_f32, |max, x| if x.abs() > max.abs() { *x } else { max });
    let scale = largest / -8.0;
    to.extend(f16::from_f32(scale).to_le_bytes());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 15")]
    let quant = |x: f32| (x / scale + 8.5).clamp(0.0, 15.0) as u8;
    to.extend((0..16).map(|i| quant(block[i]) | quant(block[i + 16]) << 4));
}
