//! BIRD, Calico's routing daemon: what it says of its protocols on its control socket.
//!
//! [`socket`] asks, [`decode`] reads the reply of any version (1.6, 2, 3), [`follow`] compares looks, so that a session that
//! went down and came back between two of them is seen. Nothing here can change what BIRD does: the first thing that is said
//! on a socket is `restrict`, and nothing else is said before it is granted.

pub mod decode;
pub mod follow;
pub mod moment;
pub mod socket;

pub use decode::{Channel, Protocol};
pub use follow::{Daemon, Follower, Socket, State};
pub use socket::BirdError;
