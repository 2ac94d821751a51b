//! The model: weights, KV cache, forward pass, sampling; no I/O, no clock, no process knowledge.
