//! NVIDIA's driver, found at run time: nothing is linked, and where it is missing an error says so.
//!
//! Source: CUDA Driver API Reference Manual, 13.0.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::Library;

use super::CudaError;

/// What the kernels' machine code needs, as `1000 * major + 10 * minor`: driver 580.
const VERSION_MIN: c_int = 13_000;
/// `CUDA_SUCCESS`.
const SUCCESS: c_int = 0;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(super) const OUT_OF_MEMORY: c_int = 2;
/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;
/// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`, `_INVALIDATED`.
const CAPTURE_ERRORS: [c_int; 2] = [900, 901];
/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
const MULTIPROCESSORS: c_int = 16;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`, `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];
/// Most bytes of a card's name.
const NAME_LEN: usize = 256;

/// A context, module, function, stream, graph, or event.
pub(super) type Handle = *mut c_void;

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($ty:ty),*);)*) => {
        /// The functions that are used, by their names in the manual.
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($ty),*) -> c_int,)*
            /// Keeps the functions where they are.
            _library: Library,
        }

        impl Functions {
            fn of(library: Library) -> Result<Self, CudaError> {
                $(
                    let symbol = concat!($symbol, "\0").as_bytes();
                    // SAFETY: the manual gives the function this signature.
                    let found = unsafe {
                        library.get::<unsafe extern "C" fn($($ty),*) -> c_int>(symbol)
                    };
                    let $name = *found.map_err(|_| CudaError::NoFunction($symbol))?;
                )*
                Ok(Self { $($name,)* _library: library })
            }
        }
    };
}

functions! {
    driver_get_version = "cuDriverGetVersion"(*mut c_int);
    init = "cuInit"(c_uint);
    device_get_count = "cuDeviceGetCount"(*mut c_int);
    device_get = "cuDeviceGet"(*mut c_int, c_int);
    device_get_name = "cuDeviceGetName"(*mut c_char, c_int, c_int);
    device_get_attribute = "cuDeviceGetAttribute"(*mut c_int, c_int, c_int);
    device_total_mem = "cuDeviceTotalMem_v2"(*mut usize, c_int);
    context_retain = "cuDevicePrimaryCtxRetain"(*mut Handle, c_int);
    context_release = "cuDevicePrimaryCtxRelease_v2"(c_int);
    context_set_current = "cuCtxSetCurrent"(Handle);
    mem_get_info = "cuMemGetInfo_v2"(*mut usize, *mut usize);
    mem_alloc = "cuMemAlloc_v2"(*mut u64, usize);
    mem_free = "cuMemFree_v2"(u64);
    memset_d8 = "cuMemsetD8Async"(u64, u8, usize, Handle);
    copy_to_device = "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, Handle);
    copy_to_host = "cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, Handle);
    stream_create = "cuStreamCreate"(*mut Handle, c_uint);
    stream_destroy = "cuStreamDestroy_v2"(Handle);
    stream_synchronize = "cuStreamSynchronize"(Handle);
    stream_begin_capture = "cuStreamBeginCapture_v2"(Handle, c_uint);
    stream_end_capture = "cuStreamEndCapture"(Handle, *mut Handle);
    graph_instantiate = "cuGraphInstantiateWithFlags"(*mut Handle, Handle, u64);
    graph_upload = "cuGraphUpload"(Handle, Handle);
    graph_launch = "cuGraphLaunch"(Handle, Handle);
    graph_exec_destroy = "cuGraphExecDestroy"(Handle);
    graph_destroy = "cuGraphDestroy"(Handle);
    host_alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost"(*mut c_void);
    event_create = "cuEventCreate"(*mut Handle, c_uint);
    event_record = "cuEventRecord"(Handle, Handle);
    event_synchronize = "cuEventSynchronize"(Handle);
    event_elapsed = "cuEventElapsedTime_v2"(*mut f32, Handle, Handle);
    event_destroy = "cuEventDestroy_v2"(Handle);
    module_load_data = "cuModuleLoadData"(*mut Handle, *const c_void);
    module_unload = "cuModuleUnload"(Handle);
    module_get_function = "cuModuleGetFunction"(*mut Handle, Handle, *const c_char);
    function_load = "cuFuncLoad"(Handle);
    function_set_attribute = "cuFuncSetAttribute"(Handle, c_int, c_int);
    function_get_param = "cuFuncGetParamInfo"(Handle, usize, *mut usize, *mut usize);
    launch_kernel = "cuLaunchKernel"(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void,
        *mut *mut c_void
    );
}

