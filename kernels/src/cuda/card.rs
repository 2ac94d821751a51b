//! One card: its context, the loaded kernels, memory and launches, in the order of one stream.
//!
//! While a graph is recorded nothing runs, so that nothing is waited for, allocated or given back.

use core::cell::{Cell, RefCell};
use core::ffi::{c_int, c_uint, c_void};
use core::fmt;
use core::ptr;
use std::ffi::CString;

use super::driver::{Device, Driver, Functions, Handle, OUT_OF_MEMORY, check};
use super::shape::Shape;
use super::{CudaError, IMAGE, KERNELS, SHARED_MAX, has_large_shared};

/// The oldest compute capability that the kernels are made for.
const CAPABILITY_MIN: (i32, i32) = (8, 0);
/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: c_int = 8;

thread_local! {
    /// The context that the driver works on in this thread, whichever card of it was used last.
    static CURRENT: Cell<Handle> = const { Cell::new(ptr::null_mut()) };
}

/// Most arguments of a kernel.
const ARGUMENTS_MAX: usize = 8;

/// A kernel that is loaded.
struct Kernel {
    name: &'static str,
    handle: Handle,
    /// Bytes of each argument.
    arguments: Vec<usize>,
}

/// A card that is ready to compute. It belongs to the thread that opened it.
pub struct Card<'d> {
    driver: &'d Driver,
    device: c_int,
    context: Handle,
    pub(super) stream: Handle,
    module: Handle,
    kernels: Vec<Kernel>,
    /// Whether the stream records instead of running.
    pub(super) is_recording: Cell<bool>,
    /// Memory that was dropped meanwhile: address, bytes.
    left: RefCell<Vec<(u64, usize)>>,
    /// The host's, too.
    pub(super) left_pinned: RefCell<Vec<(ptr::NonNull<u8>, usize)>>,
    /// The batch that a step is recorded for: where it lies, its shape.
    pub(super) recorded: Cell<Option<(u64, Shape)>>,
    /// How often memory was given back.
    pub(super) given_back: Cell<u64>,
    /// How many copies from the host were started that nobody waited for at once, and how many are over.
    pub(super) copies: Cell<u64>,
    pub(super) copies_over: Cell<u64>,
}

impl fmt::Debug for Card<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Card").field("device", &self.device).finish_non_exhaustive()
    }
}

impl<'d> Card<'d> {
    /// Opens a card and loads every kernel: afterwards no file is opened and no code is loaded.
    ///
    /// # Errors
    ///
    /// Says whether the card is too old, or what failed.
    pub fn open(driver: &'d Driver, device: &Device) -> Result<Self, CudaError> {
        if device.capability < CAPABILITY_MIN {
            return Err(CudaError::OldDevice { found: device.capability });
        }
        let functions = &driver.functions;
        let mut context = ptr::null_mut();
        // SAFETY: `context` may be written, and the device is one that the driver named.
        let code = unsafe { (functions.context_retain)(&raw mut context, device.handle) };
        check("cuDevicePrimaryCtxRetain", code)?;
        // From here on dropping the card gives everything back.
        let mut card = Self {
            driver,
            device: device.handle,
            context,
            stream: ptr::null_mut(),
            module: ptr::null_mut(),
            kernels: Vec::new(),
            is_recording: Cell::new(false),
            left: RefCell::default(),
            left_pinned: RefCell::default(),
            recorded: Cell::new(None),
            given_back: Cell::new(0),
            copies: Cell::new(0),
            copies_over: Cell::new(0),
        };
        card.make_current()?;
        // SAFETY: the stream may be written.
        let code = unsafe { (functions.stream_create)(&raw mut card.stream, NON_BLOCKING) };
        check("cuStreamCreate", code)?;
        let image = IMAGE.as_ptr().cast::<c_void>();
        // SAFETY: the image is a whole fat binary, which tells its own length.
        let code = unsafe { (functions.module_load_data)(&raw mut card.module, image) };
        check("cuModuleLoadData", code)?;
        for name in KERNELS {
            let kernel = card.load(name)?;
            card.kernels.push(kernel);
        }
        Ok(card)
    }

