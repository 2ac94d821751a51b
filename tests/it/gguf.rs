//! Every way of being wrong that other readers fell for is an exact error here, at once and in
//! little memory.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use cloister::gguf::{self, Error, Field, Header, Name};
use nix::sys::resource::{Resource, setrlimit};

use crate::gguf_file::{ARRAY, BOOL, F32, File, I8, I32, STRING, U8, U32, U64};
use crate::support::golden;

/// Longest time for one fixture.
const TIME_MAX: Duration = Duration::from_millis(50);
/// Most memory that all fixtures together may add, resident and reserved, in KiB.
const GROWTH_KIB_MAX: u64 = 16 * 1024;

/// Ids of tensor types.
const T_F32: u32 = 0;
const T_Q4_0: u32 = 2;
const T_Q8_0: u32 = 8;
const T_I8: u32 = 24;

/// A wrong file, and what must be said about it.
struct Fixture {
    name: &'static str,
    bytes: Vec<u8>,
    error: Error,
    /// What a reader of a model asks of the metadata; most faults are found before.
    ask: fn(&Header) -> Result<(), Error>,
}

fn fixture(name: &'static str, file: File, error: Error) -> Fixture {
    Fixture { name, bytes: file.bytes(), error, ask: |_| Ok(()) }
}

fn asked(
    name: &'static str,
    file: File,
    error: Error,
    ask: fn(&Header) -> Result<(), Error>,
) -> Fixture {
    Fixture { name, bytes: file.bytes(), error, ask }
}

fn n(name: &str) -> Name {
    Name::from(name)
}

/// Starts a file with one tensor and no metadata.
fn one_tensor(shape: &[u64], ty: u32, offset: u64) -> File {
    File::new(1, 0).tensor("t", shape, ty, offset)
}

fn all_fixtures() -> Vec<Fixture> {
    let mut all = advisories();
    all.extend(array_advisories());
    all.extend(tensor_advisories());
    all.extend(llama_cpp_headers());
    all.extend(llama_cpp_keys());
    all.extend(llama_cpp_tensors());
    all.extend(llama_cpp_data());
    all.extend(other_headers());
    all.extend(other_tensors());
    all
}

