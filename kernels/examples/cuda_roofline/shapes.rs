//! The sizes of models, and how much of each is done at once.

/// A model of Llama's architecture in Q4_K and Q6_K.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layers: usize,
    pub(crate) embed: usize,
    pub(crate) ffn: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocab: usize,
    /// Sequences that are answered at once.
    pub(crate) many: usize,
    /// Tokens of a prompt; positions before an answer.
    pub(crate) prompt: usize,
    /// Positions of a long text.
    pub(crate) long: usize,
}

const B1: Shape = Shape {
    name: "1b",
    layers: 16,
    embed: 2048,
    ffn: 8192,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    vocab: 128_256,
    many: 64,
    prompt: 2048,
    long: 32_768,
};

const SHAPES: &[Shape] = &[
    B1,
    Shape { name: "8b", layers: 32, embed: 4096, ffn: 14_336, head_dim: 128, ..B1 },
    Shape { name: "70b", layers: 80, embed: 8192, ffn: 28_672, heads: 64, head_dim: 128, ..B1 },
    Shape {
        name: "tiny",
        layers: 2,
        embed: 256,
        ffn: 512,
        heads: 4,
        kv_heads: 2,
        vocab: 512,
        many: 9,
        prompt: 70,
        long: 300,
        ..B1
    },
];

impl Shape {
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        SHAPES.iter().find(|shape| shape.name == name).map(|shape| Self { ..*shape })
    }

    pub(crate) fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(crate) fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// What is done at once, with its tokens: a step of one answer, of many, a prompt.
    pub(crate) fn steps(&self) -> [(Step, usize); 3] {
        [(Step::One, 1), (Step::Many, self.many), (Step::Prompt, self.prompt)]
    }
}

/// What a launch is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A token of one answer.
    One,
    /// A token of each of many answers.
    Many,
    /// A prompt.
    Prompt,
}
