//! The name of a field in a request body, made of fixed words and indices only.
//!
//! No text of a client can enter: that is why errors may carry it.

use std::fmt;

/// One step into a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Name(&'static str),
    Index(usize),
}

/// A field of a request body, such as `messages[2].content`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Param(Vec<Step>);

impl Param {
    /// A field of the body itself.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self(vec![Step::Name(name)])
    }

    /// A field of the object that `self` names.
    #[must_use]
    pub fn field(&self, name: &'static str) -> Self {
        self.with(Step::Name(name))
    }

    /// An element of the array that `self` names.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Name(name) if i == 0 => write!(f, "{name}")?,
                Step::Name(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_the_path_in_the_body() {
        let param = Param::new("messages").index(2).field("content").index(0).field("type");
        assert_eq!(param.to_string(), "messages[2].content[0].type");
    }
}