/// Counts and lengths of published vulnerabilities, by their names.
#[expect(clippy::too_many_lines, reason = "a table")]
fn advisories() -> Vec<Fixture> {
    let too_many = |field, count, max| Error::TooMany { field, count, max };
    let key_max = gguf::KEY_COUNT_MAX;
    let tensor_max = gguf::TENSOR_COUNT_MAX;
    let wraps = u64::MAX / 56 + 2;
    vec![
        // The number of entries times their size wraps.
        fixture("CVE-2024-23605", File::new(0, wraps), too_many(Field::KeyCount, wraps, key_max)),
        // The length of a string plus one wraps.
        fixture(
            "CVE-2024-23496 (key)",
            File::new(0, 1).u64(u64::MAX).raw(b"a long key"),
            Error::TooLong { field: Field::Key(0), len: u64::MAX, max: gguf::KEY_LEN_MAX },
        ),
        fixture(
            "CVE-2024-23496 (value)",
            File::new(0, 1).key("k", STRING).u64(u64::MAX).raw(b"value"),
            Error::TooLong {
                field: Field::Value(n("k")),
                len: u64::MAX,
                max: gguf::STRING_LEN_MAX,
            },
        ),
        // The number of tensors times their size wraps.
        fixture(
            "CVE-2024-21836",
            File::new(wraps, 0),
            too_many(Field::TensorCount, wraps, tensor_max),
        ),
        // The same where the number is in range and the file too short for it.
        fixture(
            "CVE-2024-25664",
            File::new(0, key_max).raw(&[0; 64]),
            Error::Truncated { field: Field::KeyCount },
        ),
        fixture(
            "CVE-2024-25665",
            File::new(0, 1).key("k", STRING).u64(1 << 20).raw(b"short"),
            Error::Truncated { field: Field::Value(n("k")) },
        ),
        fixture(
            "CVE-2024-25666",
            File::new(tensor_max, 0).raw(&[0; 64]),
            Error::Truncated { field: Field::TensorCount },
        ),
        fixture(
            "CVE-2024-25667",
            File::new(0, 1).array("k", U64, 1 << 20).raw(&[0; 64]),
            Error::Truncated { field: Field::ArrayLen(n("k")) },
        ),
        fixture(
            "CVE-2024-25668",
            File::new(0, 1).array("k", STRING, 3).text("a").u64(1 << 20).raw(&[0; 64]),
            Error::Truncated { field: Field::Value(n("k")) },
        ),
        // An early end, after which half-made state was freed.
        fixture(
            "CVE-2024-32878",
            File::new(0, 2).key("a", U32).u32(1).key("b", U32).raw(&[7]),
            Error::Truncated { field: Field::Value(n("b")) },
        ),
        // A tensor without a name.
        fixture(
            "CVE-2024-41130",
            File::new(1, 0).tensor("", &[32], T_F32, 0).data(32, 128),
            Error::Empty { field: Field::TensorName(0) },
        ),
        // A token longer than a signed 32-bit length.
        fixture(
            "CVE-2025-49847",
            File::new(0, 1).array("tokenizer.ggml.tokens", STRING, 1).u64(1 << 31).raw(b"x"),
            Error::TooLong {
                field: Field::Value(n("tokenizer.ggml.tokens")),
                len: 1 << 31,
                max: gguf::STRING_LEN_MAX,
            },
        ),
        // oss-security 2026-05-15, V-01.
        fixture(
            "V-01 (alignment without bound)",
            File::new(0, 1).key("general.alignment", U32).u32(0x8000_0000),
            Error::BadAlignment { alignment: 0x8000_0000 },
        ),
        fixture(
            "V-01 (alignment of another type)",
            File::new(0, 1).key("general.alignment", I32).u32(32),
            Error::WrongType { key: n("general.alignment"), expected: "u32", found: "i32" },
        ),
    ]
}

/// Arrays of published vulnerabilities.
fn array_advisories() -> Vec<Fixture> {
    let too_many = |key: &str, count| Error::TooMany {
        field: Field::ArrayLen(n(key)),
        count,
        max: gguf::ARRAY_LEN_MAX,
    };
    let wrong = |key: &str, expected, found| Error::WrongType { key: n(key), expected, found };
    let scores = "tokenizer.ggml.scores";
    let token_types = "tokenizer.ggml.token_type";
    vec![
        // The number of strings times their size wraps.
        fixture(
            "CVE-2024-21825",
            File::new(0, 1).array("k", STRING, u64::MAX / 16 + 2).raw(&[0; 64]),
            too_many("k", u64::MAX / 16 + 2),
        ),
        // Bytes that were read as floats.
        asked(
            "llama.cpp 26690 (scores)",
            File::new(0, 1).array(scores, I8, 4).raw(&[1; 4]),
            wrong(scores, "array of f32", "array of i8"),
            |header| header.metadata.f32s("tokenizer.ggml.scores").map(drop),
        ),
        asked(
            "llama.cpp 26690 (token types)",
            File::new(0, 1).array(token_types, U8, 4).raw(&[1; 4]),
            wrong(token_types, "array of i32", "array of u8"),
            |header| header.metadata.i32s("tokenizer.ggml.token_type").map(drop),
        ),
        // An array without bound, copied into a fixed one.
        fixture(
            "DFlash",
            File::new(0, 1).array("dflash.target_layers", I32, 1 << 32).raw(&[0; 64]),
            too_many("dflash.target_layers", 1 << 32),
        ),
        fixture(
            "gguf-py 27188 (array length)",
            File::new(0, 1).array("abc", U8, 1 << 63),
            too_many("abc", 1 << 63),
        ),
        fixture(
            "gguf-py 27188 (entries)",
            File::new(0, 1 << 63),
            Error::TooMany { field: Field::KeyCount, count: 1 << 63, max: gguf::KEY_COUNT_MAX },
        ),
        fixture(
            "gguf-py 27188 (tensors)",
            File::new(1 << 63, 0),
            Error::TooMany {
                field: Field::TensorCount,
                count: 1 << 63,
                max: gguf::TENSOR_COUNT_MAX,
            },
        ),
        fixture(
            "gguf-py 27188 (nested arrays)",
            File::new(0, 1).array("k", ARRAY, 1).u32(ARRAY).u64(1).u32(ARRAY).u64(1),
            Error::NestedArray { key: n("k") },
        ),
    ]
}

