//! The cache, the checks of metadata and tensors, and the context check.

use super::kv_cache::{KvCache, KvType};
use super::*;

#[test]
fn the_context_check_names_all_numbers() {
    assert_eq!(check_context(10, 22, 32), Ok(()));
    let error = check_context(10, 23, 32).unwrap_err();
    assert_eq!(
        error,
        Error::ContextExceeded { prompt_len: 10, answer_len_max: 23, context_len: 32 }
    );
    let text = error.to_string();
    assert!(["33", "10", "23", "32"].iter().all(|number| text.contains(number)), "{text}");
    assert!(check_context(usize::MAX, 1, 32).is_err());
}

fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        n_layers: 2,
        embed_dim: 32,
        ffn_dim: 32,
        n_heads: 2,
        n_kv_heads: 2,
        head_dim: 16,
        vocab_size: 8,
        context_len: 128,
        norm_epsilon: 1e-5,
        rope_pairs: kernels::ops::RopePairs::Halves,
        rope_dims: 16,
        rope_base: 1e4,
        local: None,
        embed_scale: None,
        query_scale: 0.25,
        gate: kernels::ops::Gate::Silu,
        extra_norms: false,
    }
}

#[test]
fn sequences_are_admitted_by_pages_and_leave_zeros() {
    for ty in [KvType::F32, KvType::F16] {
        let config = config();
        let mut cache = KvCache::new(&config, ty, 96, 96, 2);
        let first = cache.start(33).unwrap();
        assert_eq!(cache.start(64), Err(Error::NoFreePages { needed: 2, free: 1 }));
        assert_eq!(cache.start(97), Err(Error::SequenceFull));
        let second = cache.start(1).unwrap();
        assert_eq!(cache.start(1), Err(Error::NoFreeSequence));
        let shape = config.attention(0);
        for seq in [first, second] {
            let place = cache.advance(seq).unwrap();
            for layer in 0..2 {
                let (pages, tables) = cache.layer_mut(layer);
                let ones = [1.0; 32];
                kernels::ops::store_kv(&shape, pages, tables, &[place], &ones, &ones);
            }
        }
        assert_eq!(cache.advance(second), Err(Error::SequenceFull));
        assert!(!cache.is_zero());
        cache.end(first).unwrap();
        assert_eq!(cache.end(first), Err(Error::UnknownSequence));
        assert_eq!(cache.advance(first), Err(Error::UnknownSequence));
        cache.end(second).unwrap();
        assert!(cache.is_zero(), "freed pages are zeroed");
        assert_eq!(cache.free_pages(), 3);
        let third = cache.start(96).unwrap();
        assert_ne!(third, first, "an old name finds nothing");
    }
}
