//! What an agent leaves to the next one of this boot: its books, in a file. So what policies decided goes on where it stood, also
//! what rules that are gone had counted, and traffic need not rest for it.
//!
//! ```text
//! "calico packet accountant: books 3\n"   the form of what follows
//! 32 bytes                                SHA-256 of the rest
//! postcard: Whose, Keeping                 which boot and network namespace it is of; the books
//! ```
//!
//! It is written beside and renamed, so that it is whole wherever the agent is killed. The kernel forgets its counters at the next
//! boot, and what was kept of them is of no use then.

use super::book::{Book, Charger};
use super::books::{Books, Place};
use super::overlap::Overlap;
use super::seen::Seen;
use accountant_core::attribute::Attributor;
use accountant_core::ledger::{Ledger, Posting};
use accountant_core::snapshot::TableId;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use thiserror::Error;

/// The first line: raise the number when anything that is kept changes its form.
const FORM: &[u8] = b"calico packet accountant: books 3\n";
/// How long one that waits sleeps.
const AGAIN: Duration = Duration::from_millis(50);
/// What is not renamed by then never will be.
const ABANDONED: Duration = Duration::from_secs(60);
/// How often it is written at most where nobody asks.
const SELDOM: Duration = Duration::from_secs(10);

/// Whose counters the books are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Whose {
    /// The kernel's identity of this boot.
    boot: String,
    /// The cookie of the network namespace.
    namespace: u64,
}

/// As it is written: the fields of [`Kept`].
#[derive(Serialize)]
struct Keeping<'a> {
    age: Duration,
    ledger: &'a Ledger,
    tables: Vec<(TableId, &'a Attributor, &'a [Posting])>,
    posting: &'a BTreeMap<Place, TableId>,
    overlaps: &'a BTreeMap<Place, Overlap>,
    seen: &'a Seen,
}

/// As it is read. What Calico's eBPF dataplane counts begins anew with each agent, so only its balances are kept.
#[derive(Deserialize)]
struct Kept {
    /// How long the agents before have run, together.
    age: Duration,
    ledger: Ledger,
    /// Tables, and what is not posted yet of them.
    tables: Vec<(TableId, Attributor, Vec<Posting>)>,
    posting: BTreeMap<Place, TableId>,
    overlaps: BTreeMap<Place, Overlap>,
    seen: Seen,
}

/// Why books cannot be kept, or cannot be gone on with.
#[derive(Debug, Error)]
pub enum CannotKeep {
    /// A file or folder.
    #[error("{doing} {path} failed: {error}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The books of another boot or network namespace.
    #[error("{path} is of another boot or network namespace")]
    Others {
        /// The file.
        path: String,
    },
    /// Not what this version of the agent writes.
    #[error("{path} is of another version of the agent, or damaged")]
    Form {
        /// The file.
        path: String,
    },
}

/// Where books are kept.
#[derive(Debug)]
pub struct Keeper {
    file: Option<PathBuf>,
    whose: Option<Whose>,
    /// Held by whose turn it is.
    turn: Option<Flock<File>>,
    written: Option<Instant>,
    /// Whether it was said that they cannot be kept.
    said: bool,
}

impl Keeper {
    /// Keeps nothing.
    pub fn none() -> Self {
        Self { file: None, whose: None, turn: None, written: None, said: false }
    }

