//! Where Calico's programs are attached, and ours beside them.
//!
//! Ours go in front of Calico's and right behind it. What stands behind is sound only there: when Felix makes its link anew it
//! appends it behind ours, so the order is looked at again and again, and what is out of place is detached before it is
//! attached anew. Calico's programs are known by their names.

use super::pins::Pins;
use super::programs::{Programs, counters_of};
use crate::clsact::{Clsact, Filter, interfaces};
use accountant_abi::calico::{EGRESS, HookKey, INGRESS, Last};
use accountant_core::calico::bpf::CounterLayout;
use accountant_sys::program::program_id;
use aya::maps::MapError;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use std::collections::BTreeMap;

/// What the names of Calico's attached programs begin with; the kernel keeps 15 characters. The second is that of 3.25.
const CALICO: [&str; 2] = ["cali_tc_preambl", "calico_"];
/// Priorities of filters on clsact: the kernel gives out those from 49152 downwards.
const FIRST: u16 = 1;
const LAST: u16 = 60_000;

/// An interface's hook.
pub(super) type HookId = (u32, u8);

/// Programs of ours at a hook.
struct Hooked {
    before: Option<SchedClassifierLink>,
    after: Option<SchedClassifierLink>,
}

/// What Calico's counters of a hook say since ours was first there.
#[derive(Default)]
struct Counted {
    /// The counters of packets that policy decided on, when they were last looked at.
    last: u64,
    /// What they have counted, however often they were set back.
    total: u64,
}

/// All hooks that Calico's programs are at.
#[derive(Default)]
pub(super) struct Links {
    hooks: BTreeMap<HookId, Hooked>,
    /// Hooks that ours were at, of interfaces that are there.
    counted: BTreeMap<HookId, Counted>,
    names: BTreeMap<u32, String>,
    clsact: Option<Clsact>,
    /// What could not be attached.
    pub(super) wrong: Option<String>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("hooks", &self.hooks.keys()).finish_non_exhaustive()
    }
}

/// How a program is attached. All of tcx run before those of clsact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Tcx,
    Clsact,
}

/// A program at a hook.
struct There {
    id: u32,
    name: String,
    on: On,
}

/// The programs at a hook, in the order in which they run, as far as Calico's and ours can be among them: where it uses tcx
/// it has no filters.
fn programs_at(clsact: &mut Option<Clsact>, index: u32, interface: &str, hook: u8) -> Vec<There> {
    let at = if hook == INGRESS { TcAttachType::Ingress } else { TcAttachType::Egress };
    // An interface that has just gone has none, and a kernel without tcx none there.
    let tcx = SchedClassifier::query_tcx(interface, at).map(|(_, programs)| programs).unwrap_or_default();
    let tcx = tcx.iter().map(|p| There {
        id: p.id(),
        name: p.name_as_str().unwrap_or_default().into(),
        on: On::Tcx,
    });
    let mut all: Vec<_> = tcx.collect();
    if calico_at(&all).is_none() {
        let filters = clsact.as_mut().and_then(|clsact| clsact.filters(index, hook).ok()).unwrap_or_default();
        all.extend(filters.into_iter().map(|Filter { id, name, .. }| There { id, name, on: On::Clsact }));
    }
    all
}

fn calico_at(programs: &[There]) -> Option<usize> {
    programs.iter().position(|there| CALICO.iter().any(|calico| there.name.starts_with(calico)))
}

/// Whether a program of Calico's is attached anywhere.
pub(super) fn is_calico_attached() -> bool {
    let mut clsact = Clsact::open().ok();
    let mut at = |index, name: &str, hook| calico_at(&programs_at(&mut clsact, index, name, hook)).is_some();
    interfaces().iter().any(|(index, name)| at(*index, name, INGRESS) || at(*index, name, EGRESS))
}

impl Links {
    /// Puts our programs beside all of Calico's.
    pub(super) fn refresh(&mut self, programs: &mut Programs, pins: &Pins) {
        self.wrong = None;
        if self.clsact.is_none() {
            self.clsact = Clsact::open().ok();
        }
        self.names = interfaces();
        let ours = ["before_ingress", "before_egress", "after_ingress", "after_egress"].map(|name| {
            programs.classifier(name).and_then(|program| program.info()).map_or(0, |info| info.id())
        });
        self.hooks.retain(|(interface, _), _| self.names.contains_key(interface));
        self.counted.retain(|(interface, _), _| self.names.contains_key(interface));
        for (interface, name) in self.names.clone() {
            for hook in [INGRESS, EGRESS] {
                let there = programs_at(&mut self.clsact, interface, &name, hook);
                let Some(calico) = calico_at(&there) else {
                    self.hooks.remove(&(interface, hook));
                    continue;
                };
                let place = |id: u32| there.iter().position(|other| other.id == id);
                let [before, after] = [ours[usize::from(hook)], ours[2 + usize::from(hook)]].map(place);
                let in_order = (before.is_some_and(|at| at < calico), after.is_some_and(|at| at > calico));
                let at = At { interface, name: &name, hook, calico: there[calico].id, on: there[calico].on };
                if let Err(error) = self.put(programs, pins, &at, in_order) {
                    self.wrong = Some(format!(
                        "attaching a program to {name} failed: {}",
                        crate::in_place::chain(&error)
                    ));
                }
            }
        }
    }

