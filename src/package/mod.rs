//! The signed, encrypted model file: OpenSSF Model Signing and age, other people's formats.
