//! A small Calico node of one's own, on a real kernel.
//!
//! The demo, the integration tests and the benches need pods, Felix' rules and traffic whose numbers are known. This
//! crate makes all three in network namespaces of its own, and takes them away again when its values are dropped:
//!
//! * [`netns`]: the namespaces, and running things inside them;
//! * [`node`]: a node with pods, each behind its `cali…` interface, and a host outside;
//! * [`policy`]: the model, what a user would say in manifests: pods, tiers, policies, host endpoints;
//! * [`felix`]: the rules that Felix of a version and backend writes for that model;
//! * [`apply`]: putting them into the kernel the way Felix does, rewrites included, and loading captured rules;
//! * [`kube_proxy`]: a second writer beside Felix;
//! * [`traffic`]: traffic in known numbers;
//! * [`scenario`]: ready models, from three pods to a big node;
//! * [`agent`] and [`books`]: the agent in there, and its accounts beside the truth.
//!
//! ```no_run
//! use accountant_lab::felix::{Backend, Dialect, Version};
//! use accountant_lab::policy::Truth;
//! use accountant_lab::scenario::{Visit, demo};
//!
//! let scenario = demo();
//! let node = scenario.node()?;
//! let mut felix = node.felix(Dialect::new(Version::V3_31, Backend::Legacy)?);
//! felix.apply(&scenario.model)?;
//! let mut truth = Truth::default();
//! Visit::new(&node)?.round(&scenario.model, &mut truth, || ())?;
//! for (account, packets) in truth.accounts() {
//!     println!("{account}: {packets}");
//! }
//! # Ok::<(), accountant_lab::Error>(())
//! ```
//!
//! Invariants: nothing outside namespaces named `acct-PID-…` is touched, no packet leaves them, and everything is
//! removed on drop, a panic included. It needs root and the tools of the Debian packages iproute2, iptables, nftables
//! and ipset; what is missing is said by package name.

#![forbid(unsafe_code)]

pub mod agent;
pub mod apply;
pub mod books;
pub mod error;
pub mod felix;
pub mod kube_proxy;
pub mod netns;
pub mod node;
pub mod policy;
pub mod scenario;
mod tool;
pub mod traffic;

pub use agent::Agent;
pub use error::{Error, Result};
pub use netns::Namespace;
pub use node::Node;
pub use scenario::Scenario;
