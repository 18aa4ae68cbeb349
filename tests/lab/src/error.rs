//! What can go wrong in the lab: one enum, each variant with what was tried, on what, and why it failed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// The result of anything in the lab.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something in the lab failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An external tool is not installed.
    #[error("`{tool}` is not installed here: `apt-get install {package}`")]
    MissingTool {
        /// The program.
        tool: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// An external tool said no.
    #[error("`{command}` failed with {status}: {stderr}{context}")]
    Tool {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
        /// The lines of its input that it complained about, if it named them.
        context: String,
    },
    /// The kernel or the file system said no.
    #[error("cannot {operation} {object}: {source}")]
    Io {
        /// The verb.
        operation: &'static str,
        /// What it was done to.
        object: String,
        /// The reason.
        source: io::Error,
    },
    /// A folder or file of captured rules has no name that tells what wrote it.
    #[error(
        "cannot tell what wrote {path}: the name should end in -legacy, -iptables-nft or -nft, or be a .nft.txt"
    )]
    UnknownCapture {
        /// The folder or file.
        path: PathBuf,
    },
    /// A listing of the kernel's rules does not have the rules that were written.
    #[error("chain {chain} has {found} rules in the kernel, but {expected} were written")]
    Drift {
        /// The chain.
        chain: String,
        /// What was written last.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// A text is not what it should be: a network, a port range, a name.
    #[error("{text:?} is not {expected}")]
    Syntax {
        /// The text.
        text: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// There is no such pod or policy in the model or on the node.
    #[error("there is no {kind} {name} here")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The agent does not do its work.
    #[error("the agent does not {doing}; its log:\n{log}")]
    Agent {
        /// What it should have done.
        doing: &'static str,
        /// What it wrote.
        log: String,
    },
}

impl Error {
    /// For `map_err` on an operation that the kernel or the file system refused.
    pub(crate) fn io(operation: &'static str, object: impl ToString) -> impl FnOnce(io::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Io { operation, object, source }
    }

    /// For `map_err` on a file operation.
    pub(crate) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(operation, path.display())
    }

    pub(crate) fn syntax(text: &str, expected: &'static str) -> Self {
        Self::Syntax { text: text.to_string(), expected }
    }

    pub(crate) fn unknown(kind: &'static str, name: impl ToString) -> Self {
        Self::Unknown { kind, name: name.to_string() }
    }
}
