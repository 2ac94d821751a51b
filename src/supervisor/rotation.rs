//! Keys that are replaced while everything runs. The new one comes as a descriptor from root's command
//! line, which puts its file in the old one's place once it is in force.

use serde_json::{Value, json};

use super::control::Question;
use super::material::{KEY_LEN_MAX_BYTES, owner_uid};
use super::secret_file;
use super::serve::Supervisor;
use crate::audit::{Signer, WrappingKey};
use crate::secret::Secret;

impl Supervisor {
    /// Wraps the principals' keys under the key that came with the question.
    pub(super) fn rotate_wrapping(&mut self, question: &mut Question) -> Value {
        let rotated = self.rotated_key(question).and_then(|text| {
            let next = WrappingKey::parse(text.expose()).map_err(|error| error.to_string())?;
            let id = next.id().to_owned();
            let count = self.ledger.rotate_wrapping(next, question.uid);
            Ok((id, count.map_err(|error| error.to_string())?))
        });
        match rotated {
            Ok((id, count)) => {
                super::say(&format!("the principals' keys are wrapped under {id}"));
                json!({ "ok": true, "id": id, "count": count })
            }
            Err(why) => json!({ "ok": false, "error": why }),
        }
    }

    /// Lets the key that came with the question sign the log from now on.
    pub(super) fn rotate_audit(&mut self, question: &mut Question) -> Value {
        let rotated = self.rotated_key(question).and_then(|text| {
            let next = Signer::from_pem(&self.config.audit_origin, text.expose());
            let next = next.map_err(|error| error.to_string())?;
            let key = next.verifier().newest();
            let size = self.ledger.rotate_audit(next, question.uid);
            Ok((key, size.map_err(|error| error.to_string())?))
        });
        match rotated {
            Ok((key, size)) => {
                super::say(&format!("the audit log is signed by {key}"));
                json!({ "ok": true, "key": key, "size": size })
            }
            Err(why) => json!({ "ok": false, "error": why }),
        }
    }

    /// The text of the one file that came with the question, after the checks of the start.
    fn rotated_key(&self, question: &mut Question) -> Result<Secret, String> {
        if self.ledger.is_failing() {
            return Err("the audit log cannot be written, so no key is replaced".to_owned());
        }
        let file = question.descriptors.pop_front().ok_or("no key came with the question")?;
        secret_file::adopt(file, owner_uid(self.config.profile))
            .and_then(|file| file.read_to_end(KEY_LEN_MAX_BYTES))
            .map_err(|error| error.to_string())
    }
}
