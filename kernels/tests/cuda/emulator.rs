//! Builds the emulation and sends launches to it, as `kernels/cuda/emulated/main.cpp` reads them.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Flags of every compilation; sums are rounded as on the card.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-g1",
    "-DCLOISTER_EMULATED",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-fsanitize=address",
    "-fno-omit-frame-pointer",
];

/// The folder of the sources.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda")
}

/// A program that runs kernels.
pub(crate) struct Emulator {
    program: PathBuf,
    /// What its environment has besides that of the test.
    settings: Vec<(String, String)>,
}

impl Emulator {
    /// Returns the emulation of all kernels, built once; nothing, said aloud, where it cannot be.
    /// `CLOISTER_CUDA` names a program to take instead: `cuda_run`, which asks the driver.
    pub(crate) fn get() -> Option<&'static Self> {
        static BUILT: OnceLock<Option<Emulator>> = OnceLock::new();
        let build = || match std::env::var_os("CLOISTER_CUDA") {
            Some(program) => Some(Self::of(PathBuf::from(program), &[])),
            None => can_build().then(|| Self::build(&sources(), "kernels")),
        };
        BUILT.get_or_init(build).as_ref()
    }

    /// A program that is there already.
    pub(crate) fn of(program: PathBuf, settings: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self { program, settings: settings.iter().map(owned).collect() }
    }

    /// Builds the emulation of one file and what it includes. A program of the same sources that was
    /// built before is taken instead. Of two that build the same at once, one takes the other's place.
    pub(crate) fn build(folder: &Path, name: &str) -> Self {
        static BUILDS: AtomicUsize = AtomicUsize::new(0);
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = target.join(format!("cuda-{name}-{:016x}", digest(folder)));
        if !program.exists() {
            let build = BUILDS.fetch_add(1, Ordering::Relaxed);
            let unfinished = program.with_extension(format!("{}-{build}", std::process::id()));
            let mut command = Command::new("g++");
            command.args(FLAGS).arg("-I").arg(folder).arg("-o").arg(&unfinished);
            command.args(["-x", "c++"]).arg(folder.join(name).with_extension("cu"));
            for part in ["device.cpp", "main.cpp"] {
                command.arg(folder.join("emulated").join(part));
            }
            let done = command.output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            fs::rename(&unfinished, &program).unwrap();
        }
        Self::of(program, &[])
    }

    /// Removes the program.
    pub(crate) fn remove(self) {
        fs::remove_file(self.program).unwrap();
    }
}

/// Returns whether the emulation can be built here, and says so if not.
pub(crate) fn can_build() -> bool {
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!("skipped: instruction set cuda: its emulation switches fibers of x86-64");
        return false;
    }
    let found = Command::new("g++").arg("--version").stdout(Stdio::null()).status();
    let can = found.is_ok_and(|status| status.success());
    if !can {
        eprintln!("skipped: the emulation of CUDA kernels: g++ is not installed");
    }
    can
}

