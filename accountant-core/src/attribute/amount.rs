//! Signed amounts of packets and bytes: what equations are made of before they are believed.

use super::bounds::UNBOUNDED;
use crate::Counter;
use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign, Sub, SubAssign};

/// Packets and bytes, signed: a difference of counters that were read at different instants can be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Amount {
    pub(crate) packets: i128,
    pub(crate) bytes: i128,
}

/// The two things that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Packets,
    Bytes,
}

impl Unit {
    pub(crate) const BOTH: [Self; 2] = [Self::Packets, Self::Bytes];
}

impl Amount {
    pub(crate) const ZERO: Self = Self { packets: 0, bytes: 0 };
    /// More than any counter can tell.
    pub(crate) const UNBOUNDED: Self = Self { packets: UNBOUNDED, bytes: UNBOUNDED };

    pub(crate) fn get(self, unit: Unit) -> i128 {
        match unit {
            Unit::Packets => self.packets,
            Unit::Bytes => self.bytes,
        }
    }

    pub(crate) fn get_mut(&mut self, unit: Unit) -> &mut i128 {
        match unit {
            Unit::Packets => &mut self.packets,
            Unit::Bytes => &mut self.bytes,
        }
    }

    pub(crate) fn min(self, other: Self) -> Self {
        Self { packets: self.packets.min(other.packets), bytes: self.bytes.min(other.bytes) }
    }

    pub(crate) fn max(self, other: Self) -> Self {
        Self { packets: self.packets.max(other.packets), bytes: self.bytes.max(other.bytes) }
    }

    /// Whether neither part is more than in the other.
    pub(crate) fn is_within(self, other: Self) -> bool {
        self.packets <= other.packets && self.bytes <= other.bytes
    }

    /// Each part, but not less than nothing.
    pub(crate) fn at_least_zero(self) -> Self {
        self.max(Self::ZERO)
    }

    /// What is positive of it, as a counter.
    pub(crate) fn positive(self) -> Counter {
        let part = |value: i128| u64::try_from(value.max(0)).unwrap_or(u64::MAX);
        Counter { packets: part(self.packets), bytes: part(self.bytes) }
    }

    /// Whether it tells anything at all.
    pub(crate) fn is_bounded(self) -> bool {
        self.packets < UNBOUNDED && self.bytes < UNBOUNDED
    }

    pub(crate) fn any_positive(self) -> bool {
        self.packets > 0 || self.bytes > 0
    }
}

impl std::iter::Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

impl From<Counter> for Amount {
    fn from(counter: Counter) -> Self {
        Self { packets: counter.packets.into(), bytes: counter.bytes.into() }
    }
}

impl Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

impl Sub for Amount {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { packets: self.packets - other.packets, bytes: self.bytes - other.bytes }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Amount {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}
