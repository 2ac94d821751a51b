//! Rotary position embedding.
//!
//! Pair `i` of a head turns by the angle `position * base^(-2i / dims) / factor[i]`. Angles, sines
//! and cosines are computed in 64 bits, once for a batch and all its layers.

use super::over_rows;
use crate::pool::Pool;

/// Which values of a head are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `(2i, 2i + 1)`: the order of `llama` files.
    Neighbours,
    /// `(i, i + dims / 2)`: the order of GPT-NeoX, Qwen and Gemma.
    Halves,
}

/// The rotations of the tokens of a batch.
pub struct Rope {
    pairs: RopePairs,
    /// Radians a position, for each pair.
    frequencies: Vec<f64>,
    /// `[tokens_max, pairs]` of `(cosine, sine)`
    turns: Vec<(f32, f32)>,
    tokens: usize,
}

impl Rope {
    /// Allocates for batches of up to `tokens_max`.
    ///
    /// `dims` is how many of a head's values turn; `factors` divide the frequencies.
    ///
    /// # Panics
    ///
    /// Panics if `dims` is odd or there are factors, but not one for each pair.
    #[must_use]
    pub fn new(
        pairs: RopePairs,
        dims: usize,
        base: f32,
        factors: Option<&[f32]>,
        tokens_max: usize,
    ) -> Self {
        assert!(dims.is_multiple_of(2), "values turn in pairs");
        assert!(factors.is_none_or(|factors| factors.len() == dims / 2), "a factor for each pair");
        #[expect(clippy::cast_precision_loss, reason = "heads are far shorter than 2^52")]
        let frequency = |i: usize| f64::from(base).powf(-2.0 * i as f64 / dims as f64);
        let factor = |i: usize| factors.map_or(1.0, |factors| f64::from(factors[i]));
        let frequencies: Vec<f64> = (0..dims / 2).map(|i| frequency(i) / factor(i)).collect();
        let turns = vec![(1.0, 0.0); tokens_max * frequencies.len()];
        Self { pairs, frequencies, turns, tokens: 0 }
    }

    /// Computes the rotations for tokens at these positions.
    ///
    /// # Panics
    ///
    /// Panics if there are more than `tokens_max`.
    pub fn set_positions(&mut self, positions: impl Iterator<Item = usize>) {
        let mut turns = self.turns.iter_mut();
        self.tokens = 0;
        for position in positions {
            self.tokens += 1;
            for frequency in &self.frequencies {
                #[expect(clippy::cast_precision_loss, reason = "positions are below 2^52")]
                let (sine, cosine) = (position as f64 * frequency).sin_cos();
                let turn = turns.next().expect("a batch has at most `tokens_max` tokens");
                #[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
                let pair = (cosine as f32, sine as f32);
                *turn = pair;
            }
        }
    }

    /// Returns the cosine and sine of each pair, `[tokens, pairs]`, of the tokens that were set.
    #[must_use]
    pub fn turns(&self) -> &[(f32, f32)] {
        &self.turns[..self.tokens * self.frequencies.len()]
    }

    /// Turns every head: `x: [tokens, n_heads, head_dim]`.
    ///
    /// # Panics
    ///
    /// Panics if `x` is not of the tokens that were set, or a head has fewer values than turn.
    pub fn apply(&self, pool: &Pool, n_heads: usize, head_dim: usize, x: &mut [f32]) {
        let half = self.frequencies.len();
        assert!(2 * half <= head_dim, "no more values turn than a head has");
        let row_len = n_heads * head_dim;
        assert_eq!(x.len(), self.tokens * row_len, "x is of the tokens that were set");
        over_rows(pool, x, row_len, &|first, rows| {
            for (i, row) in rows.chunks_exact_mut(row_len).enumerate() {
                let turns = &self.turns[(first + i) * half..][..half];
                for head in row.chunks_exact_mut(head_dim) {
                    turn(self.pairs, turns, &mut head[..2 * half]);
                }
            }
        });
    }
}

fn turn(pairs: RopePairs, turns: &[(f32, f32)], head: &mut [f32]) {
    match pairs {
        RopePairs::Neighbours => {
            for (pair, (cosine, sine)) in head.chunks_exact_mut(2).zip(turns) {
                let (x, y) = (pair[0], pair[1]);
                pair[0] = x * cosine - y * sine;
                pair[1] = x * sine + y * cosine;
            }
        }
        RopePairs::Halves => {
            let (low, high) = head.split_at_mut(turns.len());
            for ((low, high), (cosine, sine)) in low.iter_mut().zip(high).zip(turns) {
                let (x, y) = (*low, *high);
                *low = x * cosine - y * sine;
                *high = x * sine + y * cosine;
            }
        }
    }
}
