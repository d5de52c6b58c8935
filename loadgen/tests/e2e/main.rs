//! End-to-end tests against a server in the same process, on loopback.

mod fake;
mod program;
mod runs;