/// Tensor sizes and places of published vulnerabilities.
fn tensor_advisories() -> Vec<Fixture> {
    let too_large = || Error::TensorTooLarge { tensor: n("t") };
    let huge = 0x7FFF_FFFF_FFFF_FFC0;
    vec![
        // More dimensions than the array that holds them.
        fixture(
            "CVE-2024-21802",
            File::new(1, 0).text("t").u32(0x1000).raw(&[1; 64]),
            Error::BadDimCount { tensor: n("t"), count: 0x1000 },
        ),
        // The sum of the padded sizes wraps.
        fixture(
            "CVE-2025-53630",
            File::new(2, 0)
                .tensor("t", &[1 << 60], T_F32, 0)
                .tensor("u", &[1 << 60], T_F32, 1 << 62)
                .data(32, 64),
            Error::PastEnd { tensor: n("t"), offset: 0, size: 1 << 62, data_len: 64 },
        ),
        // The size of the memory that holds two tensors wraps.
        fixture(
            "CVE-2026-27940",
            File::new(2, 0)
                .tensor("t", &[huge], T_I8, 0)
                .tensor("u", &[huge], T_I8, huge)
                .data(32, 32),
            Error::UnsupportedTensorType { tensor: n("t"), id: T_I8, name: "I8" },
        ),
        fixture(
            "CVE-2026-27940 (supported type)",
            one_tensor(&[huge], T_Q8_0, 0).data(32, 32),
            too_large(),
        ),
        // The size of quantised rows wraps to something small.
        fixture(
            "CVE-2026-33298",
            one_tensor(&[1 << 40, 1 << 24], T_Q4_0, 0).data(32, 64),
            too_large(),
        ),
        fixture(
            "CVE-2026-33298 (Q4_0 under the check)",
            one_tensor(&[1 << 32, 1 << 30], T_Q4_0, 0).data(32, 64),
            Error::PastEnd { tensor: n("t"), offset: 0, size: (1 << 62) / 32 * 18, data_len: 64 },
        ),
        fixture(
            "CVE-2026-33298 (Q8_0 under the check)",
            one_tensor(&[1 << 32, (1 << 31) - 1], T_Q8_0, 0).data(32, 64),
            too_large(),
        ),
        // Padding to the alignment wraps to zero.
        fixture(
            "GGML_PAD",
            one_tensor(&[(1 << 61) - 1], T_F32, 0).data(32, 32),
            Error::PastEnd { tensor: n("t"), offset: 0, size: (1 << 63) - 4, data_len: 32 },
        ),
        // Data beyond the file, read from the heap and published.
        fixture(
            "CVE-2026-7482 (offset)",
            one_tensor(&[32], T_F32, 1 << 20).data(32, 128),
            Error::PastEnd { tensor: n("t"), offset: 1 << 20, size: 128, data_len: 128 },
        ),
        fixture(
            "CVE-2026-7482 (size)",
            one_tensor(&[1 << 20], T_F32, 0).data(32, 128),
            Error::PastEnd { tensor: n("t"), offset: 0, size: 1 << 22, data_len: 128 },
        ),
        fixture(
            "ZERO_DIM",
            one_tensor(&[32, 0], T_F32, 0).data(32, 128),
            Error::ZeroDim { tensor: n("t") },
        ),
    ]
}

