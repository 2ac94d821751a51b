//! The root stub: one thread, a handful of fixed commands, no parsing of anything a client sent.