    fn put(
        &mut self,
        programs: &mut Programs,
        pins: &Pins,
        at: &At<'_>,
        (before, after): (bool, bool),
    ) -> Result<(), ProgramError> {
        let id = (at.interface, at.hook);
        if let Some(hooked) = self.hooks.get_mut(&id) {
            // What is out of place goes at once.
            hooked.after.take_if(|_| !after);
            hooked.before.take_if(|_| !before);
        }
        if self.hooks.get(&id).is_none_or(|hooked| hooked.before.is_none()) {
            let last = meet(programs, pins, at.interface, at.name, at.hook)?;
            self.counted.entry(id).or_insert(Counted { last, total: 0 });
            let first = TcAttachOptions::TcxOrder(LinkOrder::first());
            let before = match (attach(programs, "before", at, first), at.on) {
                // Kernels before 6.6 have no tcx.
                (Err(_), On::Clsact) => attach(programs, "before", at, filter(FIRST))?,
                (attached, _) => attached?,
            };
            let before = Some(before);
            match self.hooks.get_mut(&id) {
                Some(hooked) => hooked.before = before,
                None => {
                    self.hooks.insert(id, Hooked { before, after: None });
                }
            }
        }
        if let Some(hooked) = self.hooks.get_mut(&id)
            && hooked.after.is_none()
        {
            let behind = match at.on {
                // Relative to Calico's very program: if another takes its place right now it fails, and is tried again.
                On::Tcx => TcAttachOptions::TcxOrder(LinkOrder::after_program_id(program_id(at.calico))),
                On::Clsact => filter(LAST),
            };
            hooked.after = Some(attach(programs, "after", at, behind)?);
        }
        Ok(())
    }

    /// The interfaces that there are, by index.
    pub(super) fn names(&self) -> &BTreeMap<u32, String> {
        &self.names
    }

    /// The hooks that our programs are at.
    pub(super) fn hooks(&self) -> impl Iterator<Item = HookId> {
        self.hooks.keys().copied()
    }

    /// Tells our programs what Calico's new counters are.
    pub(super) fn compare_with(&self, programs: &mut Programs, pins: &Pins) -> Result<(), MapError> {
        for &(interface, hook) in self.hooks.keys() {
            if let Some(name) = self.names.get(&interface) {
                meet(programs, pins, interface, name, hook)?;
            }
        }
        Ok(())
    }

    /// Whether a program of ours is at a hook.
    pub(super) fn is_at(&self, hook: HookId) -> bool {
        self.hooks.get(&hook).is_some_and(|hooked| hooked.before.is_some())
    }

    /// Whether Calico's counters of a hook are followed.
    pub(super) fn is_counted(&self, hook: HookId) -> bool {
        self.counted.contains_key(&hook)
    }

    /// How many packets policy decided on since our programs were attached, as Calico counts them. None without its counters.
    pub(super) fn decided(&mut self, pins: &Pins) -> Result<Option<u64>, MapError> {
        let Some((pinned, layout)) = &pins.own.counters else { return Ok(None) };
        let mut sum = 0_u64;
        for (&(interface, hook), counted) in &mut self.counted {
            let rows = counters_of(pinned, *layout, HookKey { interface, hook: hook.into() })?;
            let now: u64 = rows.iter().flatten().map(|row| last(*layout, row).decided).sum();
            // Counters that fell were set back, or are other ones: they began at zero.
            counted.total += if now < counted.last { now } else { now - counted.last };
            counted.last = now;
            sum += counted.total;
        }
        Ok(Some(sum))
    }
}

/// An interface's hook with a program of Calico's.
struct At<'a> {
    interface: u32,
    name: &'a str,
    hook: u8,
    /// Number of Calico's program.
    calico: u32,
    on: On,
}

fn filter(priority: u16) -> TcAttachOptions {
    TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() })
}

fn attach(
    programs: &mut Programs,
    place: &str,
    at: &At<'_>,
    options: TcAttachOptions,
) -> Result<SchedClassifierLink, ProgramError> {
    let (way, attach_type) = match at.hook {
        EGRESS => ("egress", TcAttachType::Egress),
        _ => ("ingress", TcAttachType::Ingress),
    };
    let program = programs.classifier(&format!("{place}_{way}"))?;
    let link = program.attach_with_options(at.name, attach_type, options)?;
    program.take_link(link)
}

/// Tells our programs about an interface; returns what policy decided on there so far.
fn meet(programs: &mut Programs, pins: &Pins, interface: u32, name: &str, hook: u8) -> Result<u64, MapError> {
    let key = HookKey { interface, hook: hook.into() };
    // Where Calico has no counters yet it will begin at zero.
    let mut at_start = vec![Last::default(); processors()];
    if let Some((pinned, layout)) = &pins.own.counters
        && let Some(rows) = counters_of(pinned, *layout, key)?
    {
        at_start = rows.iter().map(|row| last(*layout, row)).collect();
    }
    programs.meet(key, name, &at_start)?;
    Ok(at_start.iter().map(|last| last.decided).sum())
}

/// What our programs compare Calico's counters with.
fn last(layout: CounterLayout, row: &[u64]) -> Last {
    let at = |reason: usize| row.get(reason).copied().unwrap_or(0);
    let sum = |reasons: &[usize]| reasons.iter().fold(0_u64, |sum, &reason| sum.wrapping_add(at(reason)));
    Last { decided: sum(&[CounterLayout::ACCEPTED, CounterLayout::DENIED]), dropped: sum(layout.drops()) }
}

fn processors() -> usize {
    aya::util::nr_cpus().unwrap_or(1)
}
