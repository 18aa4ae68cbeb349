//! The kernel function `bpf_rdonly_cast` (Linux 6.2), which lets programs read memory without a call.
//!
//! aya does not resolve calls of kernel functions. Programs have a number there that no function has, and it is exchanged in
//! the object before aya parses it.

use super::btf::{Btf, Kind};
use accountant_abi::CAST;

/// `BPF_JMP | BPF_CALL`, and what in its source register makes it a call of a kernel function.
const CALL: u8 = 0x85;
const KERNEL_FUNCTION: u8 = 2 << 4;

/// What programs need to call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cast {
    /// The number of the function.
    function: u32,
    /// The number of a type of two words (`timespec64`).
    pub(crate) two_words: u32,
}

impl Cast {
    /// None in kernels that do not have it.
    pub(crate) fn look(types: &Btf<'_>) -> Option<Self> {
        let function = types.number(Kind::Function, "bpf_rdonly_cast")?;
        Some(Self { function, two_words: types.number(Kind::Struct, "timespec64")? })
    }
}

/// The object with that function's number where it is called, or zero if there is none: then the calls must never be reached.
pub(crate) fn put_into(object: &[u8], cast: Option<Cast>) -> Vec<u8> {
    let call = |source: u8, number: u32| {
        let [a, b, c, d] = number.to_ne_bytes();
        [CALL, source, 0, 0, a, b, c, d]
    };
    let (stands, number) = (call(0, CAST), call(KERNEL_FUNCTION, cast.map_or(0, |cast| cast.function)));
    let mut object = object.to_vec();
    // Instructions are aligned in the file.
    for instruction in object.chunks_exact_mut(stands.len()).filter(|instruction| **instruction == stands) {
        instruction.copy_from_slice(&number);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_get_the_number_of_the_function() {
        let mut object = vec![0; 8];
        object.extend([CALL, 0, 0, 0]);
        object.extend(CAST.to_ne_bytes());
        // Another call: of a helper.
        object.extend([CALL, 0, 0, 0, 113, 0, 0, 0]);
        let with = put_into(&object, Some(Cast { function: 0x0102_0304, two_words: 7 }));
        let number = 0x0102_0304_u32.to_ne_bytes();
        assert_eq!(with[8..16], [&[CALL, 0x20, 0, 0], &number[..]].concat());
        assert_eq!((&with[..8], &with[16..]), (&object[..8], &object[16..]));
        assert_eq!(put_into(&object, None)[8..16], [CALL, 0x20, 0, 0, 0, 0, 0, 0]);
    }
}
