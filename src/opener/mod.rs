//! The opener: parses the age file and decrypts it in parallel; holds one file key, never an identity.
