//! The client: very many quiche connections on one thread.
//!
//! - [`fleet`]: sockets, connections, the loop that keeps them alive
//! - [`paint`]: what they paint
//! - [`prepare`]: encrypted packets, made ahead
//! - [`blast`]: sending them, as fast as can be or at a rate, and what the server made of it
//! - [`search`]: the highest rate without loss, and the most messages a second at any
//! - [`cores`]: how the CPUs of both sides spent the time
//! - [`watch`]: many subscribers and what they get in each tick
//! - [`handshakes`]: connecting and leaving, over and over

pub mod blast;
pub mod cores;
pub mod fleet;
pub mod handshakes;
pub mod paint;
pub mod prepare;
pub mod search;
pub mod watch;
