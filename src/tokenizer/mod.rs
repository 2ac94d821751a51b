//! Text to tokens and back, from the model file's own vocabulary; linear in the text.
