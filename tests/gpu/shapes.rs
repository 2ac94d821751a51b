//! Shapes that a kernel would leave its memory by are refused by its safe callers, before it is launched.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kernels::cuda::{
    Batch, BatchLimits, Buffer, Cache, CacheShape, Card, Contents, Embedding, Heads, Matrix,
    PageType, Preparation,
};
use kernels::ops::{AttentionShape, Place, Rope, RopePairs};
use kernels::{Packed, TensorType, packed_size};

use crate::stand_in::with_card;

/// Tokens of the batches.
const TOKENS: usize = 12;

/// A batch of one text, which is cut into runs of so many tokens.
fn batch<'c>(card: &'c Card<'c>, run_len: usize) -> Batch<'c> {
    let limits = BatchLimits {
        tokens: TOKENS,
        logits: 1,
        positions: 32,
        tables_len: 1,
        pairs: [1, 0],
        run_len,
    };
    let mut batch = Batch::new(card, limits).unwrap();
    let mut rope = Rope::new(RopePairs::Halves, 2, 10_000.0, None, TOKENS);
    rope.set_positions(0..TOKENS);
    let places: Vec<_> = (0..TOKENS).map(|position| Place { table: 0, position }).collect();
    let (tokens, wanted) = (&[1; TOKENS], &[]);
    let contents = Contents { tokens, places: &places, wanted, rope: &rope, local_rope: None };
    batch.set(&contents).unwrap();
    batch
}

/// What a panic says, if there is one.
fn refusal<T>(task: impl FnOnce() -> T) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(task)).err()?;
    let literal = panic.downcast_ref::<&str>().map(ToString::to_string);
    literal.or_else(|| panic.downcast_ref::<String>().cloned())
}

#[test]
fn rows_of_a_table_that_is_wider_than_the_embedding_are_refused() {
    let test = "shapes::rows_of_a_table_that_is_wider_than_the_embedding_are_refused";
    with_card(test, |card| {
        let table = |cols| {
            let bytes = vec![0; packed_size(TensorType::Q8_0, 32, cols).unwrap()];
            let packed = Packed::new(TensorType::Q8_0, 32, cols, &bytes).unwrap();
            Matrix::new(card, &packed, None).unwrap()
        };
        let (narrow, wide, batch) = (table(32), table(64), batch(card, 1));
        let mut embedding = Embedding::new(card, &narrow, TOKENS).unwrap();
        let mut out = Buffer::new(card, TOKENS * 64).unwrap();
        embedding.rows(card, &narrow, &batch, 1.0, &mut out).unwrap();
        let told = refusal(|| embedding.rows(card, &wide, &batch, 1.0, &mut out)).unwrap();
        assert!(told.contains("the buffer has room"), "{told}");
        card.finish().unwrap();
    });
}

/// Prepares heads of a length and attends with them, four query heads on two; what a refusal says.
fn attend(card: &Card<'_>, head_dim: usize, pages: PageType, run_len: usize) -> Option<String> {
    let shape = AttentionShape { n_heads: 4, n_kv_heads: 2, head_dim, scale: 1.0, window: None };
    let held =
        CacheShape { pages, n_layers: 1, n_pages: 1, n_kv_heads: 2, head_dim, tables_len: 1 };
    let mut cache = Cache::new(card, held).unwrap();
    cache.set_tables(&[0]).unwrap();
    let mut heads = Heads::new(card, &shape, TOKENS, 32).unwrap();
    let batch = batch(card, run_len);
    let how = Preparation { norms: None, epsilon: 1e-5, pairs: RopePairs::Halves };
    let refused = refusal(|| {
        heads.prepare(card, &batch, &shape, &how, (&mut cache, 0)).unwrap();
        heads.attend(card, &batch, &shape, (&cache, 0)).unwrap();
    });
    card.finish().unwrap();
    cache.zero(&[0]).unwrap();
    refused
}

#[test]
fn heads_that_are_no_whole_blocks_of_their_cache_are_refused() {
    let test = "shapes::heads_that_are_no_whole_blocks_of_their_cache_are_refused";
    with_card(test, |card| {
        for (head_dim, pages, is_refused) in [
            (48, PageType::F16, false),
            (64, PageType::Q8_0, false),
            (48, PageType::Q8_0, true),
            (40, PageType::F32, true),
        ] {
            let told = attend(card, head_dim, pages, 1);
            assert_eq!(told.is_some(), is_refused, "{head_dim}, {pages:?}: {told:?}");
            assert!(told.is_none_or(|told| told.contains("whole blocks")));
        }
    });
}

#[test]
fn runs_that_are_longer_than_the_rows_of_a_warp_are_refused() {
    let test = "shapes::runs_that_are_longer_than_the_rows_of_a_warp_are_refused";
    with_card(test, |card| {
        for (head_dim, longest) in [(64, 4), (256, 2)] {
            assert_eq!(attend(card, head_dim, PageType::F16, longest), None);
            let told = attend(card, head_dim, PageType::F16, longest + 1).unwrap();
            assert!(told.contains("a warp's rows"), "{told}");
        }
    });
}
