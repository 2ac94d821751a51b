//! The opener's conversation with the supervisor, over the real channel.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;

use cloister::ipc::Channel;
use cloister::ipc::message::{
    FromOpener, OpenCheck, SEGMENT_LEN_BYTES, SEGMENTS_COUNT_MAX, ToOpener,
};
use cloister::opener::serve;
use cloister::package::age_stream::Decryptor;
use cloister::package::keys::Identity;
use cloister::package::seal::{parse_recipient, seal};
use cloister::sys::memory::SealedSegment;
use zeroize::Zeroizing;

use super::{Folder, Random};

/// Plays the supervisor; returns the plaintext, the report and how often it was asked to unwrap.
fn conversation(order: &ToOpener, path: &Path, identity: &Identity) -> (Vec<u8>, FromOpener, u32) {
    let (ours, theirs) = Channel::pair().unwrap();
    let file = File::open(path).unwrap();
    // The descriptor's own place must not matter.
    let _ = (&file).read(&mut [0; 3]).unwrap();
    ours.send(order, &[file.as_fd()]).unwrap();
    thread::scope(|scope| {
        let opener = scope.spawn(move || serve(&theirs, &mut Decryptor::new(2).unwrap()));
        let mut under_way = VecDeque::<SealedSegment>::new();
        let (mut plaintext, mut asked) = (Vec::new(), 0);
        let report = loop {
            // As late as may be.
            if under_way.len() == SEGMENTS_COUNT_MAX {
                plaintext.extend_from_slice(&under_way.pop_front().unwrap());
                // It need not wait for what becomes of its last ones.
                let _ = ours.send(&ToOpener::Taken, &[]);
            }
            let (message, fds) = ours.recv::<FromOpener>().unwrap();
            match message {
                FromOpener::Segment => {
                    let segment = SealedSegment::open(fds[0].as_fd(), SEGMENT_LEN_BYTES);
                    under_way.push_back(segment.unwrap());
                }
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
        let is_whole = |segment: &SealedSegment| segment.len() == SEGMENT_LEN_BYTES;
        assert!(under_way.iter().rev().skip(1).all(is_whole));
        under_way.iter().for_each(|segment| plaintext.extend_from_slice(segment));
        (plaintext, report, asked)
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
    let segment = SEGMENT_LEN_BYTES;
    // More than may be under way, and each border.
    let most = (SEGMENTS_COUNT_MAX + 2) * segment + 5;
    for len in [0, 700_000, segment - 1, segment, segment + 1, most] {
        let model = Random(1).bytes(len);
        let path = folder.write("m.age", sealed(&model, &[&others, &others, &us]));
        let (plaintext, report, asked) = conversation(&ToOpener::OpenAge, &path, &us);
        let is_len = |said: u64| said == len as u64;
        assert!(plaintext == model && asked == 3, "{len}");
        assert!(matches!(report, FromOpener::Finished { len_bytes } if is_len(len_bytes)));
        let path = folder.write("m.gguf", &model);
        let (plaintext, report, asked) = conversation(&ToOpener::OpenPlain, &path, &us);
        assert!(plaintext == model && asked == 0, "{len}");
        assert!(matches!(report, FromOpener::Finished { len_bytes } if is_len(len_bytes)));
    }
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
