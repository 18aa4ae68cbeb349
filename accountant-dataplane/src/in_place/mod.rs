//! Rule counters read where the kernel keeps them, by programs that are run for a moment and never attached.
//!
//! A poll then costs what is asked for, not what the whole table costs, and takes no lock. [`btf`] and [`fields`] find out
//! how this kernel is built; [`Reader`] loads the programs of `accountant-ebpf/src/in_place` and runs them; [`legacy`] and
//! [`nft`] say what is to be read. Where it is not possible there is a [`CannotHere`], and sources read as everybody does.
//!
//! Invariant: what is handed out was read while the rules were those that the reader was told of; anything else is an
//! [`Outcome`], and nothing of it is handed out.

pub mod btf;
pub(crate) mod cast;
pub(crate) mod fields;
pub(crate) mod freed;
pub(crate) mod legacy;
pub(crate) mod nft;
pub mod reason;
pub(crate) mod rewrites;

pub use reason::CannotHere;

use accountant_abi::in_place::{CAPACITY, Fields, MAX_CPUS, Outcome};
use accountant_sys::mapping::Mapping;
use aya::maps::Map;
use aya::programs::{ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use fields::Rules;
use reason::Host;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;

/// The object of the programs in `accountant-ebpf/src/in_place`.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/in_place"));

/// The programs, loaded, and the memory that they share with us.
#[derive(Debug)]
struct Reader {
    ebpf: Ebpf,
    addresses: Mapping,
    sums: Mapping,
    stamp: Mapping,
    /// How many processors' counters are summed.
    cpus: u32,
    /// Where things are in this kernel.
    fields: Fields,
}

/// How many values of single processors are read in one run.
const READS_AT_ONCE: usize = 1 << 13;

/// Arguments of a program.
type Arguments = [u64; 12];

impl Reader {
    /// Loads these programs, for rules of this kind.
    fn load(rules: Rules, programs: &[&str], maps: &[(&str, u32)]) -> Result<Self, CannotHere> {
        let host = Host::look(reason::NEEDED);
        let possible = reason::possible_cpus()
            .map_err(|error| CannotHere::refused("asking for the number of processors", error, &host))?;
        let cpus = possible.last().map_or(1, |last| last + 1);
        if cpus > MAX_CPUS {
            return Err(CannotHere::TooManyProcessors(cpus));
        }
        let (fields, cast) = fields::fields(rules).map_err(|reason| reason.explained_by(&host))?;
        let per_cpu_rules = u64::from(cpus > 1);
        let mut loader = EbpfLoader::new();
        // Nothing in the programs is relocated by types; without this, all of the kernel's are parsed once more.
        loader.btf(None);
        loader.override_global("FIELDS", &fields, true);
        loader.override_global("PER_CPU_RULES", &per_cpu_rules, true);
        for &(map, entries) in maps {
            loader.map_max_entries(map, entries);
        }
        let refused = |operation: &str, error: &dyn std::error::Error| {
            CannotHere::refused(operation, chain(error), &host)
        };
        let mut ebpf =
            loader.load(&cast::put_into(OBJECT, cast)).map_err(|error| refused("making the maps", &error))?;
        for name in ["learn_cpu"].iter().chain(programs) {
            program(&mut ebpf, name)
                .and_then(RawTracePoint::load)
                .map_err(|error| refused(&format!("loading the program {name}"), &error))?;
        }
        let map = |name, words| {
            mapping(&ebpf, name, words).map_err(|error| refused(&format!("mapping {name}"), &error))
        };
        let capacity = CAPACITY as usize;
        let (addresses, sums, stamp) =
            (map("ADDRESSES", capacity)?, map("SUMS", 2 * capacity)?, map("STAMP", 3)?);
        let mut reader = Self { ebpf, addresses, sums, stamp, cpus, fields };
        reader.learn(&possible)?;
        Ok(reader)
    }

    /// Learns where each possible processor has its counters. Those that are offline keep what they counted.
    fn learn(&mut self, possible: &[u32]) -> Result<(), CannotHere> {
        let all = 0..self.cpus;
        if all.clone().ne(possible.iter().copied()) {
            // Never seen on a machine with Felix; summing over holes would read what is nobody's.
            return Err(CannotHere::NoField("processors without holes in their numbers".into()));
        }
        for cpu in all {
            let outcome = self.run("learn_cpu", &[u64::from(cpu)])?;
            if outcome != Outcome::Done {
                return Err(CannotHere::NoField(format!("per-CPU memory of processor {cpu}")));
            }
        }
        Ok(())
    }

    /// Runs a program in the calling thread's network namespace.
    fn run(&self, name: &str, arguments: &[u64]) -> Result<Outcome, CannotHere> {
        let mut args = Arguments::default();
        for (to, from) in args.iter_mut().zip(arguments) {
            *to = *from;
        }
        let run = || -> Result<u32, ProgramError> {
            let program: &RawTracePoint =
                self.ebpf.program(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
            Ok(program.test_run(RawTracePointRunOptions { args, cpu: None })?.return_value)
        };
        let code = run().map_err(|error| CannotHere::Refused {
            operation: format!("running the program {name}"),
            error: chain(&error),
        })?;
        Ok(Outcome::of(code))
    }

    /// One more of the programs' maps as memory.
    fn map(&self, name: &str, words: usize) -> Result<Mapping, CannotHere> {
        mapping(&self.ebpf, name, words).map_err(|error| CannotHere::Refused {
            operation: format!("mapping {name}"),
            error: error.to_string(),
        })
    }

    /// How many counters to read in one run: the kernel lets nobody else onto the processor meanwhile, so a run should be
    /// over in half a millisecond.
    fn at_once(&self) -> usize {
        (READS_AT_ONCE / self.cpus as usize).clamp(64, CAPACITY as usize)
    }

    fn put_addresses(&self, addresses: impl IntoIterator<Item = u64>) {
        for (word, address) in self.addresses.words().iter().zip(addresses) {
            word.store(address, Relaxed);
        }
    }

    fn addresses(&self) -> impl Iterator<Item = u64> {
        self.addresses.words().iter().map(|word| word.load(Relaxed))
    }

    /// The sums: both words of each.
    fn sums(&self) -> impl Iterator<Item = (u64, u64)> {
        self.sums.words().chunks_exact(2).map(|sum| (sum[0].load(Relaxed), sum[1].load(Relaxed)))
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut RawTracePoint, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()
}

pub(crate) fn mapping(ebpf: &Ebpf, name: &str, words: usize) -> std::io::Result<Mapping> {
    let (Some(Map::Array(map)), Some(words)) = (ebpf.map(name), NonZeroUsize::new(words)) else {
        return Err(std::io::ErrorKind::NotFound.into());
    };
    Mapping::new(map.fd().as_fd(), words)
}

/// An error with all that it comes of.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    // The verifier's log can be long; its end tells.
    let start = text.char_indices().rev().nth(600).map_or(0, |(at, _)| at);
    text.split_off(start)
}
