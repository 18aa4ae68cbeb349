//! Who may ask: names and passwords of basic authentication, hashed with bcrypt.
//!
//! Checking costs processor time on purpose, so it is done on a thread of its own, one check at a time, and after a wrong
//! password four times as long is paused: whoever guesses gets a fifth of one processor at most. A password that was right
//! is known again by a salted digest, so scrapes neither pay nor queue. An unknown name costs as much as a wrong password, and
//! every wrong password as much as any other, also where hashes are of different costs: rounds are counted, and made up for.
//! bcrypt compares hashes in constant time.

use super::error::Error;
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Semaphore;

/// How many may wait for a check at the same time.
const WAITING: usize = 16;
/// How much longer than a check the pause after a wrong password is.
const PAUSE: u32 = 4;
/// How many right passwords are remembered.
const REMEMBERED: usize = 64;

/// What a request is told about its name and password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It may ask.
    Welcome,
    /// No, wrong, or unreadable name and password.
    Refused,
    /// Too many others are being checked.
    Busy,
}

/// A hash of bcrypt's, and the binary logarithm of how many rounds it takes.
#[derive(Clone, Default)]
struct Hash {
    text: String,
    cost: u32,
}

/// Bcrypt, and how many rounds it has computed.
#[derive(Default)]
struct Bcrypt(AtomicU64);

impl Bcrypt {
    /// Whether it is the password. If not, as many rounds were computed as a hash of the highest cost takes.
    fn verify(&self, password: &[u8], hash: &Hash, highest: u32) -> bool {
        self.0.fetch_add(1 << hash.cost, Ordering::Relaxed);
        if bcrypt::verify(password, &hash.text).unwrap_or(false) {
            return true;
        }
        // 2^c + 2^c + 2^(c+1) + … + 2^(highest-1) = 2^highest.
        for cost in hash.cost..highest {
            self.0.fetch_add(1 << cost, Ordering::Relaxed);
            // Nobody asks what comes out.
            let _ = std::hint::black_box(bcrypt::hash_with_salt(password, cost, [0; 16]));
        }
        false
    }
}

/// Names and hashes.
pub(super) struct Users {
    hashes: BTreeMap<String, Hash>,
    /// A hash of the highest cost, for names that are not known.
    dummy: Hash,
    salt: [u8; 32],
    bcrypt: Arc<Bcrypt>,
    known: Mutex<HashSet<[u8; 32]>>,
    waiting: Arc<Semaphore>,
    checking: Arc<Semaphore>,
}

impl Users {
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Result<Self, Error> {
        let with_cost = |(name, text): (String, String)| match cost(&text) {
            Some(cost) => Ok((name, Hash { text, cost })),
            None => Err(Error::Hash(name)),
        };
        let hashes = hashes.into_iter().map(with_cost).collect::<Result<BTreeMap<_, _>, _>>()?;
        let dummy = hashes.values().max_by_key(|hash| hash.cost).cloned().unwrap_or_default();
        let mut salt = [0; 32];
        rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut salt)
            .map_err(|_| Error::Format("the kernel gives no random bytes for basic_auth_users".into()))?;
        Ok(Self {
            hashes,
            dummy,
            salt,
            bcrypt: Arc::default(),
            known: Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING)),
            checking: Arc::new(Semaphore::new(1)),
        })
    }

    /// How many there are; with none, everybody is welcome.
    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Looks at the name and password of a request.
    pub(super) async fn check(&self, headers: &HeaderMap) -> Answer {
        if self.hashes.is_empty() {
            return Answer::Welcome;
        }
        let Some((name, password)) = credentials(headers) else { return Answer::Refused };
        let hash = self.hashes.get(&name).unwrap_or(&self.dummy).clone();
        let is_user = self.hashes.contains_key(&name);
        let digest = self.digest(&name, &password, &hash.text);
        if is_user && self.known().contains(&digest) {
            return Answer::Welcome;
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return Answer::Busy };
        let Ok(turn) = self.checking.clone().acquire_owned().await else { return Answer::Busy };
        let begun = Instant::now();
        let (bcrypt, highest) = (self.bcrypt.clone(), self.dummy.cost);
        let checked = tokio::task::spawn_blocking(move || bcrypt.verify(&password, &hash, highest));
        if checked.await.unwrap_or(false) && is_user {
            let mut known = self.known();
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(digest);
            return Answer::Welcome;
        }
        let pause = begun.elapsed() * PAUSE;
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            drop(turn);
        });
        Answer::Refused
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<[u8; 32]>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn digest(&self, name: &str, password: &[u8], hash: &str) -> [u8; 32] {
        let mut digest = Sha256::new_with_prefix(self.salt);
        for part in [name.as_bytes(), password, hash.as_bytes()] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let name = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((name, decoded[colon + 1..].to_vec()))
}