/// The must-fail cases of llama.cpp's `tests/test-gguf.cpp`: the fixed part.
fn llama_cpp_headers() -> Vec<Fixture> {
    let of_version = |version| File::of_version(version, 0, 0);
    vec![
        fixture("HEADER_BAD_MAGIC", File::new(0, 0).magic(*b"FUGG"), Error::BadMagic),
        fixture("HEADER_BAD_VERSION_0", of_version(0), Error::UnsupportedVersion { version: 0 }),
        fixture("HEADER_BAD_VERSION_1", of_version(1), Error::UnsupportedVersion { version: 1 }),
        fixture(
            "HEADER_BAD_VERSION_FUTURE",
            of_version(4),
            Error::UnsupportedVersion { version: 4 },
        ),
        fixture(
            "HEADER_BAD_N_KV",
            File::new(0, u64::MAX),
            Error::TooMany { field: Field::KeyCount, count: u64::MAX, max: gguf::KEY_COUNT_MAX },
        ),
        fixture(
            "HEADER_BAD_N_TENSORS",
            File::new(u64::MAX, 0),
            Error::TooMany {
                field: Field::TensorCount,
                count: u64::MAX,
                max: gguf::TENSOR_COUNT_MAX,
            },
        ),
    ]
}

/// The must-fail cases of llama.cpp's `tests/test-gguf.cpp`: metadata.
fn llama_cpp_keys() -> Vec<Fixture> {
    vec![
        fixture(
            "KV_BAD_KEY_SIZE",
            File::new(0, 1).u64(u64::MAX).raw(b"my_key_0").u32(U32).u32(7),
            Error::TooLong { field: Field::Key(0), len: u64::MAX, max: gguf::KEY_LEN_MAX },
        ),
        fixture(
            "KV_EMPTY_KEY",
            File::new(0, 1).key("", U32).u32(7),
            Error::Empty { field: Field::Key(0) },
        ),
        fixture(
            "KV_BAD_TYPE",
            File::new(0, 1).key("my_key_0", 13).u32(7),
            Error::UnknownValueType { field: Field::ValueType(n("my_key_0")), id: 13 },
        ),
        fixture(
            "KV_DUPLICATE_KEY",
            File::new(0, 3).key("b", U32).u32(7).key("a", U32).u32(7).key("b", U8).raw(&[1]),
            Error::DuplicateKey { key: n("b") },
        ),
        fixture(
            "KV_BAD_ALIGN",
            File::new(0, 1).key("general.alignment", U32).u32(13),
            Error::BadAlignment { alignment: 13 },
        ),
        fixture(
            "KV_WRONG_TYPE_ALIGN",
            File::new(0, 1).key("general.alignment", I32).u32(13),
            Error::WrongType { key: n("general.alignment"), expected: "u32", found: "i32" },
        ),
    ]
}

