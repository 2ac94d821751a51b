//! The embedding row of a token: bit for bit that of the packed table, in every format.

use std::fs;
use std::path::Path;

use kernels::TensorType;

use crate::data::{Matrix, Random, assert_same, is_int};
use crate::emulator::{Emulator, Request, pointer, sources, value};

/// Bytes of a tile that `embed_scan` keeps, and the shift that tells the tile of a row.
fn tile(matrix: &Matrix) -> (usize, u32) {
    let row_size = matrix.ty.row_size(matrix.cols).unwrap();
    if is_int(matrix.ty) || matrix.ty.block_len() == 1 {
        return (matrix.packed.len() / matrix.rows.div_ceil(16), 4);
    }
    // As many rows as are a multiple of 16 bytes.
    let shift = (0..=4).find(|shift| (row_size << shift).is_multiple_of(16)).unwrap();
    (row_size << shift, shift)
}

#[test]
fn rows_are_found_in_every_format_by_a_scan_of_the_table() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(1);
    for ty in TensorType::all() {
        for (rows, cols) in [(37, 512), (16, if ty.block_len() == 256 { 256 } else { 64 })] {
            let cols = if ty.block_len() == 1 { cols - 27 } else { cols };
            let matrix = Matrix::random(&mut random, ty, rows, cols);
            let tokens: Vec<u32> =
                (0..9).map(|i| i * 7919 % rows as u32).chain([0, rows as u32 - 1]).collect();
            let (tile_size, shift) = tile(&matrix);
            let n = tokens.len();
            let mut request = Request::new(rows as u64);
            let table = request.input(&matrix.packed);
            let on_card = request.input(&tokens);
            let found = request.changed(&vec![0_u32; n * tile_size / 4]);
            let out = request.output::<f32>(n * cols);
            let (shift_value, count) = (value(shift), value(n as i32));
            let scan = [
                pointer(table),
                value(matrix.packed.len() as u64),
                value(tile_size as u64),
                shift_value.clone(),
                pointer(on_card),
                count,
                pointer(found),
            ];
            let grid = [tile_size.div_ceil(128 * 16), 2, n.div_ceil(8)];
            request.launch("embed_scan", grid, 128, &scan);
            let pick = [
                value(ty.id()),
                pointer(found),
                value(tile_size as u64),
                shift_value,
                value(cols as i32),
                pointer(on_card),
                value(0.5_f32),
                pointer(out),
            ];
            request.launch("embed_rows", [cols.div_ceil(256), n, 1], 64, &pick);
            let found = request.run(emulator).get(out);
            for (token, found) in tokens.iter().zip(found.chunks_exact(cols)) {
                let mut wanted = vec![0.0; cols];
                matrix.view().unpack_row(*token as usize, &mut wanted);
                wanted.iter_mut().for_each(|weight| *weight *= 0.5);
                assert_same(found, &wanted, &format!("{} row {token}", ty.name()));
            }
        }
    }
}

/// The tables of a source: name and points of each.
fn tables(path: &Path, start: &str, open: &str, close: char) -> Vec<(String, Vec<u16>)> {
    let text = fs::read_to_string(path).unwrap();
    let point = |hex: &str| u16::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap();
    let tables = text.split(start).skip(1).map(|table| {
        let name = table.split(['[', ':']).next().unwrap().to_owned();
        let points = table.split_once(open).unwrap().1.split(close).next().unwrap();
        let points = points.split(',').map(str::trim).filter(|hex| !hex.is_empty());
        (name, points.map(point).collect())
    });
    tables.collect()
}

#[test]
fn the_lattices_are_those_of_the_cpu() {
    let on_cpu = sources().join("../src/formats/grids.rs");
    let wanted = tables(&on_cpu, "static ", "= [", ']');
    let found = tables(&sources().join("grids.cuh"), "uint16_t GRID_", "= {", '}');
    let points: usize = wanted.iter().map(|(_, points)| points.len()).sum();
    assert_eq!((wanted.len(), points), (6, 256 + 512 + 1024 + 256 + 512 + 2048));
    assert_eq!(found, wanted);
}
