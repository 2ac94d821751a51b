//! Round trips, mutations, and every way of being wrong.

use std::fmt::Debug;
use std::os::fd::AsFd;

use zeroize::Zeroizing;

use super::message::*;
use super::*;

const REQUEST: RequestId = RequestId([0xa5; 16]);
const DIGEST: Digest = Digest([0x5a; 32]);
const MODEL: ModelIndex = ModelIndex(3);
const WORKER: WorkerIndex = WorkerIndex(5);

/// What a test does with each message of each type.
trait Visit {
    fn message<M: Message + Debug>(&mut self, message: M);
}

/// Shows `visit` at least one message of every variant of every enum.
fn every_message(visit: &mut impl Visit) {
    from_gateway(visit);
    to_gateway(visit);
    to_worker(visit);
    from_worker(visit);
    worker_control(visit);
    opener_and_loader(visit);
}

fn from_gateway(visit: &mut impl Visit) {
    visit.message(FromGateway::Ready);
    for (endpoint, stream) in [(Endpoint::Chat, true), (Endpoint::Completion, false)] {
        let (model, max_tokens) = ("smöl".to_owned(), 7);
        let key = DIGEST;
        visit.message(FromGateway::Begin {
            correlation: u64::MAX,
            key,
            endpoint,
            model,
            max_tokens,
            stream,
        });
    }
    visit.message(FromGateway::Authorize { correlation: 1, key: DIGEST });
    visit.message(FromGateway::Sign { correlation: 2, scheme: 0x0403, message: vec![0x20; 146] });
    visit.message(FromGateway::WorkerBroken { worker: WORKER });
    visit.message(FromGateway::KeysMalformed { count: 7 });
    visit.message(FromGateway::Abandoned { request: REQUEST });
}

fn gateway_config() -> GatewayConfig {
    GatewayConfig {
        listeners: vec![ListenerKind::Tls, ListenerKind::PlainLoopback, ListenerKind::Unix],
        certificates: vec![vec![0x30; 700], Vec::new()],
        tls_scheme: 0x0403,
        body_len_max_bytes: 1 << 20,
        read_deadline_ms: 10_000,
        write_deadline_ms: 30_000,
        connections_max: 100,
        connections_per_peer_max: 25,
        requests_max: 8,
    }
}

fn to_gateway(visit: &mut impl Visit) {
    visit.message(ToGateway::Config(gateway_config()));
    let info = ModelInfo { name: "m".to_owned(), context_len_tokens: 8192, created_s: 1 };
    visit.message(ToGateway::ModelUp { model: MODEL, info });
    visit.message(ToGateway::ModelDown { model: MODEL });
    visit.message(ToGateway::WorkerUp { worker: WORKER });
    for worker in [None, Some(WORKER)] {
        let (correlation, request, model) = (1, REQUEST, MODEL);
        visit.message(ToGateway::Begun { correlation, request, model, worker });
        visit.message(ToGateway::Turn { request, worker });
    }
    visit.message(ToGateway::Authorized { correlation: 2 });
    for reason in [
        Denial::KeyInvalid,
        Denial::ModelUnknown,
        Denial::ModelUnavailable,
        Denial::LogUnavailable,
        Denial::TooManyRequests,
        Denial::Stopping,
    ] {
        visit.message(ToGateway::Denied { correlation: 3, reason });
    }
    visit.message(ToGateway::Signature { correlation: 4, signature: vec![1, 2, 3] });
    visit.message(ToGateway::Drain);
    visit.message(ToGateway::AreYouThere);
    let certificates = vec![vec![1, 2], vec![3]];
    visit.message(ToGateway::Certificates { certificates, tls_scheme: 0x0403 });
    visit.message(FromGateway::Alive);
}

fn generate(prompt: Prompt, seed: Option<u64>) -> Generate {
    let sampling = Sampling {
        temperature: 0.7,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        repeat_penalty: 1.1,
        presence_penalty: -0.5,
        frequency_penalty: 0.25,
        logit_bias: vec![(1, -100.0), (u32::MAX, f32::INFINITY)],
        seed,
    };
    let stop = vec!["\n\n".to_owned(), "é".to_owned()];
    Generate { request: REQUEST, prompt, sampling, stop, max_tokens: 128 }
}

