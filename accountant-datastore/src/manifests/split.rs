//! Cuts a file into its YAML documents.
//!
//! In go bytes; out come pieces with the number of the line each begins at. A line that is `---`, or begins with `---`
//! and a blank, can stand inside no YAML value, so one broken document never spoils the next.

/// A document's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// How many lines of the file are before it.
    pub(super) lines_before: u64,
    /// Its text; a marker with nothing behind it is left out.
    pub(super) bytes: &'a [u8],
}

impl<'a> Piece<'a> {
    /// The line of the file that the document's content begins at; nothing if there is none but blanks, comments and
    /// directives.
    pub(super) fn first_line(&self) -> Option<u64> {
        let content = |line: &[u8]| !matches!(line.trim_ascii().first(), None | Some(b'#' | b'%'));
        let skipped = lines(self.bytes).position(content)?;
        Some(self.lines_before + skipped as u64 + 1)
    }

    fn without_bare_marker(self) -> Self {
        match lines(self.bytes).next() {
            Some(line) if line.trim_ascii_end() == MARKER => {
                Piece { lines_before: self.lines_before + 1, bytes: self.bytes.split_at(line.len()).1 }
            }
            _ => self,
        }
    }
}

const MARKER: &[u8] = b"---";

/// The documents of a file, empty ones included.
pub(super) fn split(file: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    let mut lines_before = 0;
    std::iter::from_fn(move || {
        let (length, line_count) = up_to_next_marker(rest)?;
        let (bytes, behind) = rest.split_at(length);
        let piece = Piece { lines_before, bytes }.without_bare_marker();
        rest = behind;
        lines_before += line_count;
        Some(piece)
    })
}

/// How many bytes and lines there are before the next marker; one at the very beginning opens the document.
fn up_to_next_marker(bytes: &[u8]) -> Option<(usize, u64)> {
    let mut length = 0;
    let mut line_count = 0;
    for line in lines(bytes) {
        if length > 0 && is_marker(line) {
            break;
        }
        length += line.len();
        line_count += 1;
    }
    (length > 0).then_some((length, line_count))
}

fn is_marker(line: &[u8]) -> bool {
    line.strip_prefix(MARKER).is_some_and(|behind| behind.first().is_none_or(u8::is_ascii_whitespace))
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each document as the line of its content and its text.
    #[track_caller]
    fn check(file: &str, want: &[(u64, &str)]) {
        let found: Vec<_> = split(file.as_bytes())
            .filter_map(|piece| Some((piece.first_line()?, std::str::from_utf8(piece.bytes).expect("text"))))
            .collect();
        assert_eq!(found, want, "{file:?}");
    }

    #[test]
    fn documents_begin_at_markers() {
        check("", &[]);
        check("a", &[(1, "a")]);
        check("a\n---\nb\n", &[(1, "a\n"), (3, "b\n")]);
        check("---\na\n---\n---\nb", &[(2, "a\n"), (5, "b")]);
        check("---\r\na\r\n---\r\nb", &[(2, "a\r\n"), (4, "b")]);
        check("--- a\n--- \nb", &[(1, "--- a\n"), (3, "b")]);
        check("\u{feff}---\na", &[(2, "a")]);
    }

    #[test]
    fn what_only_looks_like_a_marker_is_text() {
        check("a: |\n  ---\n  b", &[(1, "a: |\n  ---\n  b")]);
        check("----\n---a\n", &[(1, "----\n---a\n")]);
    }

    #[test]
    fn documents_without_content_do_not_count() {
        check("# a\n\n---\n\n# b\nc\n---\n  \n", &[(6, "\n# b\nc\n")]);
        check("%YAML 1.2\n---\na\n...\n", &[(3, "a\n...\n")]);
    }
}
