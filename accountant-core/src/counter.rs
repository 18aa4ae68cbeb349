//! A pair of packets and bytes, as every rule counter is.
//!
//! Invariant: adding saturates and never wraps, so a balance that is near the limit stays there instead of
//! falling to zero.

use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign};

/// Packets and bytes. Bytes are what the rule's counter counts: the length of the IP packet from its IP
/// header on (`skb->len` in the netfilter hooks), without the link layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Counter {
    /// Number of packets.
    pub packets: u64,
    /// Sum of their lengths in bytes.
    pub bytes: u64,
}

impl Counter {
    /// Nothing counted.
    pub const ZERO: Self = Self { packets: 0, bytes: 0 };

    /// A counter of so many packets and bytes.
    pub const fn new(packets: u64, bytes: u64) -> Self {
        Self { packets, bytes }
    }

    /// Whether neither a packet nor a byte was counted.
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// Whether either part is lower than in `before`, wrap-around of a 64-bit counter apart.
    pub fn fell_below(self, before: Self) -> bool {
        fell(before.packets, self.packets) || fell(before.bytes, self.bytes)
    }

    /// Whether no packets can have made `before` this: a part fell, or only one of them rose.
    pub fn cannot_follow(self, before: Self) -> bool {
        self.fell_below(before) || (self.packets == before.packets) != (self.bytes == before.bytes)
    }

    /// What was counted since `before`, each part modulo 2^64. Meaningful only where nothing fell.
    pub fn since(self, before: Self) -> Self {
        Self {
            packets: self.packets.wrapping_sub(before.packets),
            bytes: self.bytes.wrapping_sub(before.bytes),
        }
    }
}

/// Whether a kernel counter went backwards. A step down of more than half the range is a wrap-around.
fn fell(before: u64, now: u64) -> bool {
    now < before && before - now < 1 << 63
}

impl Add for Counter {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

impl AddAssign for Counter {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Counter {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrap_around_is_not_a_fall() {
        let before = Counter::new(u64::MAX - 1, 10);
        let now = Counter::new(3, 10);
        assert!(!now.fell_below(before));
        assert_eq!(now.since(before), Counter::new(5, 0));
    }

    #[test]
    fn a_fall_of_either_part_is_a_fall() {
        assert!(Counter::new(1, 9).fell_below(Counter::new(1, 10)));
        assert!(Counter::new(0, 10).fell_below(Counter::new(1, 10)));
        assert!(!Counter::new(1, 10).fell_below(Counter::new(1, 10)));
    }

    #[test]
    fn packets_have_bytes() {
        let before = Counter::new(1, 100);
        assert!(Counter::new(1, 120).cannot_follow(before));
        assert!(Counter::new(2, 100).cannot_follow(before));
        assert!(Counter::new(1, 90).cannot_follow(before));
        assert!(!Counter::new(2, 120).cannot_follow(before));
        assert!(!before.cannot_follow(before));
    }

    #[test]
    fn a_full_balance_stays_full() {
        assert_eq!(Counter::new(u64::MAX, 1) + Counter::new(1, 1), Counter::new(u64::MAX, 2));
    }
}
