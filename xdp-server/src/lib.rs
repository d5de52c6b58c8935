//! A shared pixel canvas, served over QUIC from AF_XDP sockets. The program is `xdp-server`; this library is
//! what it is made of, and what its tests and benchmarks use.
//!
//! | module | question that it answers |
//! |---|---|
//! | [`net`] | how do packets enter and leave? AF_XDP, sockets, a simulated network; never sees QUIC |
//! | [`quic`] | which packet belongs to which connection? never sees a file descriptor |
//! | [`session`] | what does a connection mean to the canvas? |
//! | [`link`] | what do threads share? |
//! | [`worker`] | the loop in which net, quic and session meet |
//! | [`master`] | the canvas's one writer |
//! | [`host`] | cores, queues and NUMA nodes, and where the threads go |
//! | [`cli`], [`state`], [`report`] | what was asked for, what is kept, what is said |
//! | [`metrics`] | the counters, for Prometheus |
//! | [`rss`] | how does a NIC spread clients over its queues? |
//! | [`doctor`] | is the host ready for what was asked for, and what would make it so? |
//! | [`bench`] | what does it cost, beside QUIC alone? |
//! | [`server`] | all of it, from start to end |

pub mod bench;
pub mod cli;
pub mod doctor;
pub mod host;
pub mod link;
pub mod master;
pub mod metrics;
pub mod net;
pub mod quic;
pub mod report;
pub mod rss;
pub mod server;
pub mod session;
pub mod state;
pub mod stats;
pub mod worker;
