//! Netlink messages, one behind the other in a buffer.
//!
//! Source: `struct nlmsghdr` (`include/uapi/linux/netlink.h`), host byte order.
//!
//! Invariant: total; a message that does not fit ends the sequence with an error.

/// `NLMSG_ERROR`, also an acknowledgement when the code is zero.
pub(crate) const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
pub(crate) const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: the rules changed while they were dumped.
const DUMP_INTERRUPTED: u16 = 0x10;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// The kernel's answer to a request: zero or an error number.
    pub(crate) fn error_code(&self) -> i32 {
        let code = self.payload.get(..4).and_then(|bytes| bytes.try_into().ok());
        code.map_or(0, |bytes: [u8; 4]| -i32::from_ne_bytes(bytes))
    }

    /// Whether the dump that it belongs to is not of one piece.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.flags & DUMP_INTERRUPTED != 0
    }
}

/// A message that is cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a netlink message is cut short")]
pub(crate) struct CutShort;

const HEADER: usize = 16;

/// The messages of a buffer.
pub(crate) fn messages(buffer: &[u8]) -> impl Iterator<Item = Result<Message<'_>, CutShort>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = split(rest);
        rest = message.map_or(&[], |(_, rest)| rest);
        Some(message.map(|(message, _)| message).ok_or(CutShort))
    })
}

fn split(buffer: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(buffer.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(buffer.get(at..at + 4)?.try_into().ok()?));
    let length = u32_at(0)? as usize;
    let payload = buffer.get(HEADER..length)?;
    let message = Message { kind: u16_at(4)?, flags: u16_at(6)?, sequence: u32_at(8)?, payload };
    let next = length.next_multiple_of(4).min(buffer.len());
    Some((message, &buffer[next..]))
}

/// A request with its header.
pub(crate) fn request(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_follow_each_other_and_end_where_one_is_cut_short() {
        let mut buffer = request(7, 1, 9, &[1, 2, 3, 4, 5]);
        buffer.resize(24, 0);
        buffer.extend(request(8, 0x10, 10, &[]));
        let read: Vec<_> = messages(&buffer).collect();
        let first = Message { kind: 7, flags: 1, sequence: 9, payload: &[1, 2, 3, 4, 5] };
        assert_eq!(read[0], Ok(first));
        assert!(read[1].unwrap().is_interrupted());
        assert_eq!(read.len(), 2);
        buffer.truncate(30);
        assert_eq!(messages(&buffer).last(), Some(Err(CutShort)));
        assert_eq!(messages(&[0; 16]).last(), Some(Err(CutShort)), "a length of zero ends, it does not loop");
    }
}
