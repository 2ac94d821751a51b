//! An opener and a loader that attack, or hold an opening up without being silent: a model is opened as it is or
//! refused by name.

use std::io::Write as _;
use std::path::Path;
use std::thread;

use nix::sys::memfd::{MFdFlags, memfd_create};
use ring::digest::digest;

use super::*;
use crate::package::age_stream::Decryptor;
use crate::sys::memory::{SealedSegments, UnsealedMemory};

/// More than may be on its way, and a short end.
const FILE_LEN: usize = (SEGMENTS_COUNT_MAX + 3) * SEGMENT_LEN_BYTES + 5;

/// A file of so many bytes, and what they are.
fn file(len: usize) -> (File, Vec<u8>) {
    let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
    let mut file = memfd();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

/// A memfd without a seal.
fn memfd() -> File {
    File::from(memfd_create("open", MFdFlags::MFD_ALLOW_SEALING).unwrap())
}

/// Plays the supervisor between the two.
fn open(
    file: &File,
    opener: impl FnOnce(&Channel) + Send,
    loader: impl FnOnce(&Channel) + Send,
) -> Result<Opened, String> {
    let (opener_near, opener_far) = Channel::pair().unwrap();
    let (loader_near, loader_far) = Channel::pair().unwrap();
    let (signals, _writer) = nix::unistd::pipe().unwrap();
    let intake = Intake::new(None, Path::new("/nowhere"));
    thread::scope(|scope| {
        scope.spawn(move || opener(&{ opener_far }));
        scope.spawn(move || loader(&{ loader_far }));
        let (opener, loader) = (opener_near, loader_near);
        let opening = Opening {
            opener: &opener,
            loader: &loader,
            signals: signals.as_fd(),
            progress: &|_| {},
            unwraps_count: Cell::new(0),
            deadline: deadline(0),
        };
        let (kv, intake) = (KvFormat::F16, &intake);
        let job = Job { file, is_encrypted: false, statement: None, intake, identity: None, kv };
        let opened = opening.run(&job);
        drop((opener, loader));
        opened.map_err(|refusal| refusal.to_string())
    })
}

fn honest_opener(channel: &Channel) {
    // It ends with an error where the supervisor hangs up on it.
    let _ = crate::opener::serve(channel, &mut Decryptor::new(1).unwrap());
}

/// Maps what comes; its image is the plaintext.
fn honest_loader(channel: &Channel) {
    let len_max_bytes = match channel.recv() {
        Ok((ToLoader::Load { len_max_bytes, .. }, _)) => len_max_bytes,
        Ok(_) => panic!("no order"),
        // An opener that is refused first ends the work.
        Err(_) => return,
    };
    let len_max = usize::try_from(len_max_bytes).unwrap();
    let mut source = SealedSegments::reserve(len_max, SEGMENT_LEN_BYTES).unwrap();
    while let Ok((ToLoader::Segment, descriptors)) = channel.recv() {
        source.append(descriptors[0].as_fd()).unwrap();
        let len_bytes = source.len() as u64;
        if channel.send(&FromLoader::Received { len_bytes }, &[]).is_err() {
            return;
        }
    }
    if source.is_empty() {
        return;
    }
    let mut image = UnsealedMemory::new("image", source.len()).unwrap();
    image.copy_from_slice(&source);
    let (len_bytes, image) = (image.len() as u64, image.seal().unwrap());
    let _ = channel.send(&FromLoader::Sealed { len_bytes }, &[image.as_fd()]);
}

/// A segment of so many bytes.
fn segment(len: usize, is_sealed: bool) -> OwnedFd {
    if !is_sealed {
        let mut file = memfd();
        file.write_all(&vec![7; len]).unwrap();
        return file.into();
    }
    let mut memory = UnsealedMemory::new("segment", len + 1).unwrap();
    memory.fill(7);
    memory.seal_first(len).unwrap()
}

fn send(channel: &Channel, segments: &[OwnedFd]) {
    for segment in segments {
        let _ = channel.send(&FromOpener::Segment, &[segment.as_fd()]);
    }
}

fn finish(channel: &Channel, len_bytes: u64) {
    let _ = channel.send(&FromOpener::Finished { len_bytes }, &[]);
    // Its end is not the reason.
    let _ = channel.recv::<ToOpener>();
    while channel.recv::<ToOpener>().is_ok() {}
}

#[test]
fn what_is_hashed_is_what_the_loader_maps() {
    for len in [1, SEGMENT_LEN_BYTES, SEGMENT_LEN_BYTES + 1, FILE_LEN] {
        let (file, bytes) = file(len);
        let opened = open(&file, honest_opener, honest_loader).unwrap();
        assert_eq!(opened.digest.0, digest(&SHA256, &bytes).as_ref());
        assert_eq!(opened.len_bytes, len as u64);
        let image = SealedMemory::open(opened.image.as_fd()).unwrap();
        assert!(image.as_ref() == bytes, "{len}");
    }
}

#[test]
fn an_opener_that_attacks_is_refused() {
    const FAULTY: &str = "a segment of the opener is not sealed, or not of its length";
    const BROKEN: &str = "the opener broke protocol";
    let whole = || segment(SEGMENT_LEN_BYTES, true);
    type Attack = (&'static str, Vec<OwnedFd>, u64, &'static str);
    let attacks: [Attack; 8] = [
        ("unsealed", vec![segment(9, false)], 9, FAULTY),
        ("no memfd", vec![nix::unistd::pipe().unwrap().0], 9, FAULTY),
        ("empty", vec![segment(0, true)], 0, FAULTY),
        ("too long", vec![segment(SEGMENT_LEN_BYTES + 1, true)], 9, FAULTY),
        ("after a short one", vec![segment(9, true), segment(9, true)], 18, FAULTY),
        ("another length", vec![segment(9, true)], 8, BROKEN),
        ("more than the file", (0..4).map(|_| whole()).collect(), 4 << 22, BROKEN),
        ("nothing of something", Vec::new(), 1, BROKEN),
    ];
    let (file, _) = file(3 * SEGMENT_LEN_BYTES);
    for (attack, segments, len_bytes, why) in attacks {
        let opener = |channel: &Channel| {
            channel.recv::<ToOpener>().unwrap();
            send(channel, &segments);
            finish(channel, len_bytes);
        };
        assert_eq!(open(&file, opener, honest_loader).unwrap_err(), why, "{attack}");
    }
    let asks = |channel: &Channel| {
        channel.send(&FromOpener::Unwrap { ephemeral: [1; 32], body: [2; 32] }, &[]).unwrap();
        finish(channel, 0);
    };
    assert_eq!(open(&file, asks, honest_loader).unwrap_err(), BROKEN);
    let told = open(&file, |_| {}, honest_loader).unwrap_err();
    assert_eq!(told, "the opener failed: the other end is closed");
}

#[test]
fn a_loader_that_attacks_is_refused() {
    let (file, _) = file(FILE_LEN);
    let loader = |said: Vec<FromLoader>| {
        move |channel: &Channel| {
            for message in said {
                let _ = channel.send(&message, &[]);
            }
            while channel.recv::<ToLoader>().is_ok() {}
        }
    };
    let received = |len_bytes| FromLoader::Received { len_bytes };
    let refused = |check: &str| FromLoader::Refused { check: check.to_owned() };
    for (said, why) in [
        (vec![received(1 << 40)], "the loader broke protocol"),
        (vec![received(0)], "the loader broke protocol"),
        (vec![received(SEGMENT_LEN), received(1)], "the loader broke protocol"),
        (vec![FromLoader::Progress { done_bytes: 1, total_bytes: 2 }], "the loader broke protocol"),
        (vec![refused("no memory")], "no memory"),
        (vec![refused("a\nline")], "the loader broke protocol"),
    ] {
        assert_eq!(open(&file, honest_opener, loader(said)).unwrap_err(), why);
    }
    // Its last words count, although it left what was sent to it.
    let dies = |channel: &Channel| channel.send(&refused("no room"), &[]).unwrap();
    assert_eq!(open(&file, honest_opener, dies).unwrap_err(), "no room");
    let told = open(&file, honest_opener, |_| {}).unwrap_err();
    assert_eq!(told, "the loader failed: the other end is closed");
}

/// Plays a loader that says how far it is, again and again, until nobody listens.
fn image_of(next: impl Fn(u64) -> u64 + Send + 'static, deadline: Instant) -> Refusal {
    let (opener, _opener) = Channel::pair().unwrap();
    let (ours, theirs) = Channel::pair().unwrap();
    let (signals, _signals) = nix::unistd::pipe().unwrap();
    let loader = thread::spawn(move || {
        let mut done_bytes = 0;
        loop {
            done_bytes = next(done_bytes);
            let progress = FromLoader::Progress { done_bytes, total_bytes: 1 << 40 };
            if theirs.send(&progress, &[]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    let opening = Opening {
        opener: &opener,
        loader: &ours,
        signals: signals.as_fd(),
        progress: &|_| {},
        unwraps_count: Cell::new(0),
        deadline,
    };
    let refusal = opening.image().unwrap_err();
    drop(ours);
    loader.join().unwrap();
    refusal
}

#[test]
fn a_loader_that_is_always_about_to_go_on_ends_with_the_openings_time() {
    let start = Instant::now();
    let refusal = image_of(|done| done + 1, start + Duration::from_millis(500));
    assert!(matches!(refusal, Refusal::Deadline("loader")), "{refusal}");
    assert!(start.elapsed() >= Duration::from_millis(500));
}

#[test]
fn a_loader_whose_progress_is_none_breaks_the_protocol() {
    let later = Instant::now() + Duration::from_secs(60);
    for next in [|done: u64| done, |_| 7, |done| if done == 0 { 9 } else { done - 1 }] {
        let refusal = image_of(next, later);
        assert!(matches!(refusal, Refusal::Protocol("loader")), "{refusal}");
    }
}

#[test]
fn a_longer_model_is_given_more_time() {
    let time = |len_bytes| deadline(len_bytes).saturating_duration_since(Instant::now());
    assert!(time(0) > Duration::from_secs(590) && time(0) <= OPENING_DEADLINE);
    assert!(time(70 << 30) > Duration::from_secs(70 << 10));
}
