//! The cards that a model may use, by the numbers of their device files. Whether they are there is not asked here.

use std::fmt;

use super::Fault;

/// Highest number of a card's device file.
const DEVICE_MAX: u16 = 255;
/// Most cards of a model.
pub(super) const DEVICES_COUNT_MAX: usize = 16;

/// Cards, by the numbers of their device files: one at least, each once, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Devices(Vec<u16>);

impl Devices {
    /// Takes numbers in any order.
    ///
    /// # Errors
    ///
    /// [`Fault::Range`] if a number is too high, [`Fault::Devices`] if there are none, too many or some twice.
    pub(crate) fn of(numbers: &[u32]) -> Result<Self, Fault> {
        if numbers.is_empty() || numbers.len() > DEVICES_COUNT_MAX {
            return Err(Fault::Devices);
        }
        let known = |number: &u32| u16::try_from(*number).ok().filter(|it| *it <= DEVICE_MAX);
        let all: Option<Vec<u16>> = numbers.iter().map(known).collect();
        let mut all = all.ok_or(Fault::Range(0..=DEVICE_MAX.into()))?;
        all.sort_unstable();
        match all.windows(2).any(|pair| pair[0] == pair[1]) {
            true => Err(Fault::Devices),
            false => Ok(Self(all)),
        }
    }

    /// Returns how many they are.
    pub fn count(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }

    /// Returns their numbers.
    pub fn numbers(&self) -> &[u16] {
        &self.0
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u16::to_string).collect();
        write!(f, "{} {}", if self.0.len() == 1 { "card" } else { "cards" }, numbers.join(", "))
    }
}
