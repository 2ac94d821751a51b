//! The opener's conversation with the supervisor, over the real channel.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;

use cloister::ipc::Channel;
use cloister::ipc::message::{FromOpener, OpenCheck, ToOpener};
use cloister::opener::serve;
use cloister::package::age_stream::Decryptor;
use cloister::package::keys::Identity;
use cloister::package::seal::{parse_recipient, seal};
use zeroize::Zeroizing;

use super::{Folder, Random};

/// Plays the supervisor; returns the plaintext, the report and how often it was asked to unwrap.
fn conversation(order: &ToOpener, path: &Path, identity: &Identity) -> (Vec<u8>, FromOpener, u32) {
    let (ours, theirs) = Channel::pair().unwrap();
    let (source, far) = nix::unistd::pipe().unwrap();
    let file = File::open(path).unwrap();
    // The descriptor's own place must not matter.
    (&file).read_exact(&mut [0; 3]).unwrap();
    ours.send(order, &[file.as_fd(), far.as_fd()]).unwrap();
    drop(far);
    thread::scope(|scope| {
        let opener = scope.spawn(move || serve(&theirs, &mut Decryptor::new(2).unwrap()));
        let reader = scope.spawn(move || {
            let mut plaintext = Vec::new();
            File::from(source).read_to_end(&mut plaintext).unwrap();
            plaintext
        });
        let mut asked = 0;
        let report = loop {
            match ours.recv::<FromOpener>().unwrap().0 {
                FromOpener::Unwrap { ephemeral, body } => {
                    asked += 1;
                    let answer = match identity.unwrap_stanza(&ephemeral, &body) {
                        Some(key) => ToOpener::FileKey(Zeroizing::new(*key.expose())),
                        None => ToOpener::NoMatch,
                    };
                    ours.send(&answer, &[]).unwrap();
                }
                report => break report,
            }
        };
        opener.join().unwrap().unwrap();
        (reader.join().unwrap(), report, asked)
    })
}

fn sealed(plaintext: &[u8], recipients: &[&Identity]) -> Vec<u8> {
    let recipients: Vec<_> =
        recipients.iter().map(|id| parse_recipient(&id.recipient()).unwrap()).collect();
    let mut file = Vec::new();
    seal(&recipients, &mut &plaintext[..], &mut file, &mut |_| {}).unwrap();
    file
}

#[test]
fn an_age_file_and_a_plain_one_are_opened() {
    let folder = Folder::new();
    let (us, others) = (Identity::generate(), Identity::generate());
    let model = Random(1).bytes(700_000);
    let path = folder.write("m.age", sealed(&model, &[&others, &others, &us]));
    let (plaintext, report, asked) = conversation(&ToOpener::OpenAge, &path, &us);
    assert!(plaintext == model && asked == 3);
    assert!(matches!(report, FromOpener::Finished { len_bytes: 700_000 }));
    let path = folder.write("m.gguf", &model);
    let (plaintext, report, asked) = conversation(&ToOpener::OpenPlain, &path, &us);
    assert!(plaintext == model && asked == 0);
    assert!(matches!(report, FromOpener::Finished { len_bytes: 700_000 }));
}

#[test]
fn a_refusal_names_the_check() {
    let folder = Folder::new();
    let us = Identity::generate();
    let model = Random(1).bytes(700_000);
    let good = sealed(&model, &[&us]);
    let mut cases = vec![
        (model.clone(), OpenCheck::AgeHeader),
        (sealed(&model, &[&Identity::generate()]), OpenCheck::NoMatchingIdentity),
        (good[..good.len() - 5].to_vec(), OpenCheck::Chunk),
        (good[..good.len() - (700_000 % 65_536) - 16].to_vec(), OpenCheck::Truncated),
    ];
    let mut changed = good.clone();
    changed[600_000] ^= 1;
    cases.push((changed, OpenCheck::Chunk));
    let mac = good.windows(4).position(|bytes| bytes == b"--- ").unwrap() + 4;
    let mut changed = good.clone();
    changed[mac] = if changed[mac] == b'A' { b'B' } else { b'A' };
    cases.push((changed, OpenCheck::HeaderMac));
    for (file, want) in cases {
        let path = folder.write("m.age", file);
        let (plaintext, report, _) = conversation(&ToOpener::OpenAge, &path, &us);
        assert!(matches!(report, FromOpener::Refused { check } if check == want), "{report:?}");
        assert!(model.starts_with(&plaintext) && plaintext.len() < model.len());
    }
}

#[test]
fn it_ends_when_the_supervisor_is_gone_or_breaks_protocol() {
    let serve_one = |answers: &[ToOpener]| {
        let (ours, theirs) = Channel::pair().unwrap();
        for answer in answers {
            ours.send(answer, &[]).unwrap();
        }
        drop(ours);
        serve(&theirs, &mut Decryptor::new(1).unwrap())
    };
    assert!(serve_one(&[]).is_err());
    assert!(serve_one(&[ToOpener::NoMatch]).is_err());
    assert!(serve_one(&[ToOpener::FileKey(Zeroizing::new([0; 16]))]).is_err());
}
