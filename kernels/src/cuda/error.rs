//! Why a card cannot be used. Nothing here holds data of a model or a request.

use core::fmt;

/// Why a card cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaError {
    /// There is no `libcuda.so.1`.
    NoDriver,
    /// The driver is older than the kernels; versions as `1000 * major + 10 * minor`.
    OldDriver {
        /// What it implements.
        found: i32,
        /// What the kernels need.
        needed: i32,
    },
    /// The driver lacks a function.
    NoFunction(&'static str),
    /// The driver finds no card.
    NoDevice,
    /// No card has this number.
    UnknownDevice(usize),
    /// The card is older than the kernels; they need 8.0.
    OldDevice {
        /// Its compute capability.
        found: (i32, i32),
    },
    /// The card's memory is too small, or others use it.
    OutOfMemory {
        /// Bytes that were asked for.
        wanted: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// The host has no memory that the card may reach by itself.
    NoPinnedMemory {
        /// Bytes that were asked for.
        wanted: usize,
    },
    /// A graph is recorded: nothing runs, and nothing can be waited for or allocated.
    WhileRecording,
    /// What was recorded names memory that may have been given back.
    OutOfDate,
    /// There is no such kernel.
    UnknownKernel,
    /// A kernel takes other arguments.
    WrongArguments(&'static str),
    /// A copy beyond an allocation.
    OutOfBounds,
    /// A copy between one card and the memory that another pinned.
    OtherCard,
    /// A function of the driver failed with this number, `CUresult`.
    Failed(&'static str, i32),
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = |version: i32| (version / 1000, version % 1000 / 10);
        match *self {
            Self::NoDriver => write!(
                f,
                "no CUDA driver: libcuda.so.1 cannot be loaded; install NVIDIA's driver (580 or \
                 later), or set gpu_layers = 0"
            ),
            Self::OldDriver { found, needed } => {
                let (found, needed) = (version(found), version(needed));
                write!(
                    f,
                    "the CUDA driver implements {}.{}; {}.{} is needed: install driver 580 or later",
                    found.0, found.1, needed.0, needed.1
                )
            }
            Self::NoFunction(name) => {
                write!(f, "the CUDA driver lacks {name}: install driver 580 or later")
            }
            Self::NoDevice => write!(f, "the CUDA driver finds no card; see nvidia-smi"),
            Self::UnknownDevice(number) => {
                write!(f, "there is no card {number}; see nvidia-smi -L")
            }
            Self::OldDevice { found } => write!(
                f,
                "the card has compute capability {}.{}; 8.0 or later is needed",
                found.0, found.1
            ),
            Self::OutOfMemory { wanted, free } => write!(
                f,
                "the card has {free} bytes free, and {wanted} are needed: lower gpu_layers or \
                 context_len"
            ),
            Self::NoPinnedMemory { wanted } => write!(
                f,
                "the host has no {wanted} bytes of memory that the card can reach: free some, or \
                 lower the batch"
            ),
            Self::WhileRecording => {
                write!(
                    f,
                    "a graph is recorded: nothing can be waited for or allocated until its end"
                )
            }
            Self::OutOfDate => write!(f, "memory was given back since a graph was recorded"),
            Self::UnknownKernel => write!(f, "there is no such kernel"),
            Self::WrongArguments(name) => write!(f, "{name} takes other arguments"),
            Self::OutOfBounds => write!(f, "a copy beyond an allocation on the card"),
            Self::OtherCard => write!(f, "a copy of memory that was pinned for another card"),
            Self::Failed(name, code) => write!(f, "{name} failed: CUDA error {code}"),
        }
    }
}

impl core::error::Error for CudaError {}
