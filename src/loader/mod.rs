//! The loader: keeps verified weights in private memory, parses GGUF only after `verified`, repacks, seals.