/// The must-fail cases of llama.cpp's `tests/test-gguf.cpp`: the tensor table.
fn llama_cpp_tensors() -> Vec<Fixture> {
    let too_large = || Error::TensorTooLarge { tensor: n("t") };
    let long_name = "my_tensor_0_with_a_very_long_name_which_is_longer_than_what_is_allowed";
    let aligned_by = |alignment| {
        File::new(1, 1).key("general.alignment", U32).u32(alignment).tensor("t", &[32], T_F32, 0)
    };
    vec![
        fixture(
            "TENSORS_BAD_NAME_SIZE",
            File::new(1, 0).tensor(long_name, &[32], T_F32, 0).data(32, 128),
            Error::TooLong {
                field: Field::TensorName(0),
                len: long_name.len() as u64,
                max: gguf::TENSOR_NAME_LEN_MAX,
            },
        ),
        fixture(
            "TENSORS_BAD_N_DIMS",
            one_tensor(&[32, 1, 1, 1, 1], T_F32, 0).data(32, 128),
            Error::BadDimCount { tensor: n("t"), count: 5 },
        ),
        fixture("TENSORS_BAD_SHAPE", one_tensor(&[u64::MAX], T_F32, 0).data(32, 128), too_large()),
        fixture(
            "TENSORS_NE_TOO_BIG",
            one_tensor(&[4 * 0x7FFF_FFFF; 2], T_F32, 0).data(32, 128),
            too_large(),
        ),
        fixture(
            "TENSORS_NBYTES_TOO_BIG",
            one_tensor(&[1_533_917_000; 2], T_F32, 0).data(32, 128),
            too_large(),
        ),
        fixture(
            "TENSORS_BAD_TYPE",
            one_tensor(&[32], 1000, 0).data(32, 128),
            Error::UnknownTensorType { tensor: n("t"), id: 1000 },
        ),
        fixture(
            "TENSORS_BAD_OFFSET",
            one_tensor(&[32], T_F32, u64::MAX).data(32, 128),
            Error::Misaligned { tensor: n("t"), offset: u64::MAX, alignment: 32 },
        ),
        fixture(
            "TENSORS_DUPLICATE_NAME",
            File::new(2, 0)
                .tensor("t", &[32], T_F32, 0)
                .tensor("t", &[32], T_F32, 128)
                .data(32, 256),
            Error::DuplicateTensor { tensor: n("t") },
        ),
        fixture(
            "TENSORS_BAD_ALIGN",
            aligned_by(13).data(13, 128),
            Error::BadAlignment { alignment: 13 },
        ),
        // Written packed, read with the default alignment.
        fixture(
            "TENSORS_INCONSISTENT_ALIGN",
            File::new(2, 0).tensor("t", &[3], T_F32, 0).tensor("u", &[3], T_F32, 12).data(32, 64),
            Error::Misaligned { tensor: n("u"), offset: 12, alignment: 32 },
        ),
    ]
}

/// The must-fail cases of llama.cpp's `tests/test-gguf.cpp`: tensor data.
fn llama_cpp_data() -> Vec<Fixture> {
    let past_end = |size, data_len| Error::PastEnd { tensor: n("t"), offset: 0, size, data_len };
    let huge = 0x7FFF_FFFF_FFFF_FFC0;
    vec![
        fixture(
            "DATA_NOT_ENOUGH_DATA",
            one_tensor(&[32], T_F32, 0).data(32, 127),
            past_end(128, 127),
        ),
        fixture(
            "DATA_NOT_ENOUGH_DATA (in the padding)",
            one_tensor(&[3], T_F32, 0).data(32, 31),
            past_end(12, 31),
        ),
        fixture(
            "DATA_BAD_ALIGN",
            File::new(1, 1)
                .key("general.alignment", U32)
                .u32(13)
                .tensor("t", &[13], T_F32, 0)
                .data(13, 52),
            Error::BadAlignment { alignment: 13 },
        ),
        fixture(
            "DATA_INCONSISTENT_ALIGN",
            File::new(2, 1)
                .key("general.alignment", U32)
                .u32(64)
                .tensor("t", &[8], T_F32, 0)
                .tensor("u", &[8], T_F32, 32)
                .data(64, 128),
            Error::Misaligned { tensor: n("u"), offset: 32, alignment: 64 },
        ),
        fixture(
            "DATA_MEM_SIZE_OVERFLOW",
            File::new(2, 0)
                .tensor("t", &[huge / 4], T_F32, 0)
                .tensor("u", &[huge / 4], T_F32, huge)
                .data(32, 32),
            past_end(huge, 32),
        ),
    ]
}

