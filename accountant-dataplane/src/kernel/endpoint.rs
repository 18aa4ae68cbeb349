//! Traffic of one endpoint's interface, counted by two classifiers.
//!
//! So far the traffic of single interfaces, by classifiers on both of their directions. The objects are embedded; nothing is
//! read from disk, and nothing is pinned: programs and counts go when this value is dropped.

use crate::SourceError;
use accountant_abi::{FROM_ENDPOINT, TO_ENDPOINT, Traffic};
use accountant_core::Counter;
use aya::maps::PerCpuArray;
use aya::programs::tc::{self, SchedClassifier, TcAttachType};
use aya::{Ebpf, include_bytes_aligned};

/// The object of the programs in `accountant-ebpf/src/endpoint.rs`.
static ENDPOINT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/endpoint"));

/// Traffic of one interface, counted by our classifiers for as long as this lives.
#[derive(Debug)]
pub struct EndpointTraffic {
    ebpf: Ebpf,
}

/// What was counted since the programs were attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounts {
    /// Sent to the endpoint.
    pub to: Counter,
    /// Sent by the endpoint.
    pub from: Counter,
}

impl EndpointTraffic {
    /// Loads the programs and attaches them to both directions of an interface.
    pub fn attach(interface: &str) -> Result<Self, SourceError> {
        let failed = |operation: &'static str, error: String| {
            SourceError::io(operation, interface, std::io::Error::other(error))
        };
        let mut ebpf = Ebpf::load(ENDPOINT).map_err(|e| failed("loading the programs for", e.to_string()))?;
        // Where there is no tcx (before Linux 6.6) a clsact qdisc is needed; where there is one already, that is fine.
        let _ = tc::qdisc_add_clsact(interface);
        for (name, direction) in
            [("to_endpoint", TcAttachType::Egress), ("from_endpoint", TcAttachType::Ingress)]
        {
            let program = ebpf.program_mut(name).ok_or("it is not in the object".to_string());
            let program = program.map_err(|e| failed("finding a program for", e))?;
            let program: &mut SchedClassifier = program
                .try_into()
                .map_err(|e: aya::programs::ProgramError| failed("finding a program for", e.to_string()))?;
            program.load().map_err(|e| failed("loading a program for", e.to_string()))?;
            program
                .attach(interface, direction)
                .map_err(|e| failed("attaching a program to", e.to_string()))?;
        }
        Ok(Self { ebpf })
    }

    /// What was counted so far, over all CPUs.
    pub fn counts(&self) -> Result<EndpointCounts, SourceError> {
        let failed =
            |error: String| SourceError::io("reading", "the map TRAFFIC", std::io::Error::other(error));
        let map = self.ebpf.map("TRAFFIC").ok_or_else(|| failed("it is not in the object".into()))?;
        let map: PerCpuArray<_, Traffic> = PerCpuArray::try_from(map).map_err(|e| failed(e.to_string()))?;
        let sum = |index: u32| -> Result<Counter, SourceError> {
            let values = map.get(&index, 0).map_err(|e| failed(e.to_string()))?;
            Ok(values.iter().map(|traffic| Counter::new(traffic.packets, traffic.bytes)).sum())
        };
        Ok(EndpointCounts { to: sum(TO_ENDPOINT)?, from: sum(FROM_ENDPOINT)? })
    }
}
