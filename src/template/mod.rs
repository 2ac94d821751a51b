//! Chat templates: the messages of a request become the prompt of a model.
