//! Keys that hide, keys that are gone, and keys that a copy of an older day cannot bring back.

use super::*;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let unique = format!("cloister-principals-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    /// The key files in it, without their contents.
    fn files(&self) -> Vec<String> {
        let mut names = names(&self.0).unwrap();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A wrapping key's text, so that it can be read twice.
struct Text(crate::secret::Secret);

impl Text {
    fn new() -> Self {
        Self(WrappingKey::generate().unwrap())
    }

    fn key(&self) -> WrappingKey {
        WrappingKey::parse(self.0.expose()).unwrap()
    }
}

const DIGEST: [u8; 32] = [7; 32];

#[test]
fn keyed_digests_hide_equal_texts_and_need_the_key() {
    let (folder, text) = (Folder::new("hide"), Text::new());
    let mut keys = PrincipalKeys::open(&folder.0, text.key()).unwrap();
    let keyed = |keys: &mut PrincipalKeys| keys.of("anna").unwrap().keyed(&DIGEST).unwrap();
    let (one, two) = (keyed(&mut keys), keyed(&mut keys));
    assert_ne!(one, two);
    assert!(keys.of("anna").unwrap().matches(&one, &DIGEST));
    assert!(!keys.of("anna").unwrap().matches(&one, &[8; 32]));
    assert!(!keys.of("bert").unwrap().matches(&one, &DIGEST));
    assert_eq!(keys.take_created().len(), 2);
    let mut again = PrincipalKeys::open(&folder.0, text.key()).unwrap();
    assert_eq!(again.of("anna").unwrap().pseudonym(), keys.of("anna").unwrap().pseudonym());
    assert!(again.of("anna").unwrap().matches(&two, &DIGEST));
    assert!(again.take_created().is_empty());
    let found = again.all().unwrap();
    assert_eq!(found.iter().filter(|key| key.matches(&two, &DIGEST)).count(), 1);
    assert!(again.find("carl").unwrap().is_none(), "a look-up makes no key");
}

#[test]
fn nothing_in_the_folder_is_a_key_without_the_wrapping_key() {
    let (folder, text) = (Folder::new("wrapped"), Text::new());
    let mut keys = PrincipalKeys::open(&folder.0, text.key()).unwrap();
    keys.of("anna").unwrap();
    let given = Text::new();
    let refused = PrincipalKeys::open(&folder.0, given.key()).err().unwrap();
    assert!(matches!(refused, Error::WrappingKeyOther { .. }), "{refused}");
    // Not even when the folder is made to say that it is the right one.
    fs::write(folder.0.join("current"), given.key().id()).unwrap();
    let path = keys.path(&name_of("anna"));
    let forged = folder.0.join(format!("{}.{}", given.key().id(), name_of("anna")));
    fs::copy(path, forged).unwrap();
    let mut forged = PrincipalKeys::open(&folder.0, given.key()).unwrap();
    assert!(matches!(forged.of("anna"), Err(Error::PrincipalKeyMalformed { .. })));
}

#[test]
fn a_key_of_one_principal_is_not_taken_for_anothers() {
    let (folder, text) = (Folder::new("swapped"), Text::new());
    let mut keys = PrincipalKeys::open(&folder.0, text.key()).unwrap();
    keys.of("anna").unwrap();
    fs::copy(keys.path(&name_of("anna")), keys.path(&name_of("bert"))).unwrap();
    assert!(matches!(keys.of("bert"), Err(Error::PrincipalKeyMalformed { .. })));
}

#[test]
fn an_erased_key_is_found_no_more_and_the_next_is_another() {
    let (folder, text) = (Folder::new("erased"), Text::new());
    let mut keys = PrincipalKeys::open(&folder.0, text.key()).unwrap();
    let keyed = keys.of("anna").unwrap().keyed(&DIGEST).unwrap();
    let before = keys.of("anna").unwrap().pseudonym().to_owned();
    assert_eq!(keys.begin_erasure("bert").unwrap(), None);
    assert_eq!(keys.begin_erasure("anna").unwrap(), Some(before.clone()));
    assert!(keys.find("anna").unwrap().is_none() && keys.all().unwrap().is_empty());
    // What could not be recorded is not done.
    keys.undo_erasure("anna").unwrap();
    assert_eq!(keys.find("anna").unwrap().unwrap().pseudonym(), before);
    // A crash between the two steps is finished by the next start.
    keys.begin_erasure("anna").unwrap();
    let mut keys = PrincipalKeys::open(&folder.0, text.key()).unwrap();
    assert_eq!(keys.unfinished_erasures().unwrap(), std::slice::from_ref(&before));
    keys.finish_erasures(std::slice::from_ref(&before)).unwrap();
    assert!(keys.unfinished_erasures().unwrap().is_empty());
    assert_eq!(folder.files(), ["current"]);
    let after = keys.of("anna").unwrap();
    assert!(after.pseudonym() != before && !after.matches(&keyed, &DIGEST));
}

#[test]
fn an_erased_key_that_comes_back_from_a_copy_is_not_used_and_is_destroyed_again() {
    let (folder, text) = (Folder::new("returned"), Text::new());
    let mut keys = PrincipalKeys::open(&folder.0, text.key()).unwrap();
    let keyed = keys.of("anna").unwrap().keyed(&DIGEST).unwrap();
    let before = keys.of("anna").unwrap().pseudonym().to_owned();
    keys.of("bert").unwrap();
    let path = keys.path(&name_of("anna"));
    let copy = fs::read(&path).unwrap();
    keys.begin_erasure("anna").unwrap();
    keys.finish_erasures(std::slice::from_ref(&before)).unwrap();
    let is_found =
        |keys: &PrincipalKeys| keys.all().unwrap().iter().any(|key| key.matches(&keyed, &DIGEST));
    // While the same process runs.
    fs::write(&path, &copy).unwrap();
    assert!(!is_found(&keys) && keys.find("anna").unwrap().is_none());
    assert!(!path.exists());
    assert_eq!(keys.take_returned(), std::slice::from_ref(&before));
    // Who reviews: without the log's word the copy is as good as it was, with it it is none.
    fs::write(&path, &copy).unwrap();
    let mut looks = PrincipalKeys::look(&folder.0, text.key()).unwrap();
    assert!(is_found(&looks), "the control");
    looks.forbid([before.clone()]);
    assert!(!is_found(&looks));
    assert_eq!(looks.all().unwrap().len(), 1);
    assert_eq!(looks.returned().unwrap(), [(before.clone(), path.clone())]);
    assert!(path.exists(), "who looks changes nothing");
    // A start destroys it, and leaves what is damaged to who asks for it.
    fs::write(keys.path(&name_of("carl")), "damaged").unwrap();
    let mut keys = PrincipalKeys::open(&folder.0, text.key()).unwrap();
    keys.forbid([before.clone()]);
    keys.destroy_returned().unwrap();
    assert_eq!(keys.take_returned(), std::slice::from_ref(&before));
    assert!(!path.exists() && keys.find("bert").unwrap().is_some());
    assert_ne!(keys.of("anna").unwrap().pseudonym(), before);
}

#[test]
fn a_copy_from_before_a_rotation_is_useless_and_the_keys_go_on() {
    let (folder, old, new) = (Folder::new("rotated"), Text::new(), Text::new());
    let mut keys = PrincipalKeys::open(&folder.0, old.key()).unwrap();
    let keyed = keys.of("anna").unwrap().keyed(&DIGEST).unwrap();
    keys.of("bert").unwrap();
    keys.begin_erasure("bert").unwrap();
    let copy: Vec<_> = folder
        .files()
        .iter()
        .map(|name| (name.clone(), fs::read(folder.0.join(name)).unwrap()))
        .collect();
    assert_eq!(keys.rotate(new.key()).unwrap(), 2);
    assert!(keys.of("anna").unwrap().matches(&keyed, &DIGEST));
    assert_eq!(keys.unfinished_erasures().unwrap().len(), 1);
    assert!(
        folder.files().iter().all(|name| name == "current" || name.starts_with(new.key().id()))
    );
    let mut keys = PrincipalKeys::open(&folder.0, new.key()).unwrap();
    assert!(keys.of("anna").unwrap().matches(&keyed, &DIGEST));
    // All of the copy is laid back, and the old wrapping key is gone.
    for (name, bytes) in &copy {
        fs::write(folder.0.join(name), bytes).unwrap();
    }
    let refused = PrincipalKeys::open(&folder.0, new.key()).err().unwrap();
    assert!(matches!(refused, Error::WrappingKeyOther { .. }), "{refused}");
    // The control: with the old wrapping key the copy is as good as it was.
    let mut keys = PrincipalKeys::open(&folder.0, old.key()).unwrap();
    assert!(keys.of("anna").unwrap().matches(&keyed, &DIGEST));
}

#[test]
fn a_rotation_that_a_crash_cut_is_all_or_nothing() {
    let (folder, old, new) = (Folder::new("cut"), Text::new(), Text::new());
    let mut keys = PrincipalKeys::open(&folder.0, old.key()).unwrap();
    let keyed = keys.of("anna").unwrap().keyed(&DIGEST).unwrap();
    let before = folder.files();
    // The new file is there, `current` is not written yet, and another file is half written.
    keys.write(
        &new.key(),
        &name_of("anna"),
        &keys.read(&keys.path(&name_of("anna"))).unwrap().unwrap(),
    )
    .unwrap();
    fs::write(keys.path(&format!("{}{FRESH}", name_of("bert"))), "half").unwrap();
    fs::write(folder.0.join("notes.txt"), "not ours").unwrap();
    let mut keys = PrincipalKeys::open(&folder.0, old.key()).unwrap();
    assert!(keys.of("anna").unwrap().matches(&keyed, &DIGEST));
    assert_eq!(folder.files(), [before, vec!["notes.txt".to_owned()]].concat());
    // `current` is written, and the old file still there.
    let copy = fs::read(keys.path(&name_of("anna"))).unwrap();
    let path = keys.path(&name_of("anna"));
    keys.rotate(new.key()).unwrap();
    fs::write(&path, copy).unwrap();
    let mut keys = PrincipalKeys::open(&folder.0, new.key()).unwrap();
    assert!(keys.of("anna").unwrap().matches(&keyed, &DIGEST));
    assert!(!path.exists());
}