    /// Keeps books in this folder, which is made if need be.
    pub fn new(folder: &Path) -> Result<Self, CannotKeep> {
        let failed = |doing, path: &Path| {
            let path = path.display().to_string();
            move |error| CannotKeep::File { doing, path, error }
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(failed("making", folder))?;
        let boot = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = fs::read_to_string(boot).map_err(failed("reading", boot))?;
        let namespace = accountant_sys::netns::cookie();
        let namespace = namespace.map_err(failed("asking for the network namespace's cookie for", folder))?;
        let whose = Whose { boot: boot.trim().into(), namespace };
        let file = folder.join(format!("books-{namespace}"));
        let keeper = Self { file: Some(file), whose: Some(whose), ..Self::none() };
        keeper.may_write()?;
        keeper.file.as_deref().map(tidy);
        Ok(keeper)
    }

    /// Waits until no other agent keeps books here: there is one book, and who goes on with it has to have its end. Meanwhile the other
    /// one counts, and serves.
    pub async fn its_turn(&mut self) -> Result<(), CannotKeep> {
        let Some(file) = self.file.as_deref().map(|file| file.with_extension("lock")) else { return Ok(()) };
        let failed = |doing| {
            let path = file.display().to_string();
            move |error| CannotKeep::File { doing, path, error }
        };
        let options = OpenOptions::new().create(true).append(true).open(&file);
        let mut lock = options.map_err(failed("opening"))?;
        let mut said = false;
        loop {
            lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
                Ok(turn) => {
                    self.turn = Some(turn);
                    return Ok(());
                }
                Err((lock, Errno::EAGAIN)) => lock,
                Err((_, error)) => return Err(failed("locking")(error.into())),
            };
            if !std::mem::replace(&mut said, true) {
                tracing::info!(file = %file.display(), "another agent counts here: this one waits for its end");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether a file could be written there.
    fn may_write(&self) -> Result<(), CannotKeep> {
        let Some(file) = &self.file else { return Ok(()) };
        let beside = beside(file);
        let failed = |doing| {
            let path = beside.display().to_string();
            move |error| CannotKeep::File { doing, path, error }
        };
        write(&beside, &[]).map_err(failed("writing"))?;
        fs::remove_file(&beside).map_err(failed("removing"))
    }

    /// Puts what an earlier agent kept into empty books; says how long agents have run by then.
    pub(super) fn restore(&self, books: &mut Books) -> Option<Duration> {
        let file = self.file.as_deref()?;
        let kept = match self.read(file) {
            Ok(kept) => kept?,
            Err(reason) => {
                tracing::warn!(%reason, "counts of an earlier agent are given up");
                return None;
            }
        };
        tracing::info!(file = %file.display(), "the counts of an earlier agent go on");
        let age = kept.age;
        books.go_on_with(kept);
        Some(age)
    }

    /// The kept books, if there are any.
    fn read(&self, file: &Path) -> Result<Option<Kept>, CannotKeep> {
        let path = file.display().to_string();
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CannotKeep::File { doing: "reading", path, error }),
        };
        let (whose, kept) = decode(&text).ok_or_else(|| CannotKeep::Form { path: path.clone() })?;
        match Some(&whose) == self.whose.as_ref() {
            true => Ok(Some(kept)),
            false => Err(CannotKeep::Others { path }),
        }
    }

    /// Whether it is time to keep them again.
    pub(super) fn is_due(&self) -> bool {
        self.file.is_none() || self.written.is_none_or(|written| written.elapsed() >= SELDOM)
    }

    /// Keeps the books as they stand.
    pub(super) fn keep(&mut self, books: &Books, age: Duration) {
        let (Some(file), Some(whose)) = (&self.file, &self.whose) else { return };
        let beside = beside(file);
        let written = encode(whose, &books.keeping(age)).and_then(|text| write(&beside, &text));
        match written.and_then(|()| fs::rename(&beside, file)) {
            Ok(()) => (self.written, self.said) = (Some(Instant::now()), false),
            Err(error) if !std::mem::replace(&mut self.said, true) => {
                tracing::warn!(file = %file.display(), %error, "counts cannot be kept for the next agent");
            }
            Err(_) => {}
        }
    }
}

/// Where it is written first. Another agent that begins or ends now, which can have the same process number in its own
/// namespace, does not write there.
fn beside(file: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    file.with_extension(format!("{}-{}", std::process::id(), now.subsec_nanos()))
}

/// For nobody else's eyes: among the numbers are addresses in the kernel.
fn write(file: &Path, text: &[u8]) -> io::Result<()> {
    OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(file)?.write_all(text)
}

/// Removes what agents had begun to write when they were killed.
fn tidy(file: &Path) {
    let (Some(folder), Some(stem)) = (file.parent(), file.file_name()) else { return };
    let begun = format!("{}.", stem.to_string_lossy());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_old = || {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED))
        };
        if entry.file_name().to_string_lossy().starts_with(&begun) && is_old() {
            // What stays is in the way of nothing.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn encode(whose: &Whose, books: &Keeping<'_>) -> io::Result<Vec<u8>> {
    let head = [FORM, &[0; 32]].concat();
    let mut text = postcard::to_extend(&(whose, books), head).map_err(io::Error::other)?;
    let (head, body) = text.split_at_mut(FORM.len() + 32);
    head[FORM.len()..].copy_from_slice(&Sha256::digest(body));
    Ok(text)
}

fn decode(text: &[u8]) -> Option<(Whose, Kept)> {
    let (digest, body) = text.strip_prefix(FORM)?.split_at_checked(32)?;
    (*digest == *Sha256::digest(body)).then(|| postcard::from_bytes(body).ok()).flatten()
}

