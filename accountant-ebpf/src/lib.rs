//! What several of the programs have in common: reading kernel memory, the way to a table of iptables-legacy, and what
//! every object has to have.
//!
//! Invariant: only reads, and what is gone gives nothing instead of a fault.

#![no_std]

pub mod memory;
pub mod xt_table;

/// What each object has beside its programs: its licence, and an answer to panics. Once a binary.
#[macro_export]
macro_rules! licensed_object {
    () => {
        /// Programs cannot panic; the compiler wants to hear it.
        #[cfg(not(test))]
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            loop {}
        }

        /// Both licences: the kernel lends some functions to GPL programs only.
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "license")]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}