/// The cost of a hash, if it is one.
fn cost(hash: &str) -> Option<u32> {
    let parts: bcrypt::HashParts = hash.parse().ok()?;
    Some(parts.get_cost()).filter(|cost| (4..=31).contains(cost))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    const PASSWORD: &[u8] = b"correct: horse";

    fn users() -> Users {
        let hash = bcrypt::hash(PASSWORD, 4).unwrap();
        Users::new(BTreeMap::from([("alice".to_string(), hash)])).unwrap()
    }

    fn asks(users: &Users, name: &str, password: &[u8]) -> Answer {
        let encoded = STANDARD.encode([name.as_bytes(), b":", password].concat());
        with(users, &format!("Basic {encoded}"))
    }

    fn with(users: &Users, authorization: &str) -> Answer {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let headers =
            HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(authorization).unwrap())]);
        runtime.block_on(users.check(&headers))
    }

    #[test]
    fn only_the_right_password_of_a_known_name() {
        let users = users();
        assert_eq!(asks(&users, "alice", PASSWORD), Answer::Welcome);
        assert_eq!(users.known().len(), 1);
        assert_eq!(asks(&users, "alice", PASSWORD), Answer::Welcome);
        for (name, password) in [
            ("alice", &b"correct:"[..]),
            ("alice", b""),
            ("alice", b"nul\0nul"),
            ("alice", &[b'x'; 1000]),
            ("bob", PASSWORD),
            ("", PASSWORD),
        ] {
            assert_eq!(asks(&users, name, password), Answer::Refused, "{name}");
        }
        assert_eq!(users.known().len(), 1);
        for authorization in ["", "Basic", "Basic ", "Basic !!!", "Bearer YWxpY2U6eA==", "Basic YWxpY2U="] {
            assert_eq!(with(&users, authorization), Answer::Refused, "{authorization}");
        }
    }

    /// A wrong password of a hash of whatever cost, and any password of a name that is not known.
    #[test]
    fn what_an_answer_costs_does_not_tell_which_names_there_are() {
        let hashes = [("alice", 4), ("bob", 7), ("carol", 6)]
            .map(|(name, cost)| (name.to_string(), bcrypt::hash(PASSWORD, cost).unwrap()));
        let users = Users::new(hashes.into()).unwrap();
        let rounds = |name: &str, password: &[u8], answer: Answer| {
            let before = users.bcrypt.0.load(Ordering::Relaxed);
            assert_eq!(asks(&users, name, password), answer, "{name}");
            users.bcrypt.0.load(Ordering::Relaxed) - before
        };
        for name in ["alice", "bob", "carol", "dave", ""] {
            assert_eq!(rounds(name, b"wrong", Answer::Refused), 1 << 7, "{name}");
        }
        assert_eq!(rounds("dave", PASSWORD, Answer::Refused), 1 << 7);
        // Only who knows the password is told faster.
        assert_eq!(rounds("carol", PASSWORD, Answer::Welcome), 1 << 6);
        assert_eq!(rounds("carol", PASSWORD, Answer::Welcome), 0);
    }

    #[test]
    fn a_password_that_is_not_hashed_is_refused_without_showing_it() {
        let wrong = Users::new(BTreeMap::from([("alice".to_string(), "secret".to_string())]));
        let error = wrong.err().unwrap().to_string();
        assert!(error.contains("alice") && !error.contains("secret"), "{error}");
    }
}
