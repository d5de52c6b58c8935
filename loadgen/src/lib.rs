//! A load generator for canvas/1 servers, of another make than the server: quinn and tokio here, quiche
//! there.
//!
//! # Theory of operation
//!
//! [`run`] coordinates; threads carry the load. Each thread has a tokio runtime of its own (current_thread,
//! so no work is stolen and no client's state moves), its share of the UDP sockets, a quinn endpoint on
//! each, and its share of the clients, each a task (`client`). The first few clients also mirror the canvas
//! (`watcher`). Threads share only what `shared` holds: settings, counters, and a signal that says paint,
//! be quiet, or close.
//!
//! A run: one connection asks for the server's figures; clients come up (the ramp), warm up, and act on an
//! open loop ([`schedule`]) while the window lasts, which alone is measured ([`stats::Window`]); then all is
//! quiet, `verify` compares, all connections close, and a [`report::Report`] is made. Whatever goes wrong in
//! between, the report is still made, of what there is. What the clients do is data: a [`scenario`].
//!
//! Each second goes to an `observer`: progress and the files of [`results`], or the process that this one
//! works for. For `processes` starts several, which tell it what they do, and merges their reports, as
//! [`join`] does with files.
//!
//! With `--align-queues` the sockets' source ports are chosen for the queues of the server's NIC ([`rss`]).
//!
//! What is proven, and by what: `verify`, `witness`.

pub mod analysis;
pub mod cli;
mod client;
mod endpoint;
mod host;
mod join;
mod loss;
mod newcomer;
mod observer;
mod probe;
mod processes;
mod progress;
pub mod report;
pub mod results;
pub mod rss;
mod run;
pub mod sample;
pub mod scenario;
pub mod schedule;
mod session;
mod shared;
pub mod stats;
pub mod target;
mod threads;
mod verify;
mod watcher;
mod witness;
mod worker;

pub use join::join;
pub use run::run;
pub use worker::work;
