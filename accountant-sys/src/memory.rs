//! Memory that the process has and does not use.

/// Gives back to the kernel what the allocator keeps of what was freed (`malloc_trim(3)`). After a start that is megabytes:
/// the kernel's types were read, and programs loaded. It costs some milliseconds.
///
/// glibc has it; other C libraries give back by themselves, and then this does nothing.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function may be called at any time from any thread, and takes how much to keep.
    unsafe {
        libc::malloc_trim(0);
    }
}
