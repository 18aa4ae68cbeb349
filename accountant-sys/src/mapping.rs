//! Values of a BPF array map as memory of ours: mmap(2) of a map that was made with `BPF_F_MMAPABLE` (Linux 5.5).
//!
//! The kernel's programs write while we may read, so the memory is a row of atomic words and never a reference to plain
//! data.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// A mapped map. The mapping keeps the map alive.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

impl Mapping {
    /// Maps so many 64-bit words of a map's values. They have to be all that the map has, or fewer.
    pub fn new(map: BorrowedFd<'_>, words: NonZeroUsize) -> io::Result<Self> {
        let length = words.get().checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping where the kernel likes, of a descriptor that is open; the kernel refuses a length that
        // the map has not.
        let start = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, words: words.get() })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has so many words, is aligned to a page and lives as long as `self`; atomics may change
        // under a shared reference.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * 8) };
    }
}

// SAFETY: the memory belongs to the process, not to a thread, and all access to it is atomic.
unsafe impl Send for Mapping {}
// SAFETY: the same.
unsafe impl Sync for Mapping {}