/// What no published case covers: the fixed part and metadata.
fn other_headers() -> Vec<Fixture> {
    let truncated = |field| Error::Truncated { field };
    vec![
        fixture("empty file", File::empty(), truncated(Field::Magic)),
        fixture("magic alone", File::empty().raw(b"GGUF"), truncated(Field::Version)),
        fixture("big endian", File::of_version(0x0300_0000, 0, 0), Error::BigEndian),
        fixture(
            "key not UTF-8",
            File::new(0, 1).u64(2).raw(b"\xff\xfe").u32(U32).u32(1),
            Error::NotUtf8 { field: Field::Key(0) },
        ),
        fixture(
            "token not UTF-8",
            File::new(0, 1).array("k", STRING, 2).text("a").u64(1).raw(b"\x80"),
            Error::NotUtf8 { field: Field::Value(n("k")) },
        ),
        fixture(
            "bool of 2",
            File::new(0, 1).key("k", BOOL).raw(&[2]),
            Error::BadBool { key: n("k") },
        ),
        fixture(
            "array with a bool of 2",
            File::new(0, 1).array("k", BOOL, 3).raw(&[1, 0, 2]),
            Error::BadBool { key: n("k") },
        ),
        fixture(
            "element type unknown",
            File::new(0, 1).array("k", 77, 1).raw(&[0; 8]),
            Error::UnknownValueType { field: Field::ElementType(n("k")), id: 77 },
        ),
        fixture(
            "alignment of zero",
            File::new(0, 1).key("general.alignment", U32).u32(0),
            Error::BadAlignment { alignment: 0 },
        ),
        fixture(
            "alignment of 8192",
            File::new(0, 1).key("general.alignment", U32).u32(8192),
            Error::BadAlignment { alignment: 8192 },
        ),
        asked(
            "number out of range",
            File::new(0, 1).key("llama.block_count", U64).u64(1 << 32),
            Error::OutOfRange { key: n("llama.block_count"), expected: "u32" },
            |header| header.metadata.u32("llama.block_count").map(drop),
        ),
        asked(
            "number of another type",
            File::new(0, 1).key("llama.block_count", F32).u32(0),
            Error::WrongType { key: n("llama.block_count"), expected: "u32", found: "f32" },
            |header| header.metadata.u32("llama.block_count").map(drop),
        ),
        asked(
            "number missing",
            File::new(0, 0),
            Error::Missing { key: n("llama.block_count") },
            |header| {
                let key = "llama.block_count";
                gguf::required(key, header.metadata.u32(key)).map(drop)
            },
        ),
    ]
}

/// What no published case covers: tensors.
fn other_tensors() -> Vec<Fixture> {
    vec![
        fixture(
            "no dimension",
            one_tensor(&[], T_F32, 0).data(32, 32),
            Error::BadDimCount { tensor: n("t"), count: 0 },
        ),
        fixture(
            "row of half a block",
            one_tensor(&[48, 2], T_Q8_0, 0).data(32, 128),
            Error::PartialBlock { tensor: n("t"), cols: 48, block_len: 32 },
        ),
        fixture(
            "withdrawn type",
            one_tensor(&[32], 31, 0).data(32, 128),
            Error::UnsupportedTensorType { tensor: n("t"), id: 31, name: "Q4_0_4_4 (withdrawn)" },
        ),
        fixture(
            "tensors that overlap",
            File::new(2, 0)
                .tensor("u", &[32], T_F32, 64)
                .tensor("t", &[32], T_F32, 0)
                .data(32, 256),
            Error::Overlap { tensor: n("u"), other: n("t") },
        ),
        fixture(
            "two tensors in one place",
            File::new(2, 0).tensor("t", &[32], T_F32, 0).tensor("u", &[32], T_F32, 0).data(32, 256),
            Error::Overlap { tensor: n("u"), other: n("t") },
        ),
        fixture(
            "offset plus size wraps",
            one_tensor(&[1 << 60], T_F32, u64::MAX - 31).data(32, 128),
            Error::PastEnd { tensor: n("t"), offset: u64::MAX - 31, size: 1 << 62, data_len: 128 },
        ),
        fixture(
            "no tensor data at all",
            one_tensor(&[32], T_F32, 0),
            Error::PastEnd { tensor: n("t"), offset: 0, size: 128, data_len: 0 },
        ),
        fixture(
            "array of the largest length in a small file",
            File::new(0, 1).array("k", U64, gguf::ARRAY_LEN_MAX),
            Error::Truncated { field: Field::ArrayLen(n("k")) },
        ),
    ]
}

fn outcome(fixture: &Fixture) -> Result<(), Error> {
    let header = gguf::parse(&fixture.bytes, fixture.bytes.len() as u64)?;
    (fixture.ask)(&header)
}