    /// The driver's functions, which work on this card from now on.
    pub(super) fn functions(&self) -> &'d Functions {
        // Where that fails, the card has failed, and what is called next says so.
        let _ = self.make_current();
        &self.driver.functions
    }

    /// Makes the card the one that the driver works on.
    fn make_current(&self) -> Result<(), CudaError> {
        if CURRENT.get() == self.context {
            return Ok(());
        }
        // SAFETY: the context was retained in `open`, and is not released yet.
        let code = unsafe { (self.driver.functions.context_set_current)(self.context) };
        check("cuCtxSetCurrent", code)?;
        CURRENT.set(self.context);
        Ok(())
    }

    fn load(&self, name: &'static str) -> Result<Kernel, CudaError> {
        let functions = self.functions();
        let text = CString::new(name).map_err(|_| CudaError::UnknownKernel)?;
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` may be written, the module is loaded, and the name ends in a zero.
        let code =
            unsafe { (functions.module_get_function)(&raw mut handle, self.module, text.as_ptr()) };
        check("cuModuleGetFunction", code)?;
        // SAFETY: the function is one of a loaded module.
        let code = unsafe { (functions.function_load)(handle) };
        check("cuFuncLoad", code)?;
        if has_large_shared(name) {
            // SAFETY: as above.
            let code = unsafe {
                (functions.function_set_attribute)(handle, MAX_DYNAMIC_SHARED, SHARED_MAX)
            };
            check("cuFuncSetAttribute", code)?;
        }
        let mut arguments = Vec::new();
        let (mut at, mut size) = (0, 0);
        loop {
            let index = arguments.len();
            // SAFETY: the function is one of a loaded module; both numbers may be written.
            let code = unsafe {
                (functions.function_get_param)(handle, index, &raw mut at, &raw mut size)
            };
            // There are no more.
            if check("cuFuncGetParamInfo", code).is_err() {
                return Ok(Kernel { name, handle, arguments });
            }
            arguments.push(size);
        }
    }

    /// Returns the bytes of the card's memory that are free.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card does not answer.
    pub fn free_memory(&self) -> Result<usize, CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both numbers may be written.
        let code = unsafe { (self.functions().mem_get_info)(&raw mut free, &raw mut total) };
        check("cuMemGetInfo", code)?;
        Ok(free)
    }

    /// Allocates memory, which holds anything.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] with what is free.
    pub fn allocate(&self, size: usize) -> Result<Memory<'_>, CudaError> {
        self.refuse_while_recording()?;
        let mut address = 0;
        // SAFETY: `address` may be written.
        let code = unsafe { (self.functions().mem_alloc)(&raw mut address, size.max(1)) };
        if code == OUT_OF_MEMORY {
            return Err(CudaError::OutOfMemory { wanted: size, free: self.free_memory()? });
        }
        check("cuMemAlloc", code)?;
        Ok(Memory { card: self, address, size })
    }

    /// Launches a kernel after all that was asked for before.
    ///
    /// # Errors
    ///
    /// [`CudaError::WrongArguments`] if their number or sizes are not those of the kernel.
    ///
    /// # Safety
    ///
    /// The grid, the threads and the arguments are as `kernels/cuda/README.md` says, and memory that
    /// they point to lives, and is not read or written otherwise, until [`Card::finish`] returns.
    pub unsafe fn launch(
        &self,
        name: &str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        arguments: &[&[u8]],
    ) -> Result<(), CudaError> {
        let kernel = self.kernels.iter().find(|kernel| kernel.name == name);
        let kernel = kernel.ok_or(CudaError::UnknownKernel)?;
        let sizes = arguments.iter().map(|argument| argument.len());
        if arguments.len() > ARGUMENTS_MAX || !sizes.eq(kernel.arguments.iter().copied()) {
            return Err(CudaError::WrongArguments(kernel.name));
        }
        let mut pointers = [ptr::null_mut::<c_void>(); ARGUMENTS_MAX];
        for (pointer, argument) in pointers.iter_mut().zip(arguments) {
            *pointer = argument.as_ptr().cast_mut().cast();
        }
        let [x, y, z] = grid;
        let launch = self.functions().launch_kernel;
        let (handle, stream) = (kernel.handle, self.stream);
        let (pointers, none) = (pointers.as_mut_ptr(), ptr::null_mut());
        // SAFETY: the caller vouches for what the arguments say; there are as many as the kernel
        // takes, each of its size, and the driver copies them before it returns.
        let code =
            unsafe { launch(handle, x, y, z, threads, 1, 1, shared, stream, pointers, none) };
        check("cuLaunchKernel", code)
    }

    /// Refuses what cannot be done while a graph is recorded.
    pub(super) fn refuse_while_recording(&self) -> Result<(), CudaError> {
        if self.is_recording.get() { Err(CudaError::WhileRecording) } else { Ok(()) }
    }

    /// Waits for all that was asked for; a fault of a kernel shows here.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] with the fault.
    pub fn finish(&self) -> Result<(), CudaError> {
        self.refuse_while_recording()?;
        // SAFETY: the stream is the card's.
        let code = unsafe { (self.functions().stream_synchronize)(self.stream) };
        check("cuStreamSynchronize", code)?;
        self.copies_over.set(self.copies.get());
        Ok(())
    }

    /// Gives back what was dropped while a graph was recorded.
    pub(super) fn give_back_left(&self) {
        for (address, size) in self.left.take() {
            drop(Memory { card: self, address, size });
        }
        self.give_back_pinned();
    }
}

impl Drop for Card<'_> {
    fn drop(&mut self) {
        // Launches may be under way. A card that failed runs nothing any more.
        let _ = self.finish();
        let functions = self.functions();
        if !self.module.is_null() {
            // SAFETY: the module was loaded, and nothing of it runs.
            let _ = unsafe { (functions.module_unload)(self.module) };
        }
        if !self.stream.is_null() {
            // SAFETY: the stream was created here.
            let _ = unsafe { (functions.stream_destroy)(self.stream) };
        }
        // SAFETY: the context was retained once, in `open`.
        let _ = unsafe { (functions.context_release)(self.device) };
        // Another context may come to lie where this one was.
        CURRENT.set(ptr::null_mut());
    }
}

/// Memory of a card; zeroed and given back when dropped.
pub struct Memory<'c> {
    pub(super) card: &'c Card<'c>,
    address: u64,
    size: usize,
}

impl fmt::Debug for Memory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Memory<'_> {
    /// Returns where it lies, for arguments of kernels.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Returns its bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    pub(super) fn part(&self, at: usize, len: usize) -> Result<u64, CudaError> {
        let fits = at.checked_add(len).is_some_and(|end| end <= self.size);
        if fits { Ok(self.address + at as u64) } else { Err(CudaError::OutOfBounds) }
    }

    /// Sets all bytes.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    pub fn fill(&mut self, byte: u8) -> Result<(), CudaError> {
        let (memset, size) = (self.card.functions().memset_d8, self.size.max(1));
        // SAFETY: the whole allocation is this value's; it has a byte at least.
        let code = unsafe { memset(self.address, byte, size, self.card.stream) };
        check("cuMemsetD8Async", code)
    }

    /// Copies bytes to the card and waits for them.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfBounds`] if they do not fit.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), CudaError> {
        self.card.refuse_while_recording()?;
        let to = self.part(at, bytes.len())?;
        let (copy, from) = (self.card.functions().copy_to_device, bytes.as_ptr().cast());
        // SAFETY: both sides have so many bytes, and `finish` waits for the copy.
        let code = unsafe { copy(to, from, bytes.len(), self.card.stream) };
        check("cuMemcpyHtoDAsync", code)?;
        self.card.finish()
    }

    /// Copies bytes from the card, after all that was asked for before.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfBounds`] if there are not so many.
    pub fn read(&self, at: usize, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.card.refuse_while_recording()?;
        let from = self.part(at, bytes.len())?;
        let (copy, to) = (self.card.functions().copy_to_host, bytes.as_mut_ptr().cast());
        // SAFETY: both sides have so many bytes, and `finish` waits for the copy.
        let code = unsafe { copy(to, from, bytes.len(), self.card.stream) };
        check("cuMemcpyDtoHAsync", code)?;
        self.card.finish()
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        if self.card.is_recording.get() {
            self.card.left.borrow_mut().push((self.address, self.size));
            return;
        }
        // A card that failed cannot be erased; the driver gives its memory to nobody unerased.
        let _ = self.fill(0);
        let _ = self.card.finish();
        self.card.given_back.set(self.card.given_back.get() + 1);
        // SAFETY: the allocation is this value's, and nothing that was launched runs any more.
        let _ = unsafe { (self.card.functions().mem_free)(self.address) };
    }
}
