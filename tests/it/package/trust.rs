//! The trust folder and key files: nobody else's, nothing but keys.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use cloister::package::Error;
use cloister::package::files::{NewFile, Overwrite, Ownership, open_regular, write_new};
use cloister::package::keys::{Identity, SigningKey};
use cloister::package::trust::TrustStore;

use super::{Folder, samples};

fn mine() -> Ownership {
    Ownership::of(&[nix::unistd::getuid().as_raw()])
}

fn chmod(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn labels_are_file_names_and_hints_are_those_of_the_reference_tool() {
    let folder = Folder::new();
    let pem = fs::read_to_string(samples().join("p256.pub.pem")).unwrap();
    // The same key with other line ends is the same key.
    folder.write("windows.pem", pem.replace('\n', "\r\n"));
    folder.write("root", fs::read(samples().join("root.pem")).unwrap());
    folder.write(".hidden", "not a key");
    let trust = TrustStore::open(&folder.0, &mine()).unwrap();
    let labels: Vec<_> = trust.labels().collect();
    let hint = "8fac72925973066a202a4fb34f3cd1f9f0c453706749207913c92cec61971530";
    assert_eq!(labels, [("windows.pem", Some(hint)), ("root", None)]);
}

#[test]
fn what_another_user_could_change_is_not_trusted() {
    let folder = Folder::new();
    let key = folder.write("key.pem", fs::read(samples().join("p256.pub.pem")).unwrap());
    for mode in [0o620, 0o602, 0o666] {
        chmod(&key, mode);
        let refused = TrustStore::open(&folder.0, &mine());
        assert!(matches!(refused, Err(Error::Ownership { path, .. }) if path == key));
    }
    chmod(&key, 0o644);
    assert!(TrustStore::open(&folder.0, &mine()).is_ok());
    chmod(&folder.0, 0o777);
    assert!(matches!(TrustStore::open(&folder.0, &mine()), Err(Error::Ownership { .. })));
    chmod(&folder.0, 0o755);
    if nix::unistd::getuid().is_root() {
        let someone = nix::unistd::Uid::from_raw(1234);
        nix::unistd::chown(&key, Some(someone), None).unwrap();
        let refused = TrustStore::open(&folder.0, &mine());
        assert!(matches!(refused, Err(Error::Ownership { uid: 1234, .. })));
        assert!(TrustStore::open(&folder.0, &Ownership::of(&[1234])).is_ok());
    }
}

#[test]
fn a_link_a_pipe_and_a_folder_are_no_files() {
    let folder = Folder::new();
    let key = folder.write("key.pem", fs::read(samples().join("p256.pub.pem")).unwrap());
    for place in ["link", "pipe", "folder"] {
        let path = folder.path(place);
        match place {
            "link" => symlink(&key, &path).unwrap(),
            "pipe" => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap(),
            _ => fs::create_dir(&path).unwrap(),
        }
        assert!(matches!(open_regular(&path), Err(Error::NotRegular { .. })), "{place}");
        assert!(matches!(TrustStore::open(&folder.0, &mine()), Err(Error::NotRegular { .. })));
        fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
    }
}

#[test]
fn a_folder_of_anything_else_is_refused() {
    let (_, private) = SigningKey::generate().unwrap();
    let pem = fs::read_to_string(samples().join("p256.pub.pem")).unwrap();
    let cases = [
        ("empty file", String::new()),
        ("no PEM", "hello".to_owned()),
        ("a private key", String::from_utf8(private.expose().to_vec()).unwrap()),
        ("two keys", format!("{pem}{pem}")),
        ("another curve", pem.replace("KoZIzj0DAQc", "KoZIzj0DAQY")),
        ("truncated", pem[..100].to_owned()),
        ("no certificate", pem.replace("PUBLIC KEY", "CERTIFICATE")),
    ];
    for (case, text) in cases {
        let folder = Folder::new();
        folder.write("x.pem", &text);
        let refused = TrustStore::open(&folder.0, &mine()).unwrap_err();
        assert!(matches!(refused, Error::Key { .. }), "{case}: {refused:?}");
        assert!(!format!("{refused} {refused:?}").contains("MI"), "{case}");
    }
    let folder = Folder::new();
    assert!(matches!(TrustStore::open(&folder.0, &mine()), Err(Error::TrustEmpty { .. })));
    let nowhere = TrustStore::open(&folder.path("none"), &mine());
    assert!(matches!(nowhere, Err(Error::TrustMissing { path }) if path == folder.path("none")));
    let file = folder.write(".hidden", "");
    assert!(matches!(TrustStore::open(&file, &mine()), Err(Error::TrustNotFolder { .. })));
    folder.write("long.pem", vec![b'x'; 20_000]);
    assert!(matches!(TrustStore::open(&folder.0, &mine()), Err(Error::TooLong { .. })));
    fs::remove_file(folder.path("long.pem")).unwrap();
    for i in 0..=256 {
        fs::write(folder.path(&format!("{i}")), &pem).unwrap();
    }
    assert!(matches!(TrustStore::open(&folder.0, &mine()), Err(Error::TrustTooMany { .. })));
}

#[test]
fn keys_are_private_and_never_overwritten_unasked() {
    let folder = Folder::new();
    let path = folder.path("key");
    write_new(&path, 0o600, Overwrite::No, b"one").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let refused = write_new(&path, 0o600, Overwrite::No, b"two");
    assert!(matches!(refused, Err(Error::Exists { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"one");
    write_new(&path, 0o600, Overwrite::Force, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    // A name that is taken while the file is written is not replaced either.
    let raced = folder.path("raced");
    let file = NewFile::create(&raced, 0o600, Overwrite::No).unwrap();
    fs::write(&raced, "theirs").unwrap();
    assert!(matches!(file.finish(), Err(Error::Exists { .. })));
    assert_eq!(fs::read(&raced).unwrap(), b"theirs");
    drop(NewFile::create(&folder.path("dropped"), 0o600, Overwrite::No).unwrap());
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2);
}

#[test]
fn a_key_that_everybody_may_read_is_refused() {
    let folder = Folder::new();
    let key = folder.signer("a");
    let identity = folder.write("id", Identity::generate().to_file().expose());
    assert!(SigningKey::open(&key).is_ok() && Identity::open(&identity).is_ok());
    for (path, mode) in [(&key, 0o604), (&key, 0o660), (&identity, 0o644)] {
        chmod(path, mode);
        let refused = if path == &key {
            SigningKey::open(path).map(|_| ()).unwrap_err()
        } else {
            Identity::open(path).map(|_| ()).unwrap_err()
        };
        assert!(matches!(refused, Error::KeyExposed { .. }), "{refused:?}");
    }
}

#[test]
fn identity_files_hold_exactly_one_x25519_key() {
    let one = Identity::generate();
    let file = one.to_file();
    let text = std::str::from_utf8(file.expose()).unwrap();
    assert_eq!(Identity::parse(text.as_bytes()).unwrap().recipient(), one.recipient());
    let line = text.lines().last().unwrap();
    for wrong in [
        String::new(),
        "# only a comment\n".to_owned(),
        format!("{line}\n{line}\n"),
        line[..line.len() - 1].to_owned(),
        line.to_lowercase(),
        line.replace("KEY-1", "KEY-PQ-1"),
        format!("{text}\u{0}"),
        one.recipient(),
    ] {
        assert!(Identity::parse(wrong.as_bytes()).is_none());
    }
}
