//! Whose a presented key is; a key that opens nothing is counted for the log, and why.

use super::{Digest, Dispatch, Now};
use crate::supervisor::tokens::Role;

impl Dispatch {
    /// The principal and role of a key that is valid now.
    pub(super) fn authenticate(&mut self, key: &Digest, now: Now) -> Option<(String, Role)> {
        if let Some(token) = self.tokens.find(key, now.wall_s) {
            return Some((token.name.clone(), token.role));
        }
        let (cause, name) = self.tokens.rejection(key);
        self.refusals.key_rejected(cause, name.map(ToOwned::to_owned));
        None
    }
}
