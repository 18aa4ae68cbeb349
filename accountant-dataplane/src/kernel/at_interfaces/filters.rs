//! Our programs at the hooks of interfaces, as filters of clsact, which every kernel has.
//!
//! They are in front of all others, so that they see what those drop. A filter stays when the process ends, so one that an earlier
//! agent left is replaced where it is: no packet in between is missed or counted twice.
//!
//! Invariant: nothing of others is touched. A filter is ours by priority, handle and the name of its program; clsact is made where
//! there is none, and never taken away, because others can have come to use it.

use crate::clsact::{Clsact, Filter};
use crate::in_place::{CannotHere, chain};
use accountant_abi::calico::{EGRESS, INGRESS};
use aya::Ebpf;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{Link, ProgramError, SchedClassifier, TcAttachType};

/// In front of those that the kernel gives out, and those that others use.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0xacc, 1);

/// A side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// What comes in by it.
    Received,
    /// What the host sends out of it.
    Sent,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Received, Self::Sent];

    /// As metrics have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Sent => "sent",
        }
    }

    /// The name of its program, of which the kernel and filters keep 15 letters.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Received => "acct_received",
            Self::Sent => "acct_sent",
        }
    }

    fn hook(self) -> (u8, TcAttachType) {
        match self {
            Self::Received => (INGRESS, TcAttachType::Ingress),
            Self::Sent => (EGRESS, TcAttachType::Egress),
        }
    }

    fn is_filled_by(self, filter: &Filter) -> bool {
        let place = (filter.priority, filter.handle) == (PRIORITY, HANDLE.into());
        place && filter.name == self.program()
    }
}

/// An interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) index: u32,
    pub(super) name: &'a str,
}

/// The program of a side.
pub(super) fn program(ebpf: &mut Ebpf, side: Side) -> Result<&mut SchedClassifier, ProgramError> {
    ebpf.program_mut(side.program()).ok_or(ProgramError::NotLoaded)?.try_into()
}

/// Has the program of a side count at an interface, if it does not yet.
pub(super) fn attach(clsact: &mut Clsact, ebpf: &mut Ebpf, at: At<'_>, side: Side) -> Result<(), CannotHere> {
    let refused = |error: String| CannotHere::Refused {
        operation: format!("attaching {} to {}", side.program(), at.name),
        error,
    };
    let filters = clsact.filters(at.index, side.hook().0).map_err(|error| refused(error.to_string()))?;
    let ours = filters.iter().find(|filter| side.is_filled_by(filter));
    if ours.is_none() {
        // There may be one already.
        let _ = tc::qdisc_add_clsact(at.name);
        let kind = clsact.kind(at.index).map_err(|error| refused(error.to_string()))?;
        if let Some(kind) = kind.filter(|kind| kind != "clsact" && side == Side::Sent) {
            return Err(refused(format!("its qdisc {kind} has no place for what is sent; clsact has")));
        }
    }
    put(ebpf, at, side, ours).map_err(|error| refused(chain(&error)))
}

fn put(ebpf: &mut Ebpf, at: At<'_>, side: Side, ours: Option<&Filter>) -> Result<(), ProgramError> {
    let program = program(ebpf, side)?;
    let (_, hook) = side.hook();
    let attached = match ours {
        Some(filter) if filter.id == program.info()?.id() => return Ok(()),
        Some(_) => program.attach_to_link(link(at, side)?)?,
        None => {
            let place = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program.attach_with_options(at.name, hook, TcAttachOptions::Netlink(place))?
        }
    };
    // It is detached by whoever looks for it, not with this process.
    std::mem::forget(program.take_link(attached)?);
    Ok(())
}

/// Takes it away, if it is there.
pub(super) fn detach(clsact: &mut Clsact, at: At<'_>, side: Side) -> bool {
    let filters = clsact.filters(at.index, side.hook().0).unwrap_or_default();
    let is_there = filters.iter().any(|filter| side.is_filled_by(filter));
    // An interface that went meanwhile took it with it.
    is_there && link(at, side).is_ok_and(|link| link.detach().is_ok())
}

fn link(at: At<'_>, side: Side) -> Result<SchedClassifierLink, ProgramError> {
    let link = SchedClassifierLink::attached(at.name, side.hook().1, PRIORITY, HANDLE, None);
    link.map_err(|error| ProgramError::TcError(tc::TcError::IoError(error)))
}