#[test]
fn every_wrong_file_gets_its_exact_error() {
    let mut faults = Vec::new();
    for fixture in all_fixtures() {
        let outcome = outcome(&fixture);
        if outcome.as_ref() != Err(&fixture.error) {
            faults.push(format!("{}: {outcome:?}, not {:?}", fixture.name, fixture.error));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Runs in a process of its own, because memory is counted by process.
#[test]
fn every_wrong_file_is_refused_at_once_and_in_little_memory() {
    if std::env::var_os("CLOISTER_TEST_CHILD").is_none() {
        let test = "gguf::every_wrong_file_is_refused_at_once_and_in_little_memory";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--test-threads=1"])
            .env("CLOISTER_TEST_CHILD", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let fixtures = all_fixtures();
    // A reservation above the limit fails, even of memory that is never touched.
    let limit = (memory_kib("VmData") + GROWTH_KIB_MAX) * 1024;
    setrlimit(Resource::RLIMIT_DATA, limit, limit).unwrap();
    let too_much = usize::try_from(GROWTH_KIB_MAX).unwrap() * 1024 * 3 / 2;
    let mut control = std::hint::black_box(Vec::<u8>::new());
    let reserved = control.try_reserve_exact(too_much);
    assert!(std::hint::black_box(&control).is_empty() && reserved.is_err(), "the limit must bind");
    let before = memory_kib("VmHWM");
    for fixture in &fixtures {
        // The best of some tries: a busy machine may stop us in the middle of one.
        let tries = (0..5).map(|_| {
            let start = Instant::now();
            assert!(outcome(fixture).is_err(), "{}", fixture.name);
            start.elapsed()
        });
        let took = tries.min().unwrap();
        assert!(took < TIME_MAX, "{} took {took:?}", fixture.name);
        let growth = memory_kib("VmHWM") - before;
        assert!(growth < GROWTH_KIB_MAX, "{}: memory grew {growth} KiB", fixture.name);
    }
}

/// Reads a figure of this process's memory, in KiB.
fn memory_kib(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A right file with a value of every kind, and two tensors.
fn right_file(version: u32) -> Vec<u8> {
    File::of_version(version, 2, 7)
        .key("general.architecture", STRING)
        .text("llama")
        .key("general.alignment", U32)
        .u32(64)
        .array("tokens", STRING, 3)
        .text("a")
        .text("")
        .text("ß")
        .array("scores", F32, 2)
        .u32(0x3F80_0000)
        .u32(0)
        .array("pattern", BOOL, 2)
        .raw(&[1, 0])
        .key("long", U64)
        .u64(7)
        .key("small", I8)
        .raw(&[0xFF])
        .tensor("b", &[32, 2], T_Q8_0, 128)
        .tensor("a", &[32], T_F32, 0)
        .data(64, 256)
        .bytes()
}

#[test]
fn reads_both_versions() {
    for version in [2, 3] {
        let bytes = right_file(version);
        let header = gguf::parse(&bytes, bytes.len() as u64).unwrap();
        assert_eq!((header.version, header.alignment), (version, 64));
        assert_eq!(header.data_offset, bytes.len() as u64 - 256);
        let metadata = &header.metadata;
        assert_eq!(metadata.string("general.architecture"), Ok(Some("llama")));
        let tokens = metadata.strings("tokens").unwrap().unwrap();
        assert_eq!(tokens.iter().collect::<Vec<_>>(), ["a", "", "ß"]);
        assert_eq!((tokens.get(2), tokens.get(3)), (Some("ß"), None));
        assert_eq!(metadata.f32s("scores"), Ok(Some(vec![1.0, 0.0])));
        assert_eq!(metadata.bools("pattern"), Ok(Some(vec![true, false])));
        assert_eq!(metadata.u32("long"), Ok(Some(7)));
        assert_eq!(metadata.i32("small"), Ok(Some(-1)));
        assert_eq!(metadata.u32("absent"), Ok(None));
        let names: Vec<&str> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        let tensor = header.tensor("b").unwrap();
        assert_eq!((tensor.cols(), tensor.rows(), tensor.size), (32, 2, 68));
        assert_eq!(header.data_range(tensor).start, header.data_offset + 128);
        assert!(header.tensor("c").is_none());
    }
}

#[test]
fn every_alignment_up_to_4096_is_read() {
    for alignment in (0..=12).map(|bits| 1_u32 << bits) {
        let bytes = File::new(1, 1)
            .key("general.alignment", U32)
            .u32(alignment)
            .tensor("t", &[4], T_F32, 0)
            .data(alignment as usize, 16)
            .bytes();
        let header = gguf::parse(&bytes, bytes.len() as u64).unwrap();
        assert_eq!(header.alignment, alignment);
        assert_eq!(header.data_offset, bytes.len() as u64 - 16);
    }
}

#[test]
fn a_cut_file_is_refused_at_every_byte() {
    let bytes = right_file(3);
    let whole = gguf::parse(&bytes, bytes.len() as u64).unwrap();
    // Where the last tensor ends: the rest is padding.
    let end = bytes.len() - 128 + 68;
    for len in 0..bytes.len() {
        let cut = gguf::parse(&bytes[..len], len as u64);
        assert_eq!(cut.is_ok(), len == end, "cut at {len}: {cut:?}");
        let file_len = bytes.len() as u64;
        match gguf::parse(&bytes[..len], file_len) {
            Ok(header) => assert_eq!(header.tensors, whole.tensors),
            Err(Error::Incomplete { .. }) => {}
            Err(other) => panic!("a prefix of {len} bytes of a right file: {other}"),
        }
    }
}

#[test]
fn a_header_over_its_limit_is_refused() {
    let bytes = File::new(0, 1).array("k", U64, gguf::ARRAY_LEN_MAX).bytes();
    let error = Error::HeaderTooLong { field: Field::Value(n("k")) };
    assert_eq!(gguf::parse(&bytes, 1 << 40).err(), Some(error));
}

#[test]
fn no_changed_byte_makes_the_reader_panic() {
    let bytes = right_file(3);
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7F, 0x80, 0xFF, bytes[at] ^ 1, bytes[at] ^ 0x20] {
            let mut changed = bytes.clone();
            changed[at] = value;
            if let Ok(header) = gguf::parse(&changed, changed.len() as u64) {
                for tensor in &header.tensors {
                    assert!(header.data_range(tensor).end <= changed.len() as u64);
                }
            }
        }
    }
}

#[test]
fn no_mix_of_changed_bytes_makes_the_reader_panic() {
    let bytes = right_file(3);
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for _ in 0..50_000 {
        let mut changed = bytes.clone();
        for _ in 0..=random(4) {
            changed[random(bytes.len())] = u8::try_from(random(256)).unwrap();
        }
        changed.truncate(bytes.len() - random(8) / 7 * random(bytes.len()));
        let _ = gguf::parse(&changed, changed.len() as u64);
    }
}

#[test]
fn an_error_shows_a_hostile_name_harmlessly() {
    let name = "\u{1b}[2J\n\u{202e}`";
    let bytes = File::new(1, 0).tensor(name, &[0], T_F32, 0).bytes();
    let error = gguf::parse(&bytes, bytes.len() as u64).unwrap_err();
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(text.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{text}");
    }
    let bytes = File::new(0, 1).key(&"ß".repeat(128), 99).bytes();
    let text = gguf::parse(&bytes, bytes.len() as u64).unwrap_err().to_string();
    assert!(text.contains('…') && text.chars().count() < 160, "{text}");
}

#[test]
fn reads_the_tiny_models_from_their_headers_alone() {
    for name in ["llama", "llama3_ropefreqs", "llama_tied_mha", "qwen2", "gemma3"] {
        let bytes = fs::read(golden().join(format!("tiny/{name}.gguf"))).unwrap();
        let file_len = bytes.len() as u64;
        let header = gguf::parse(&bytes, file_len).unwrap();
        let start = usize::try_from(header.data_offset).unwrap();
        let again = gguf::parse(&bytes[..start], file_len).unwrap();
        assert_eq!(again.tensors, header.tensors);
        assert!(header.tensor("token_embd.weight").is_some());
    }
}