impl Books {
    fn keeping(&self, age: Duration) -> Keeping<'_> {
        let tables = self.tables.iter().filter_map(|(id, book)| match &book.by {
            Charger::Rules(attributor) => Some((*id, &**attributor, &*book.held)),
            Charger::Verdicts(_) => None,
        });
        let Self { ledger, posting, overlaps, seen, .. } = self;
        Keeping { age, ledger, tables: tables.collect(), posting, overlaps, seen }
    }

    fn go_on_with(&mut self, kept: Kept) {
        let Kept { age: _, ledger, tables, posting, overlaps, seen } = kept;
        self.absent = tables.iter().map(|(id, ..)| *id).collect();
        self.tables = tables
            .into_iter()
            .map(|(id, attributor, held)| {
                (id, Book { by: Charger::Rules(Box::new(attributor)), held, unsettled: false })
            })
            .collect();
        (self.ledger, self.posting, self.overlaps, self.seen) = (ledger, posting, overlaps, seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use accountant_core::Counter;
    use accountant_core::ledger::{Cause, Key};
    use accountant_core::snapshot::Source;

    const KEY: Key = Key::Unattributed(Source::Nftables, Cause::History);

    fn books(packets: u64) -> Books {
        let mut books = Books::new(Duration::ZERO);
        books.ledger.post(Posting { key: KEY, amount: Counter::new(packets, 0) });
        books
    }

    fn restored(keeper: &Keeper) -> (Option<Duration>, Option<Counter>) {
        let mut books = Books::new(Duration::ZERO);
        let age = keeper.restore(&mut books);
        (age, books.ledger.balance(&KEY))
    }

    #[test]
    fn the_next_agent_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made");
        let mut keeper = Keeper::new(&folder).unwrap();
        assert_eq!(restored(&keeper), (None, None));
        let age = Duration::from_secs;
        for packets in [5, 7] {
            keeper.keep(&books(packets), age(packets));
            let next = Keeper::new(&folder).unwrap();
            assert_eq!(restored(&next), (Some(age(packets)), Some(Counter::new(packets, 0))));
        }
    }

    /// What an agent of this form left in a lab. Where this fails, the form is another one: raise its number in [`FORM`], and keep new
    /// books here.
    #[test]
    fn books_of_this_form_can_be_read() {
        let text = include_bytes!("../../../tests/fixtures/kept/books-3");
        let (whose, kept) = decode(text).unwrap();
        let mut books = Books::new(Duration::ZERO);
        let age = kept.age;
        books.go_on_with(kept);
        assert_eq!(books.absent.len(), 2, "IPv4 and IPv6");
        let packets: u64 = books.ledger.balances().iter().map(|balance| balance.packets).sum();
        assert_eq!(
            packets, 42,
            "of all accounts together, so those that the programs saw are in it once more"
        );
        assert_eq!(encode(&whose, &books.keeping(age)).unwrap().len(), text.len());
    }

    #[test]
    fn what_is_not_ones_own_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(folder.path()).unwrap();
        keeper.keep(&books(5), Duration::ZERO);
        let file = keeper.file.clone().unwrap();
        let whole = fs::read(&file).unwrap();
        let why = |keeper: &Keeper| keeper.read(&file).err().map(|reason| reason.to_string());
        assert_eq!(why(&keeper), None);

        let whose = Whose { namespace: 1, ..keeper.whose.clone().unwrap() };
        let other = Keeper { file: keeper.file.clone(), whose: Some(whose), ..Keeper::none() };
        assert!(why(&other).unwrap().contains("another boot or network namespace"));

        let mut bad: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
        bad.extend((0..whole.len()).map(|at| {
            let mut text = whole.clone();
            text[at] ^= 1;
            text
        }));
        bad.push([&whole[..], b"x"].concat());
        for text in bad {
            fs::write(&file, text).unwrap();
            assert!(why(&keeper).unwrap().contains("another version"));
        }
        assert_eq!(restored(&keeper), (None, None));

        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(why(&keeper).unwrap().contains("reading"));
        // What cannot be written is said, and no more than that.
        keeper.keep(&books(5), Duration::ZERO);
        assert!(keeper.said);
    }

    #[tokio::test]
    async fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let [mut first, mut second] = [(), ()].map(|()| Keeper::new(folder.path()).unwrap());
        first.its_turn().await.unwrap();
        let mut waiting = Box::pin(second.its_turn());
        assert!(tokio::time::timeout(3 * AGAIN, &mut waiting).await.is_err());
        drop(first);
        waiting.await.unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Keeper::new(&file.path().join("x")).unwrap_err().to_string();
        assert!(error.contains("making") && error.contains("/x"), "{error}");
    }
}