/// A digest of all sources and flags.
fn digest(folder: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    FLAGS.hash(&mut hasher);
    for folder in [folder.to_path_buf(), folder.join("emulated")] {
        let mut files: Vec<_> =
            fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
        files.sort();
        let is_source = |path: &&PathBuf| {
            let extension = path.extension().and_then(|it| it.to_str());
            matches!(extension, Some("cu" | "cuh" | "h" | "cpp"))
        };
        for file in files.iter().filter(is_source) {
            fs::read(file).unwrap().hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// A number as the card has it.
pub(crate) trait Number: Copy {
    /// Appends its bytes.
    fn put(self, to: &mut Vec<u8>);
    /// Reads it.
    fn get(from: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($ty:ty)*) => {
        $(impl Number for $ty {
            fn put(self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }

            fn get(from: &[u8]) -> Self {
                Self::from_le_bytes(from.try_into().unwrap())
            }
        })*
    };
}
numbers!(u8 i8 u16 u32 i32 u64 f32);

/// A buffer on the card.
pub(crate) struct Buffer<T>(usize, PhantomData<T>);

impl<T> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Buffer<T> {}

/// An argument of a kernel: a value, or a struct whose members are put one by one.
#[derive(Clone, Default)]
pub(crate) struct Argument {
    bytes: Vec<u8>,
    alignment: usize,
    /// Where, which buffer, from which byte on.
    pointers: Vec<(usize, usize, u64)>,
}

impl Argument {
    pub(crate) fn new() -> Self {
        Self { alignment: 1, ..Self::default() }
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
        self.alignment = self.alignment.max(to);
    }

    pub(crate) fn number<T: Number>(mut self, value: T) -> Self {
        self.align(size_of::<T>());
        value.put(&mut self.bytes);
        self
    }

    pub(crate) fn pointer<T>(self, buffer: Buffer<T>) -> Self {
        self.pointer_to(buffer, 0)
    }

    /// A pointer to an element of a buffer.
    pub(crate) fn pointer_to<T>(mut self, buffer: Buffer<T>, index: usize) -> Self {
        self.align(8);
        self.pointers.push((self.bytes.len(), buffer.0, (index * size_of::<T>()) as u64));
        self.number(0_u64)
    }

    pub(crate) fn maybe<T>(self, buffer: Option<Buffer<T>>) -> Self {
        match buffer {
            Some(buffer) => self.pointer(buffer),
            None => self.number(0_u64),
        }
    }

    /// A struct inside of this one.
    pub(crate) fn inner(mut self, inner: Self) -> Self {
        let inner = inner.padded();
        self.align(inner.alignment);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&inner.bytes);
        self.pointers
            .extend(inner.pointers.iter().map(|(at, index, from)| (start + at, *index, *from)));
        self
    }

    /// As large as the struct is.
    fn padded(mut self) -> Self {
        self.align(self.alignment.max(1));
        self
    }
}

/// A value that is an argument by itself.
pub(crate) fn value<T: Number>(value: T) -> Argument {
    Argument::new().number(value)
}

/// A pointer that is an argument by itself.
pub(crate) fn pointer<T>(buffer: Buffer<T>) -> Argument {
    Argument::new().pointer(buffer)
}

/// A pointer that is an argument by itself, null for nothing.
pub(crate) fn maybe<T>(buffer: Option<Buffer<T>>) -> Argument {
    Argument::new().maybe(buffer)
}

/// Buffers, and the launches that work on them.
pub(crate) struct Request {
    seed: u64,
    /// Size, bytes if they are given, whether it is returned.
    buffers: Vec<(usize, Option<Vec<u8>>, bool)>,
    launches: Vec<u8>,
    n_launches: u32,
}

impl Request {
    /// A request whose fibers run in the order of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, buffers: Vec::new(), launches: Vec::new(), n_launches: 0 }
    }

    fn add<T>(&mut self, size: usize, bytes: Option<Vec<u8>>, is_returned: bool) -> Buffer<T> {
        self.buffers.push((size, bytes, is_returned));
        Buffer(self.buffers.len() - 1, PhantomData)
    }

    fn given<T: Number>(&mut self, values: &[T], is_returned: bool) -> Buffer<T> {
        let mut bytes = Vec::with_capacity(size_of_val(values));
        values.iter().for_each(|value| value.put(&mut bytes));
        self.add(bytes.len(), Some(bytes), is_returned)
    }

    /// A buffer that is read.
    pub(crate) fn input<T: Number>(&mut self, values: &[T]) -> Buffer<T> {
        self.given(values, false)
    }

    /// A buffer that is changed.
    pub(crate) fn changed<T: Number>(&mut self, values: &[T]) -> Buffer<T> {
        self.given(values, true)
    }

    /// A buffer that is written, poisoned until then.
    pub(crate) fn output<T>(&mut self, len: usize) -> Buffer<T> {
        self.add(len * size_of::<T>(), None, true)
    }

    /// Launches a kernel.
    pub(crate) fn launch(
        &mut self,
        name: &str,
        grid: [usize; 3],
        threads: usize,
        arguments: &[Argument],
    ) {
        self.launch_with(name, grid, threads, 0, arguments);
    }

    /// Launches a kernel with shared memory that the launch gives.
    pub(crate) fn launch_with(
        &mut self,
        name: &str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        arguments: &[Argument],
    ) {
        u32::try_from(name.len()).unwrap().put(&mut self.launches);
        self.launches.extend_from_slice(name.as_bytes());
        for number in [grid[0], grid[1], grid[2], threads, 1, 1, shared, arguments.len()] {
            u32::try_from(number).unwrap().put(&mut self.launches);
        }
        for argument in arguments {
            let Argument { bytes, pointers, .. } = argument.clone().padded();
            u32::try_from(bytes.len()).unwrap().put(&mut self.launches);
            self.launches.extend_from_slice(&bytes);
            u32::try_from(pointers.len()).unwrap().put(&mut self.launches);
            for (at, buffer, offset) in pointers {
                u32::try_from(at).unwrap().put(&mut self.launches);
                u32::try_from(buffer).unwrap().put(&mut self.launches);
                offset.put(&mut self.launches);
            }
        }
        self.n_launches += 1;
    }

    /// Runs the launches; an error is what the emulation says.
    pub(crate) fn try_run(self, emulator: &Emulator) -> Result<Outputs, String> {
        let mut message = Vec::new();
        self.seed.put(&mut message);
        u32::try_from(self.buffers.len()).unwrap().put(&mut message);
        for (size, bytes, is_returned) in &self.buffers {
            (*size as u64).put(&mut message);
            u32::from(bytes.is_some()).put(&mut message);
            u32::from(*is_returned).put(&mut message);
            message.extend_from_slice(bytes.as_deref().unwrap_or_default());
        }
        self.n_launches.put(&mut message);
        message.extend_from_slice(&self.launches);
        let mut child = Command::new(&emulator.program)
            .envs(emulator.settings.iter().map(|(name, value)| (name, value)))
            .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // A program that ended closes its end: what it says is told below.
        let writer = std::thread::spawn(move || input.write_all(&message));
        let done = child.wait_with_output().unwrap();
        let _ = writer.join().unwrap();
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into_owned());
        }
        let mut at = 0;
        let mut parts = Vec::new();
        for (size, _, is_returned) in self.buffers {
            let size = if is_returned { size } else { 0 };
            parts.push(done.stdout[at..at + size].to_vec());
            at += size;
        }
        assert_eq!(at, done.stdout.len(), "the emulation returns what was asked for");
        Ok(Outputs(parts))
    }

    /// Runs the launches.
    pub(crate) fn run(self, emulator: &Emulator) -> Outputs {
        self.try_run(emulator).unwrap_or_else(|told| panic!("{told}"))
    }
}

/// The buffers that came back.
pub(crate) struct Outputs(Vec<Vec<u8>>);

impl Outputs {
    /// Returns what a buffer holds.
    pub(crate) fn get<T: Number>(&self, buffer: Buffer<T>) -> Vec<T> {
        self.0[buffer.0].chunks_exact(size_of::<T>()).map(T::get).collect()
    }
}
