//! End-to-end tests against a server in the same process, on loopback.

mod fake;
mod files;
mod honesty;
mod program;
mod runs;