fn to_worker(visit: &mut impl Visit) {
    let chat = Prompt::Chat {
        messages_json: r#"[{"role":"user","content":"hi"}]"#.to_owned(),
        messages_count: 1,
        tools_json: String::new(),
    };
    visit.message(ToWorker::Generate(Box::new(generate(chat, Some(42)))));
    let text = Prompt::Text("Once upon a time".to_owned());
    visit.message(ToWorker::Generate(Box::new(generate(text, None))));
    visit.message(ToWorker::Cancel { request: REQUEST });
}

fn from_worker(visit: &mut impl Visit) {
    let request = REQUEST;
    visit.message(FromWorker::Started { request, prompt_tokens: 5 });
    visit.message(FromWorker::Delta { request, text: "日本".to_owned() });
    for finish in [Finish::Stop, Finish::Length, Finish::Cancelled] {
        visit.message(FromWorker::Done {
            request,
            finish,
            prompt_tokens: 5,
            completion_tokens: 6,
            cached_tokens: 4,
        });
    }
    let too_long =
        Failure::ContextTooLong { prompt_tokens: 1, max_tokens: 2, context_len_tokens: 3 };
    for failure in [
        Failure::NoTicket,
        too_long,
        Failure::TemplateRefused,
        Failure::RequestInvalid,
        Failure::Busy,
        Failure::Internal,
    ] {
        visit.message(FromWorker::Failed { request, failure });
    }
}

fn worker_control(visit: &mut impl Visit) {
    let request = REQUEST;
    let engine = "avx512, 2 threads, int8".to_owned();
    visit.message(WorkerReport::Ready { context_len_tokens: 8192, engine });
    visit.message(WorkerReport::NoTicket { request });
    visit.message(WorkerReport::Unused { request });
    for outcome in
        [Outcome::Stop, Outcome::Length, Outcome::Cancelled, Outcome::Refused, Outcome::Failed]
    {
        visit.message(WorkerReport::End(EndReport {
            request,
            outcome,
            messages: vec![DIGEST, DIGEST],
            answer: DIGEST,
            parameters: DIGEST,
            prompt_tokens: 5,
            completion_tokens: 6,
        }));
    }
    visit.message(WorkerReport::NoCard { why: "no CUDA driver".to_owned() });
    visit.message(WorkerReport::Panicked { file: "src/engine/mod.rs".to_owned(), line: 1 });
    let layers = [GpuLayers::Auto, GpuLayers::All, GpuLayers::Count(7)].map(Some);
    for gpu_layers in layers.into_iter().chain([None]) {
        visit.message(ToWorkerControl::Config(worker_config(gpu_layers)));
    }
    for cache_domain in [Some([7; 16]), None] {
        let ticket = Ticket { request, cache_domain, max_tokens: 9, deadline_ms: 60_000 };
        visit.message(ToWorkerControl::Ticket(ticket));
    }
    visit.message(ToWorkerControl::Forget { cache_domain: [7; 16] });
    visit.message(ToWorkerControl::Revoke { request });
    visit.message(ToWorkerControl::Drain);
    visit.message(ToWorkerControl::AreYouThere);
    visit.message(WorkerReport::Alive);
}

fn worker_config(gpu_layers: Option<GpuLayers>) -> WorkerConfig {
    WorkerConfig {
        threads: 2,
        processors: vec![0, 1023],
        exact: true,
        kv: KvFormat::F16,
        context_len_tokens: 0,
        sequences_max: 4,
        prefix_domains: 4,
        prefix_len_tokens: 4096,
        prefix_keep_s: 600,
        guess_tokens: 8,
        texts_len_max_bytes: 128 << 20,
        one_request: true,
        gpu_layers,
        gpu_count: u16::from(gpu_layers.is_some()),
    }
}

fn opener_and_loader(visit: &mut impl Visit) {
    visit.message(FromOpener::Unwrap { ephemeral: [1; 32], body: [2; 32] });
    visit.message(FromOpener::Finished { len_bytes: 1 << 40 });
    for check in [
        OpenCheck::AgeHeader,
        OpenCheck::NoMatchingIdentity,
        OpenCheck::HeaderMac,
        OpenCheck::Chunk,
        OpenCheck::Truncated,
        OpenCheck::Io,
    ] {
        visit.message(FromOpener::Refused { check });
    }
    visit.message(ToOpener::OpenAge);
    visit.message(ToOpener::OpenPlain);
    visit.message(ToOpener::FileKey(Zeroizing::new([9; 16])));
    visit.message(ToOpener::NoMatch);
    visit.message(ToOpener::Taken);
    visit.message(FromOpener::Segment);
    visit.message(ToLoader::Segment);
    visit.message(ToLoader::Load { len_max_bytes: 1 << 34, kv: KvFormat::Q8_0 });
    visit.message(ToLoader::Verified);
    visit.message(FromLoader::Received { len_bytes: 1 });
    visit.message(FromLoader::Progress { done_bytes: 1, total_bytes: 2 });
    visit.message(FromLoader::Sealed { len_bytes: 3 });
    visit.message(FromLoader::Refused { check: "tensor offset".to_owned() });
}

