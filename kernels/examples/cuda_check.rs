//! What graphs, pinned memory and timers must do, tried through the driver: on a real card, or on the
//! stand-in. Prints a line for each, and ends with an error at the first that does otherwise.
//!
//! `cuda_check NAME` tries one.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program of the tests")]

use std::error::Error;
use std::process::ExitCode;

use kernels::cuda::{Buffer, Card, CudaError, Driver, Forms, Input, Memory, Pinned, quantize};

type Outcome = Result<(), Box<dyn Error>>;

/// What is tried on a card.
type Check = fn(&Card<'_>) -> Outcome;

/// Bytes of a page that is zeroed here, and pages.
const PAGE_SIZE: usize = 4096;
const PAGES: usize = 4;
/// What pages hold at first.
const FULL: u8 = 0x55;

const CHECKS: &[(&str, Check)] = &[
    ("a_graph_runs_when_it_is_launched_and_reads_its_arguments_then", repeat),
    ("a_graph_copies_from_and_to_pinned_memory", copies),
    ("what_cannot_be_recorded_is_refused_and_the_card_goes_on", refusals),
    ("the_recording_ends_when_the_work_panics", panics),
    ("memory_that_is_dropped_while_a_graph_is_recorded_is_given_back", dropped),
    ("pinned_memory_is_zeroed_and_bounded", pinned),
    ("pinned_memory_that_is_dropped_waits_for_its_copies", early),
    ("pinned_memory_that_is_dropped_while_a_graph_is_recorded_waits_for_its_copies", late),
    ("memory_that_another_card_pinned_is_refused", foreign),
    ("a_launch_on_a_buffer_of_another_card_is_refused", stranger),
    ("two_cards_compute_side_by_side", side_by_side),
    ("a_card_that_is_dropped_waits_for_its_launches", unfinished),
    ("copies_of_pinned_memory_are_in_the_order_of_the_stream", order),
    ("a_timer_tells_the_time_between_its_marks", time),
];

fn main() -> ExitCode {
    let only = std::env::args().nth(1);
    match run(only.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(only: Option<&str>) -> Outcome {
    let driver = Driver::load()?;
    let devices = driver.devices()?;
    let device = devices.first().ok_or(CudaError::NoDevice)?;
    for (name, check) in CHECKS.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        let card = Card::open(&driver, device)?;
        check(&card).map_err(|error| format!("{name}: {error}"))?;
        println!("{name}: ok");
    }
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Outcome {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?}, not {wanted:?}").into()) }
}

/// Pages that are full, and a list that names one of them.
struct Pages<'c> {
    card: &'c Card<'c>,
    pages: Memory<'c>,
    list: Memory<'c>,
}

impl<'c> Pages<'c> {
    fn new(card: &'c Card<'c>) -> Result<Self, CudaError> {
        let mut pages = card.allocate(PAGES * PAGE_SIZE)?;
        pages.fill(FULL)?;
        let list = card.allocate(4)?;
        Ok(Self { card, pages, list })
    }

    /// Zeroes the page that the list names when the kernel runs.
    fn zero(&self) -> Result<(), CudaError> {
        let pieces = (PAGE_SIZE as u64 / 16).to_le_bytes();
        let (to, list) = (self.pages.address().to_le_bytes(), self.list.address().to_le_bytes());
        let arguments: [&[u8]; 4] = [&to, &0_u64.to_le_bytes(), &pieces, &list];
        // SAFETY: the list names a page of `pages`, and both live until the card has finished.
        unsafe { self.card.launch("zero_pages", [1, 1, 1], 256, 0, &arguments) }
    }

    /// Returns which pages are zero; each is so wholly or not at all.
    fn zeros(&self) -> Result<[bool; PAGES], Box<dyn Error>> {
        let mut bytes = vec![0; PAGES * PAGE_SIZE];
        self.pages.read(0, &mut bytes)?;
        let mut zeros = [false; PAGES];
        for (zero, page) in zeros.iter_mut().zip(bytes.chunks(PAGE_SIZE)) {
            *zero = page.iter().all(|byte| *byte == 0);
            if !*zero && page.iter().any(|byte| *byte != FULL) {
                return Err("a page is zeroed in part".into());
            }
        }
        Ok(zeros)
    }
}

fn repeat(card: &Card<'_>) -> Outcome {
    let mut pages = Pages::new(card)?;
    pages.list.write(0, &0_u32.to_le_bytes())?;
    let graph = card.record(|| pages.zero())?;
    same("recorded, not launched", &pages.zeros()?, &[false; PAGES])?;
    pages.list.write(0, &2_u32.to_le_bytes())?;
    // SAFETY: the list names a page, and all memory lives until `zeros` has finished.
    unsafe { graph.launch()? };
    same("launched", &pages.zeros()?, &[false, false, true, false])?;
    pages.list.write(0, &1_u32.to_le_bytes())?;
    // SAFETY: as above.
    unsafe { graph.launch()? };
    same("launched again", &pages.zeros()?, &[false, true, true, false])
}

/// A list in pinned memory, the copy of it, the kernel, the copy of the result: one graph.
fn copies(card: &Card<'_>) -> Outcome {
    let pages = Pages::new(card)?;
    let mut list = card.pin(4)?;
    let result = card.pin(PAGE_SIZE)?;
    let graph = card.record(|| {
        // SAFETY: the pinned list is written below only after the card has finished.
        unsafe { pages.list.start_write(0, &list, 0..4)? };
        pages.zero()?;
        // SAFETY: the result is read below only after the card has finished.
        unsafe { pages.pages.start_read(3 * PAGE_SIZE, &result, 0..PAGE_SIZE) }
    })?;
    let is_zero = |result: &Pinned<'_>| result.iter().all(|byte| *byte == 0);
    for (page, wanted) in [(1_u32, false), (3, true)] {
        list.copy_from_slice(&page.to_le_bytes());
        // SAFETY: nothing is touched until the card has finished.
        unsafe { graph.launch()? };
        card.finish()?;
        same("the fourth page is zero", &is_zero(&result), &wanted)?;
    }
    same("pages", &pages.zeros()?, &[false, true, false, true])
}

fn refusals(card: &Card<'_>) -> Outcome {
    let mut pages = Pages::new(card)?;
    pages.list.write(0, &1_u32.to_le_bytes())?;
    let timer = card.timer()?;
    type Attempt<'a> = &'a dyn Fn() -> Result<(), CudaError>;
    let tries: [(&str, Attempt<'_>); 7] = [
        ("finish", &|| card.finish()),
        ("read", &|| pages.pages.read(0, &mut [0; 4])),
        ("allocate", &|| card.allocate(16).map(|_| ())),
        ("pin", &|| card.pin(16).map(|_| ())),
        ("a timer", &|| card.timer().map(|_| ())),
        ("a mark", &|| timer.start()),
        ("a graph in a graph", &|| card.record(|| Ok(())).map(|_| ())),
    ];
    for (what, attempt) in tries {
        let refused = card.record(|| {
            pages.zero()?;
            attempt()
        });
        same(what, &refused.err(), &Some(CudaError::WhileRecording))?;
        // One that is passed over leaves the recording as it was.
        let passed_over = card.record(|| {
            let _ = attempt();
            pages.zero()
        });
        same(what, &passed_over.err(), &None)?;
    }
    let stopped = card.record(|| Err(CudaError::OutOfBounds));
    same("an error of the work", &stopped.err(), &Some(CudaError::OutOfBounds))?;
    same("nothing ran", &pages.zeros()?, &[false; PAGES])?;
    pages.zero()?;
    same("the card goes on", &pages.zeros()?, &[false, true, false, false])
}

fn panics(card: &Card<'_>) -> Outcome {
    std::panic::set_hook(Box::new(|_| {}));
    let work = std::panic::AssertUnwindSafe(|| card.record(|| panic!("as asked")));
    same("a panic", &std::panic::catch_unwind(work).is_err(), &true)?;
    let _ = std::panic::take_hook();
    Ok(card.finish()?)
}

fn dropped(card: &Card<'_>) -> Outcome {
    let before = card.free_memory()?;
    let mut memory = card.allocate(1 << 22)?;
    memory.fill(FULL)?;
    let graph = card.record(|| {
        drop(memory);
        Ok(())
    })?;
    drop(graph);
    same("free memory", &(card.free_memory()? >= before), &true)
}

fn pinned(card: &Card<'_>) -> Outcome {
    let mut memory = card.pin(100)?;
    same("its size", &memory.len(), &100)?;
    same("it starts as zeros", &memory.iter().all(|byte| *byte == 0), &true)?;
    memory.fill(7);
    let on_card = card.allocate(60)?;
    let beyond = Some(CudaError::OutOfBounds);
    let reversed = std::ops::Range { start: 8, end: 4 };
    for (at, part) in [(0, 90..101), (0, 0..61), (60, 0..1), (0, reversed)] {
        // SAFETY: neither side is touched before the card has finished.
        let written = unsafe { on_card.start_write(at, &memory, part.clone()) };
        same("a write beyond", &written.err(), &beyond)?;
        // SAFETY: as above.
        let read = unsafe { on_card.start_read(at, &memory, part) };
        same("a read beyond", &read.err(), &beyond)?;
    }
    Ok(())
}

fn early(card: &Card<'_>) -> Outcome {
    let on_card = card.allocate(1 << 20)?;
    let mut pinned = card.pin(1 << 20)?;
    pinned.fill(3);
    // SAFETY: nothing is written before the copy is over.
    unsafe { on_card.start_write(0, &pinned, 0..1 << 20)? };
    drop(pinned);
    let mut found = vec![0; 1 << 20];
    on_card.read(0, &mut found)?;
    same("what was copied", &found.iter().all(|byte| *byte == 3), &true)
}

/// As before, and nothing can be waited for until the recording ends.
fn late(card: &Card<'_>) -> Outcome {
    let on_card = card.allocate(1 << 20)?;
    let mut pinned = card.pin(1 << 20)?;
    pinned.fill(3);
    // SAFETY: nothing is written before the copy is over.
    unsafe { on_card.start_write(0, &pinned, 0..1 << 20)? };
    let graph = card.record(|| {
        drop(pinned);
        Ok(())
    })?;
    drop(graph);
    let mut found = vec![0; 1 << 20];
    on_card.read(0, &mut found)?;
    same("what was copied", &found.iter().all(|byte| *byte == 3), &true)
}

/// Its card would not wait for a copy in the other's stream.
fn foreign(card: &Card<'_>) -> Outcome {
    let driver = Driver::load()?;
    let devices = driver.devices()?;
    let other = Card::open(&driver, devices.first().ok_or(CudaError::NoDevice)?)?;
    let (on_card, pinned, own) = (card.allocate(60)?, other.pin(60)?, card.pin(60)?);
    for (memory, wanted) in [(&pinned, Some(CudaError::OtherCard)), (&own, None)] {
        // SAFETY: neither side is touched before the card has finished.
        let written = unsafe { on_card.start_write(0, memory, 0..60) };
        same("a write", &written.err(), &wanted)?;
        // SAFETY: as above.
        let read = unsafe { on_card.start_read(0, memory, 0..60) };
        same("a read", &read.err(), &wanted)?;
    }
    Ok(())
}

/// Nobody would wait for it, and on another card its address means nothing.
fn stranger(card: &Card<'_>) -> Outcome {
    let driver = Driver::load()?;
    let devices = driver.devices()?;
    let other = Card::open(&driver, devices.last().ok_or(CudaError::NoDevice)?)?;
    let (x, mut input) = (Buffer::of(&other, &[1.0; 32])?, Input::new(card, 1, 32)?);
    std::panic::set_hook(Box::new(|_| {}));
    let mut ask = |card| quantize(card, (1, 32), &x, (&mut input, Forms::of(&[])));
    let work = std::panic::AssertUnwindSafe(|| ask(card));
    same("a panic", &std::panic::catch_unwind(work).is_err(), &true)?;
    ask(&other)?;
    other.finish()?;
    let _ = std::panic::take_hook();
    Ok(())
}

/// The last card of the machine beside the first, which may be the same; each has its own memory, kernels,
/// graphs and order.
fn side_by_side(card: &Card<'_>) -> Outcome {
    let driver = Driver::load()?;
    let devices = driver.devices()?;
    let other = Card::open(&driver, devices.last().ok_or(CudaError::NoDevice)?)?;
    let mut both = [Pages::new(card)?, Pages::new(&other)?];
    let mut wanted = [false; PAGES];
    for page in 0..PAGES {
        let list = u32::try_from(page)?.to_le_bytes();
        both[0].list.write(0, &list)?;
        both[1].list.write(0, &list)?;
        let graph = both[page % 2].card.record(|| both[page % 2].zero())?;
        // SAFETY: nothing of it is touched before its card has finished.
        unsafe { graph.launch()? };
        both[(page + 1) % 2].zero()?;
        wanted[page] = true;
        for pages in &both {
            same("a card's pages", &pages.zeros()?, &wanted)?;
        }
    }
    Ok(())
}

/// What was launched may outlive the value that stands for its memory: one that is forgotten.
fn unfinished(card: &Card<'_>) -> Outcome {
    let driver = Driver::load()?;
    let devices = driver.devices()?;
    let other = Card::open(&driver, devices.first().ok_or(CudaError::NoDevice)?)?;
    let mut pages = card.allocate(PAGE_SIZE)?;
    pages.fill(FULL)?;
    card.finish()?;
    let (to, pieces) = (pages.address().to_le_bytes(), (PAGE_SIZE as u64 / 16).to_le_bytes());
    // SAFETY: the memory lives, and nothing else touches it until the other card has finished, as it is dropped.
    unsafe { other.launch("zero", [1, 1, 1], 256, 0, &[&to, &pieces])? };
    drop(other);
    let mut found = vec![1; PAGE_SIZE];
    pages.read(0, &mut found)?;
    same("the launch is over", &found.iter().all(|byte| *byte == 0), &true)
}

/// The second copy to the card must not overtake the copy from it.
fn order(card: &Card<'_>) -> Outcome {
    let on_card = card.allocate(1 << 20)?;
    let (mut first, mut second) = (card.pin(1 << 20)?, card.pin(1 << 20)?);
    first.fill(1);
    second.fill(2);
    let results = [card.pin(1 << 20)?, card.pin(1 << 20)?];
    for (from, to) in [&first, &second].into_iter().zip(&results) {
        // SAFETY: nothing is touched until the card has finished, below.
        unsafe { on_card.start_write(0, from, 0..1 << 20)? };
        // SAFETY: as above.
        unsafe { on_card.start_read(0, to, 0..1 << 20)? };
    }
    card.finish()?;
    same("the first", &results[0].iter().all(|byte| *byte == 1), &true)?;
    same("the second", &results[1].iter().all(|byte| *byte == 2), &true)
}

fn time(card: &Card<'_>) -> Outcome {
    let timer = card.timer()?;
    same("without marks", &timer.seconds().is_err(), &true)?;
    let mut memory = card.allocate(1 << 24)?;
    timer.start()?;
    memory.fill(1)?;
    timer.stop()?;
    let seconds = timer.seconds()?;
    same("a time of 16 MB", &(seconds > 0.0 && seconds < 10.0), &true)
}