/// Turns a result of a function into an error.
pub(super) fn check(name: &'static str, code: c_int) -> Result<(), CudaError> {
    match code {
        SUCCESS => Ok(()),
        _ if CAPTURE_ERRORS.contains(&code) => Err(CudaError::WhileRecording),
        _ => Err(CudaError::Failed(name, code)),
    }
}

/// The driver.
pub struct Driver {
    pub(super) functions: Functions,
}

/// A card, as the driver tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub capability: (i32, i32),
    /// Its multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of its memory.
    pub memory: usize,
    pub(super) handle: c_int,
}

impl Driver {
    /// Loads and starts the driver.
    ///
    /// # Errors
    ///
    /// Says whether the driver is missing, too old, or finds no card.
    pub fn load() -> Result<Self, CudaError> {
        // SAFETY: loading NVIDIA's library runs its initialisers, which ask nothing of the caller.
        let library = unsafe { Library::new("libcuda.so.1") };
        let functions = Functions::of(library.map_err(|_| CudaError::NoDriver)?)?;
        let mut found = 0;
        // SAFETY: `found` is an integer that may be written.
        let code = unsafe { (functions.driver_get_version)(&raw mut found) };
        check("cuDriverGetVersion", code)?;
        if found < VERSION_MIN {
            return Err(CudaError::OldDriver { found, needed: VERSION_MIN });
        }
        // SAFETY: the flags must be 0.
        let code = unsafe { (functions.init)(0) };
        if code == NO_DEVICE {
            return Err(CudaError::NoDevice);
        }
        check("cuInit", code)?;
        Ok(Self { functions })
    }

    /// Returns the cards.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoDevice`] if there is none.
    pub fn devices(&self) -> Result<Vec<Device>, CudaError> {
        let mut count = 0;
        // SAFETY: `count` is an integer that may be written.
        let code = unsafe { (self.functions.device_get_count)(&raw mut count) };
        check("cuDeviceGetCount", code)?;
        if count == 0 {
            return Err(CudaError::NoDevice);
        }
        (0..count).map(|number| self.device(number)).collect()
    }

    fn device(&self, number: c_int) -> Result<Device, CudaError> {
        let mut handle = 0;
        // SAFETY: `handle` is an integer that may be written.
        let code = unsafe { (self.functions.device_get)(&raw mut handle, number) };
        check("cuDeviceGet", code)?;
        let mut name = [0_u8; NAME_LEN];
        let (text, len) = (name.as_mut_ptr().cast::<c_char>(), NAME_LEN as c_int);
        // SAFETY: `text` has room for `len` bytes.
        let code = unsafe { (self.functions.device_get_name)(text, len, handle) };
        check("cuDeviceGetName", code)?;
        let mut memory = 0;
        // SAFETY: `memory` is an integer that may be written.
        let code = unsafe { (self.functions.device_total_mem)(&raw mut memory, handle) };
        check("cuDeviceTotalMem", code)?;
        let name =
            CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned());
        Ok(Device {
            number: number.unsigned_abs() as usize,
            name: name.unwrap_or_default(),
            capability: (
                self.attribute(CAPABILITY[0], handle)?,
                self.attribute(CAPABILITY[1], handle)?,
            ),
            multiprocessors: self.attribute(MULTIPROCESSORS, handle)?,
            memory,
            handle,
        })
    }

    fn attribute(&self, attribute: c_int, device: c_int) -> Result<c_int, CudaError> {
        let mut value = 0;
        // SAFETY: `value` is an integer that may be written.
        let code =
            unsafe { (self.functions.device_get_attribute)(&raw mut value, attribute, device) };
        check("cuDeviceGetAttribute", code)?;
        Ok(value)
    }
}