struct RoundTrip(usize);

impl Visit for RoundTrip {
    fn message<M: Message + Debug>(&mut self, message: M) {
        let bytes = message.encode().unwrap();
        let back = M::decode(&bytes).unwrap();
        assert_eq!(format!("{back:?}"), format!("{message:?}"));
        assert_eq!(*back.encode().unwrap(), *bytes);
        self.0 += 1;
    }
}

#[test]
fn every_variant_comes_back_as_it_was() {
    let mut visit = RoundTrip(0);
    every_message(&mut visit);
    assert_eq!(visit.0, 84);
}

struct Mutations;

impl Visit for Mutations {
    fn message<M: Message + Debug>(&mut self, message: M) {
        let bytes = message.encode().unwrap();
        for len in 0..bytes.len() {
            assert_eq!(M::decode(&bytes[..len]).unwrap_err(), Error::Truncated, "{}", M::NAME);
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(M::decode(&longer).unwrap_err(), Error::Trailing { count: 1 });
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..2000 {
            let mut flipped = bytes.to_vec();
            for _ in 0..3 {
                // xorshift64: a fixed sequence, so that a failure can be repeated.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = usize::try_from(state >> 32).unwrap() % flipped.len();
                flipped[at] ^= 1 << (state & 7);
            }
            // What still decodes must encode to the same bytes: one encoding for each message.
            if let Ok(decoded) = M::decode(&flipped) {
                assert_eq!(*decoded.encode().unwrap(), flipped, "{}", M::NAME);
            }
        }
    }
}

#[test]
fn no_mutation_panics_or_has_two_meanings() {
    every_message(&mut Mutations);
}

#[test]
fn rejects_a_text_over_its_limit() {
    let (correlation, key, endpoint) = (0, DIGEST, Endpoint::Chat);
    let model = "m".repeat(NAME_LEN_MAX_BYTES + 1);
    let begin =
        FromGateway::Begin { correlation, key, endpoint, model, max_tokens: 0, stream: false };
    let (len, max) = (NAME_LEN_MAX_BYTES + 1, NAME_LEN_MAX_BYTES);
    let want = Error::TooLong { what: "FromGateway.model", len, max };
    assert_eq!(begin.encode().unwrap_err(), want);

    let mut writer = Writer::default();
    writer.bytes(&[2]);
    writer.bytes(&[0; 8 + 32]);
    writer.bytes(&[1]);
    writer.len("", len, len).unwrap();
    writer.bytes(&vec![b'm'; len]);
    writer.bytes(&[0; 5]);
    assert_eq!(FromGateway::decode(&writer.finish()).unwrap_err(), want);
}

#[test]
fn rejects_a_count_that_the_bytes_cannot_hold() {
    // WorkerReport::End with as many digests announced as there may be, and none there.
    let mut bytes = vec![3];
    bytes.extend_from_slice(&[0; 16]);
    bytes.push(1);
    bytes.extend_from_slice(&u32::try_from(MESSAGES_COUNT_MAX).unwrap().to_le_bytes());
    assert_eq!(WorkerReport::decode(&bytes).unwrap_err(), Error::Truncated);
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    let (len, max) = (u32::MAX as usize, MESSAGES_COUNT_MAX);
    let want = Error::TooLong { what: "EndReport.messages", len, max };
    assert_eq!(WorkerReport::decode(&bytes).unwrap_err(), want);
}

#[test]
fn rejects_a_text_that_is_not_utf8() {
    let mut bytes = FromLoader::Refused { check: "x".to_owned() }.encode().unwrap();
    *bytes.last_mut().unwrap() = 0xff;
    let want = Error::NotUtf8 { what: "FromLoader.check" };
    assert_eq!(FromLoader::decode(&bytes).unwrap_err(), want);
}

#[test]
fn rejects_a_truth_value_of_two() {
    let begin = FromGateway::Begin {
        correlation: 0,
        key: DIGEST,
        endpoint: Endpoint::Chat,
        model: String::new(),
        max_tokens: 0,
        stream: true,
    };
    let mut bytes = begin.encode().unwrap();
    *bytes.last_mut().unwrap() = 2;
    let want = Error::NotBool { what: "FromGateway.stream" };
    assert_eq!(FromGateway::decode(&bytes).unwrap_err(), want);
}

#[test]
fn rejects_an_unknown_variant_inside_and_outside() {
    for value in [0, 13, 255] {
        let want = Error::UnknownVariant { what: "ToGateway", value };
        assert_eq!(ToGateway::decode(&[value]).unwrap_err(), want);
    }
    let want = Error::UnknownVariant { what: "OpenCheck", value: 7 };
    assert_eq!(FromOpener::decode(&[3, 7]).unwrap_err(), want);
}

#[test]
fn rejects_a_message_over_its_whole_length() {
    let (len, max) = (257, ToOpener::LEN_MAX_BYTES);
    let want = Error::TooLong { what: "ToOpener", len, max };
    assert_eq!(ToOpener::decode(&vec![4; len]).unwrap_err(), want);
    let prompt = Prompt::Text("a".repeat(DATA_FRAME_LEN_MAX_BYTES));
    let error = ToWorker::Generate(Box::new(generate(prompt, None))).encode().unwrap_err();
    assert!(matches!(error, Error::TooLong { what: "ToWorker", .. }), "{error}");
    // The longest chain that is read fits.
    let mut config = gateway_config();
    config.certificates = vec![vec![0; CERTIFICATE_LEN_MAX_BYTES]; CERTIFICATES_COUNT_MAX];
    ToGateway::Config(config).encode().unwrap();
}

#[test]
fn a_channel_carries_messages_and_descriptors() {
    let (one, other) = Channel::pair().unwrap();
    assert_eq!(one.try_recv::<FromLoader>().unwrap_err(), Error::WouldBlock);
    let message = FromLoader::Sealed { len_bytes: 5 };
    let (reader, writer) = nix::unistd::pipe().unwrap();
    other.send(&message, &[writer.as_fd()]).unwrap();
    let (_, fds) = one.recv::<FromLoader>().unwrap();
    nix::unistd::write(&fds[0], b"x").unwrap();
    let mut byte = [0];
    assert_eq!(nix::unistd::read(&reader, &mut byte).unwrap(), 1);
    let flags = nix::fcntl::fcntl(&fds[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags, libc::FD_CLOEXEC);
    drop(other);
    assert_eq!(one.recv::<FromLoader>().unwrap_err(), Error::Closed);
    assert_eq!(one.send(&message, &[writer.as_fd()]).unwrap_err(), Error::Closed);
}

#[test]
fn what_a_peer_said_before_it_died_is_heard_although_it_left_messages_unread() {
    for wait in [true, false] {
        let (one, other) = Channel::pair().unwrap();
        one.send(&ToOpener::Taken, &[]).unwrap();
        for len_bytes in 0..3 {
            other.send(&FromOpener::Finished { len_bytes }, &[]).unwrap();
        }
        drop(other);
        let hear = || match wait {
            true => one.recv::<FromOpener>(),
            false => one.try_recv::<FromOpener>(),
        };
        for want in 0..3 {
            let (heard, _) = hear().unwrap();
            assert!(matches!(heard, FromOpener::Finished { len_bytes } if len_bytes == want));
        }
        assert_eq!(hear().unwrap_err(), Error::Closed);
        assert_eq!(hear().unwrap_err(), Error::Closed);
    }
}

#[test]
fn a_channel_rejects_descriptors_that_are_not_announced() {
    let (one, other) = Channel::pair().unwrap();
    let error = other.send(&FromLoader::Sealed { len_bytes: 5 }, &[]).unwrap_err();
    assert_eq!(error, Error::DescriptorCount { want: 1, got: 0 });

    let bytes = FromLoader::Received { len_bytes: 5 }.encode().unwrap();
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    for count in [1, 9, 200] {
        send_raw(&other, &bytes, &vec![writer.as_fd(); count]);
        let error = one.recv::<FromLoader>().unwrap_err();
        assert_eq!(error, Error::DescriptorCount { want: 0, got: count });
    }
}

#[test]
fn a_channel_rejects_a_packet_that_is_too_long_or_empty() {
    let (one, other) = Channel::pair().unwrap();
    send_raw(&other, &vec![4; ToOpener::LEN_MAX_BYTES + 1], &[]);
    assert_eq!(one.recv::<ToOpener>().unwrap_err(), Error::Cut);
    send_raw(&other, &[], &[]);
    assert_eq!(one.recv::<ToOpener>().unwrap_err(), Error::Closed);
}

fn send_raw(channel: &Channel, bytes: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let parts = [std::io::IoSlice::new(bytes)];
    sendmsg::<()>(channel.as_raw_fd(), &parts, control, MsgFlags::empty(), None).unwrap();
}

#[test]
fn frames_survive_any_cut() {
    let mut encoder = FrameEncoder::default();
    let long = "x".repeat(300_000);
    for text in ["", "short", &long] {
        let prompt = Prompt::Text(text.to_owned());
        encoder.push(&ToWorker::Generate(Box::new(generate(prompt, None)))).unwrap();
    }
    let mut bytes = Vec::new();
    while !encoder.pending().is_empty() {
        let count = encoder.pending().len().min(1000);
        bytes.extend_from_slice(&encoder.pending()[..count]);
        encoder.advance(count);
    }
    assert_eq!(encoder.pending_len(), 0);
    for step in [1, 3, 7, 4096, usize::MAX] {
        let mut decoder = FrameDecoder::<ToWorker>::default();
        let (mut rest, mut texts) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let space = decoder.space();
            let count = space.len().min(step).min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            if let Some(ToWorker::Generate(message)) = decoder.advance(count).unwrap() {
                let Prompt::Text(text) = message.prompt else { panic!("not a text") };
                texts.push(text.len());
            }
        }
        assert!(decoder.is_between_frames());
        assert_eq!(texts, [0, 5, 300_000]);
    }
}

fn frame_error(head: [u8; 4]) -> Error {
    let mut decoder = FrameDecoder::<ToWorker>::default();
    decoder.space().copy_from_slice(&head);
    decoder.advance(4).unwrap_err()
}

#[test]
fn rejects_a_frame_length_before_taking_memory() {
    assert_eq!(frame_error([0; 4]), Error::EmptyFrame);
    let (len, max) = (u32::MAX as usize, DATA_FRAME_LEN_MAX_BYTES);
    assert_eq!(frame_error([0xff; 4]), Error::TooLong { what: "ToWorker", len, max });
    // A length within the limit takes one step of memory until bytes arrive.
    let mut decoder = FrameDecoder::<ToWorker>::default();
    decoder.space().copy_from_slice(&(16_u32 << 20).to_le_bytes());
    assert!(decoder.advance(4).unwrap().is_none());
    assert_eq!(decoder.space().len(), 64 << 10);
}

#[test]
fn a_data_channel_does_not_wait() {
    let (one, other) = data_pair().unwrap();
    let mut worker = DataChannel::<FromWorker, ToWorker>::new(one);
    let mut gateway = DataChannel::<ToWorker, FromWorker>::new(other);
    assert!(matches!(gateway.read().unwrap(), Event::Empty));
    let delta = FromWorker::Delta { request: REQUEST, text: "y".repeat(60_000) };
    for _ in 0..50 {
        worker.push(&delta).unwrap();
    }
    worker.flush().unwrap();
    assert!(worker.pending_len() > 0, "the socket cannot hold all of it");
    let mut count = 0;
    while count < 50 {
        match gateway.read().unwrap() {
            Event::Message(message) => {
                assert_eq!(message, delta);
                count += 1;
            }
            Event::Empty => worker.flush().unwrap(),
            Event::Closed => panic!("closed"),
        }
    }
    drop(worker);
    assert!(matches!(gateway.read().unwrap(), Event::Closed));
    gateway.push(&ToWorker::Cancel { request: REQUEST }).unwrap();
    assert_eq!(gateway.flush().unwrap_err(), Error::Closed);
}

#[test]
fn an_end_inside_a_frame_is_an_error() {
    let (one, other) = data_pair().unwrap();
    let mut worker = DataChannel::<FromWorker, ToWorker>::new(one);
    nix::unistd::write(&other, &[17, 0, 0, 0, 2]).unwrap();
    drop(other);
    assert_eq!(worker.read().unwrap_err(), Error::Truncated);
}
