//! Which instruction set the kernels may use.

use core::fmt;

/// An instruction set, chosen once when the engine starts.
///
/// Variants other than `Reference` hold a proof that the CPU has the features,
/// so a kernel that takes the proof is out of reach on a CPU that lacks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust; runs everywhere.
    Reference,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2Fma),
    /// AVX2 and the dot product of bytes of AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx2Vnni),
    /// AVX-512 with byte operations and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512Vnni),
    /// AVX-512, and products of bytes on the tiles of AMX.
    #[cfg(target_arch = "x86_64")]
    Amx(AmxInt8),
    /// NEON, with bytes multiplied in 16 bits.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// NEON and its dot product of bytes.
    #[cfg(target_arch = "aarch64")]
    Dotprod(NeonDotprod),
}

/// Why an instruction set cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsaError {
    /// No instruction set has this name.
    Unknown,
    /// This CPU lacks it.
    Unavailable(&'static str),
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => write!(f, "unknown instruction set; known: {}", Isa::NAMES.join(", ")),
            Self::Unavailable(name) => write!(f, "this CPU lacks the instruction set {name}"),
        }
    }
}

impl core::error::Error for IsaError {}

impl Isa {
    /// The names that [`Isa::by_name`] knows, slowest first.
    pub const NAMES: [&'static str; 7] =
        ["reference", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod"];

    /// Returns the fastest instruction set of this CPU.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Reference)
    }

    /// Returns every instruction set of this CPU, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::NAMES.iter().filter_map(|name| Self::by_name(name).ok()).collect()
    }

    /// Returns the instruction set of that name.
    ///
    /// # Errors
    ///
    /// Fails if the name is unknown or this CPU lacks it.
    pub fn by_name(name: &str) -> Result<Self, IsaError> {
        match name {
            "reference" => Ok(Self::Reference),
            #[cfg(target_arch = "x86_64")]
            "avx2" => Avx2Fma::detect().map(Self::Avx2).ok_or(IsaError::Unavailable("avx2")),
            #[cfg(target_arch = "x86_64")]
            "avxvnni" => {
                Avx2Vnni::detect().map(Self::AvxVnni).ok_or(IsaError::Unavailable("avxvnni"))
            }
            #[cfg(target_arch = "x86_64")]
            "avx512" => {
                Avx512Vnni::detect().map(Self::Avx512).ok_or(IsaError::Unavailable("avx512"))
            }
            #[cfg(target_arch = "x86_64")]
            "amx" => AmxInt8::detect().map(Self::Amx).ok_or(IsaError::Unavailable("amx")),
            #[cfg(target_arch = "aarch64")]
            "neon" => Neon::detect().map(Self::Neon).ok_or(IsaError::Unavailable("neon")),
            #[cfg(target_arch = "aarch64")]
            "dotprod" => {
                NeonDotprod::detect().map(Self::Dotprod).ok_or(IsaError::Unavailable("dotprod"))
            }
            // The sets of other architectures.
            _ => match Self::NAMES.iter().find(|known| **known == name) {
                Some(known) => Err(IsaError::Unavailable(known)),
                None => Err(IsaError::Unknown),
            },
        }
    }

    /// Returns the instruction set of this CPU with the widest vectors: what [`crate::limits::int8_peak`] of
    /// kernels is held against, also where tiles could do more.
    #[must_use]
    pub fn widest_vectors() -> Self {
        let mut sets = Self::available().into_iter().rev();
        sets.find(|isa| !isa.has_tiles()).unwrap_or(Self::Reference)
    }

    /// Returns whether some products are made on tiles, not with vectors.
    #[must_use]
    pub fn has_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if matches!(self, Self::Amx(_)) {
            return true;
        }
        false
    }

    /// Returns the name, as [`Isa::by_name`] takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => "amx",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Self::Dotprod(_) => "dotprod",
        }
    }
}

/// Proof that the CPU has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2Fma(());

#[cfg(target_arch = "x86_64")]
impl Avx2Fma {
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Self(()))
    }
}

/// Proof that the CPU has AVX-VNNI, and all that [`Avx2Fma`] proves.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2Vnni(Avx2Fma);

#[cfg(target_arch = "x86_64")]
impl Avx2Vnni {
    fn detect() -> Option<Self> {
        let avx2 = Avx2Fma::detect()?;
        is_x86_feature_detected!("avxvnni").then_some(Self(avx2))
    }

    /// Returns the lesser proof.
    pub(crate) fn avx2(self) -> Avx2Fma {
        self.0
    }
}

/// Proof that the CPU has AVX-512 F, BW, VL, DQ and VNNI, and all that [`Avx2Fma`] proves.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Vnni(());

#[cfg(target_arch = "x86_64")]
impl Avx512Vnni {
    fn detect() -> Option<Self> {
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        (wide && Avx2Fma::detect().is_some()).then_some(Self(()))
    }
}

/// Proof that the CPU has AMX with bytes, that the kernel lets this process use it, and of all that
/// [`Avx512Vnni`] proves.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AmxInt8(Avx512Vnni);

#[cfg(target_arch = "x86_64")]
impl AmxInt8 {
    /// Asks the kernel for leave the first time, with a system call that a filter must let through.
    fn detect() -> Option<Self> {
        static FOUND: std::sync::OnceLock<Option<AmxInt8>> = std::sync::OnceLock::new();
        *FOUND.get_or_init(|| {
            let avx512 = Avx512Vnni::detect()?;
            // Tiles and their products of bytes, by Intel's manual.
            let has_tiles = core::arch::x86_64::__cpuid_count(7, 0).edx >> 24 & 3 == 3;
            (has_tiles && crate::amx::is_permitted()).then_some(Self(avx512))
        })
    }

    /// Returns the lesser proof.
    pub(crate) fn avx512(self) -> Avx512Vnni {
        self.0
    }
}

/// Proof that the CPU has NEON.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neon(());

#[cfg(target_arch = "aarch64")]
impl Neon {
    fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// Proof that the CPU has the dot product of bytes, and all that [`Neon`] proves.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeonDotprod(Neon);

#[cfg(target_arch = "aarch64")]
impl NeonDotprod {
    fn detect() -> Option<Self> {
        let neon = Neon::detect()?;
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(neon))
    }

    /// Returns the lesser proof.
    pub(crate) fn neon(self) -> Neon {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::print_stdout, reason = "a run on another CPU is held to what it found")]
    fn every_available_set_is_found_by_its_name() {
        let available = Isa::available();
        let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
        println!("instruction sets: {}", names.join(", "));
        assert_eq!(available[0], Isa::Reference);
        assert_eq!(available.last(), Some(&Isa::detect()));
        for isa in available {
            assert_eq!(Isa::by_name(isa.name()), Ok(isa));
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert_eq!(Isa::by_name("sse9"), Err(IsaError::Unknown));
        assert_eq!(Isa::by_name(""), Err(IsaError::Unknown));
    }

    #[test]
    fn a_known_name_is_found_or_said_to_be_missing() {
        for name in Isa::NAMES {
            match Isa::by_name(name) {
                Ok(isa) => assert_eq!(isa.name(), name),
                Err(error) => assert_eq!(error, IsaError::Unavailable(name)),
            }
        }
    }
}
