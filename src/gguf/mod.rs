//! Strict, bounded reader of GGUF v2 and v3 headers.
