//! Who did what, never what was said: the append-only, signed, tamper-evident log.
