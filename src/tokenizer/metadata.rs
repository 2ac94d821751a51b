//! Builds a tokenizer from a model file's metadata and checks every value on the way.

use super::bpe::{Alphabet, Bpe};
use super::error::Error;
use super::pretokenize::PreTokenizer;
use super::special::{self, SpecialTokens};
use super::spm::{self, Spm};
use super::vocab::{Kind, Vocab};
use super::{MERGE_COUNT_MAX, Scheme, TOKEN_COUNT_MAX, TOKENS_FIELD, Tokenizer};
use crate::gguf::{Metadata, Strings};

const MODEL_FIELD: &str = "tokenizer.ggml.model";
const PRE_FIELD: &str = "tokenizer.ggml.pre";
const TYPES_FIELD: &str = "tokenizer.ggml.token_type";
const SCORES_FIELD: &str = "tokenizer.ggml.scores";
const MERGES_FIELD: &str = "tokenizer.ggml.merges";
const BOS_FIELD: &str = "tokenizer.ggml.bos_token_id";
const EOS_FIELD: &str = "tokenizer.ggml.eos_token_id";
const UNKNOWN_FIELD: &str = "tokenizer.ggml.unknown_token_id";

/// Ids that end an answer, beside those that do so by their text.
const END_FIELDS: &[&str] = &[
    EOS_FIELD,
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
];

/// The ids that `llama` vocabularies have when the file names none.
const SPM_UNKNOWN: u32 = 0;
const SPM_BOS: u32 = 1;
const SPM_EOS: u32 = 2;
/// ggml's type of a normal token.
const NORMAL: i32 = 1;

impl Tokenizer {
    /// Reads the tokenizer of a model file.
    ///
    /// # Errors
    ///
    /// Each error names the metadata field that is missing, broken or not supported.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        let model = metadata.string(MODEL_FIELD)?.ok_or(Error::Missing { field: MODEL_FIELD })?;
        match model {
            "gpt2" => read_bpe(metadata),
            "llama" => read_spm(metadata),
            other => Err(Error::UnsupportedModel(other.into())),
        }
    }
}

fn read_bpe(metadata: &Metadata) -> Result<Tokenizer, Error> {
    let pre = metadata.string(PRE_FIELD)?.ok_or(Error::Missing { field: PRE_FIELD })?;
    let pre =
        PreTokenizer::by_name(pre).ok_or_else(|| Error::UnsupportedPreTokenizer(pre.into()))?;
    let merges = metadata.strings(MERGES_FIELD)?.ok_or(Error::Missing { field: MERGES_FIELD })?;
    if merges.len() > MERGE_COUNT_MAX {
        let (count, max) = (merges.len(), MERGE_COUNT_MAX);
        return Err(Error::BadCount { field: MERGES_FIELD, count, max });
    }
    let alphabet = Alphabet::new();
    let vocab = read_vocab(metadata, |_, text, kind| match kind {
        Kind::Normal => Ok(alphabet.bytes(text)),
        _ => Ok(text.as_bytes().to_vec()),
    })?;
    let scheme = Scheme::Bpe(Bpe::new(pre, &vocab, merges.iter())?);
    let defaults = Defaults { bos: None, eos: None, adds_bos: pre == PreTokenizer::LlamaBpe };
    finish(metadata, vocab, scheme, &defaults)
}

fn read_spm(metadata: &Metadata) -> Result<Tokenizer, Error> {
    let vocab = read_vocab(metadata, spm::render)?;
    let scores = metadata.f32s(SCORES_FIELD)?.ok_or(Error::Missing { field: SCORES_FIELD })?;
    let expected = vocab.len() as usize;
    if scores.len() != expected {
        return Err(Error::LengthMismatch { field: SCORES_FIELD, count: scores.len(), expected });
    }
    let unknown = read_id(metadata, &vocab, UNKNOWN_FIELD)?;
    let default = (SPM_UNKNOWN < vocab.len()).then_some(SPM_UNKNOWN);
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let scheme = Scheme::Spm(Spm::new(&vocab, &scores, unknown.or(default), prefix)?);
    let defaults = Defaults { bos: Some(SPM_BOS), eos: Some(SPM_EOS), adds_bos: true };
    finish(metadata, vocab, scheme, &defaults)
}

fn read_vocab(
    metadata: &Metadata,
    render: impl Fn(u32, &str, Kind) -> Result<Vec<u8>, Error>,
) -> Result<Vocab, Error> {
    let texts: Strings =
        metadata.strings(TOKENS_FIELD)?.ok_or(Error::Missing { field: TOKENS_FIELD })?;
    let count = texts.len();
    if count == 0 || count > TOKEN_COUNT_MAX {
        return Err(Error::BadCount { field: TOKENS_FIELD, count, max: TOKEN_COUNT_MAX });
    }
    let types = metadata.i32s(TYPES_FIELD)?.unwrap_or_else(|| vec![NORMAL; count]);
    if types.len() != count {
        let expected = count;
        return Err(Error::LengthMismatch { field: TYPES_FIELD, count: types.len(), expected });
    }
    Vocab::new(texts.iter(), &types, render)
}

fn read_id(metadata: &Metadata, vocab: &Vocab, field: &'static str) -> Result<Option<u32>, Error> {
    match metadata.u32(field)? {
        Some(id) if id >= vocab.len() => Err(Error::IdOutOfRange { field, id, count: vocab.len() }),
        id => Ok(id),
    }
}

/// What holds when the file says nothing.
struct Defaults {
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
}

fn finish(
    metadata: &Metadata,
    vocab: Vocab,
    scheme: Scheme,
    defaults: &Defaults,
) -> Result<Tokenizer, Error> {
    let known = |id: &u32| *id < vocab.len();
    let bos = read_id(metadata, &vocab, BOS_FIELD)?.or(defaults.bos.filter(known));
    let eos = read_id(metadata, &vocab, EOS_FIELD)?.or(defaults.eos.filter(known));
    let adds_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(defaults.adds_bos);
    let adds_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    if adds_bos && bos.is_none() {
        return Err(Error::Missing { field: BOS_FIELD });
    }
    if adds_eos && eos.is_none() {
        return Err(Error::Missing { field: EOS_FIELD });
    }
    let mut end_of_generation: Vec<u32> = eos.into_iter().collect();
    for field in END_FIELDS {
        end_of_generation.extend(read_id(metadata, &vocab, field)?);
    }
    let mut special = SpecialTokens::new();
    for (id, kind) in vocab.kinds() {
        let text = vocab.text(id).unwrap_or_default();
        if special::ends_generation(text) {
            end_of_generation.push(id);
        }
        if kind.is_special() {
            special.add(text.as_bytes(), id, false);
        } else if kind == Kind::Plain {
            // The text in a prompt has spaces where the token's may have their stand-in.
            special.add(vocab.rendered(id).unwrap_or_default(), id, true);
        }
    }
    end_of_generation.sort_unstable();
    end_of_generation.dedup();
    Ok(Tokenizer { vocab, scheme, special, bos, eos, adds_bos, adds_eos, end_of_generation })
}
