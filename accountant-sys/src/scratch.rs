//! Memory for answers of the kernel that are big and looked at once: given back in between, so that an agent that reads
//! megabytes every ten seconds does not hold them all the time.
//!
//! An anonymous mapping (`mmap(2)`), because an allocator keeps what was freed; of huge pages where the kernel gives them
//! on request (`madvise(2)`), which makes it cheap to have the memory anew each time.
//!
//! Invariant: `start` is the beginning of a mapping of `capacity` readable and writable bytes of ours, or there is none and
//! both lengths are zero; `length` is at most `capacity`. Anonymous memory comes zeroed, so all of it is initialised.

use std::{io, ptr, slice};

/// Mappings are whole huge pages (2 MiB on x86-64 and with 4 KiB pages on arm64).
const UNIT: usize = 2 << 20;

/// A buffer that can be given back to the kernel.
#[derive(Debug)]
pub struct Scratch {
    start: *mut u8,
    capacity: usize,
    length: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached through it only.
unsafe impl Send for Scratch {}

impl Default for Scratch {
    fn default() -> Self {
        Self { start: ptr::null_mut(), capacity: 0, length: 0 }
    }
}

impl Scratch {
    /// Makes it so long. What it holds is zeroes, or what was in there before.
    pub fn resize(&mut self, length: usize) -> io::Result<()> {
        if length > self.capacity {
            self.release();
            let capacity = length.checked_next_multiple_of(UNIT).ok_or(io::ErrorKind::OutOfMemory)?;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new anonymous mapping, wherever the kernel likes; it replaces none.
            let start = unsafe { libc::mmap(ptr::null_mut(), capacity, protection, flags, -1, 0) };
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the mapping is ours and of that length; this is advice, and whether it is taken does not matter.
            unsafe { libc::madvise(start, capacity, libc::MADV_HUGEPAGE) };
            (self.start, self.capacity) = (start.cast(), capacity);
        }
        self.length = length;
        Ok(())
    }

    /// How much memory it has, whatever it holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: `length` bytes from `start` on are mapped and initialised, and borrowed with `self`.
        unsafe { slice::from_raw_parts(self.start, self.length) }
    }

    /// What it holds, to be written to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        if self.length == 0 {
            return &mut [];
        }
        // SAFETY: as in `bytes`, and the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.start, self.length) }
    }

    /// Gives all memory back to the kernel; it is empty then.
    pub fn release(&mut self) {
        if self.capacity > 0 {
            // SAFETY: the mapping is ours and of that length, and no slice of it is borrowed any more.
            unsafe { libc::munmap(self.start.cast(), self.capacity) };
        }
        (self.start, self.capacity, self.length) = (ptr::null_mut(), 0, 0);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_is_written_until_it_is_released() {
        let mut scratch = Scratch::default();
        assert_eq!(scratch.bytes(), &[] as &[u8]);
        assert_eq!(scratch.bytes_mut(), &mut [] as &mut [u8]);
        scratch.resize(5).unwrap();
        scratch.bytes_mut().copy_from_slice(b"hello");
        scratch.resize(2).unwrap();
        assert_eq!(scratch.bytes(), b"he");
        scratch.resize(UNIT + 1).unwrap();
        assert_eq!(scratch.bytes().len(), UNIT + 1);
        scratch.bytes_mut()[UNIT] = 7;
        scratch.release();
        assert!(scratch.bytes().is_empty() && scratch.capacity() == 0);
        scratch.resize(UNIT + 1).unwrap();
        assert_eq!(scratch.bytes()[UNIT], 0, "it is fresh memory");
    }

    #[test]
    fn more_than_there_can_be_is_refused() {
        let mut scratch = Scratch::default();
        assert!(scratch.resize(usize::MAX).is_err());
        assert!(scratch.resize(1 << 60).is_err());
        assert!(scratch.bytes().is_empty());
        scratch.resize(1).unwrap();
        assert_eq!(scratch.bytes(), [0]);
    }
}
