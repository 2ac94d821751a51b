//! The kernels that measure a card do the work that is counted for them.

use crate::data::Random;
use crate::emulator::{Emulator, Request, pointer, value};

#[test]
fn every_word_is_read_once() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(1);
    for (pieces, blocks) in [(1, 1), (255, 1), (3000, 2), (10_000, 3)] {
        let words: Vec<u32> = (0..pieces * 4).map(|_| random.bits()).collect();
        let mut request = Request::new(1);
        let out = request.output::<u32>(blocks);
        let arguments = [pointer(request.input(&words)), value(pieces as u64), pointer(out)];
        request.launch("limit_read", [blocks, 1, 1], 256, &arguments);
        let found = request.run(emulator).get(out).into_iter().fold(0, |all, word| all ^ word);
        assert_eq!(found, words.iter().fold(0, |all, word| all ^ word), "{pieces} pieces");
    }
}

#[test]
fn every_product_of_bytes_is_made() {
    let Some(emulator) = Emulator::get() else { return };
    let rounds = 5;
    let mut request = Request::new(2);
    let out = request.output::<i32>(512);
    request.launch("limit_int8", [2, 1, 1], 256, &[value(rounds), pointer(out)]);
    let dot = |group: u32| -> i32 {
        let a = 0x9E37_79B9_u32.wrapping_mul(group).to_le_bytes();
        let b = 0x85EB_CA6B_u32.wrapping_mul(group).to_le_bytes();
        a.iter().zip(b).map(|(a, b)| i32::from(a.cast_signed()) * i32::from(b.cast_signed())).sum()
    };
    // Eight groups of four make the 32 columns; each thread has 4 sums in each of 8 chains.
    let wanted = (1..=8).map(dot).sum::<i32>() * rounds * 32;
    assert_eq!(request.run(emulator).get(out), vec![wanted; 512]);
}

#[test]
fn every_fused_step_is_made() {
    let Some(emulator) = Emulator::get() else { return };
    let (rounds, factor) = (7, 0.75_f32);
    let mut request = Request::new(3);
    let out = request.output::<f32>(256);
    let arguments = [value(rounds), value(factor), pointer(out)];
    request.launch("limit_float", [1, 1, 1], 256, &arguments);
    let chain = |k: u8| (0..rounds).fold(0.0, |x: f32, _| x.mul_add(factor, f32::from(k)));
    let wanted = (1..=8).map(chain).fold(0.0, |sum, x| sum + x);
    assert_eq!(request.run(emulator).get(out), vec![wanted; 256]);
}
