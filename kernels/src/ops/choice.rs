//! How a token is chosen of its logits, where no bias and no penalty takes part.

/// How one token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// 0 takes the best token.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// SplitMix64's state before the number that is drawn.
    pub random: u64,
}
