//! From a results folder to a verdict: what limited a run, and the pictures that show it.
//!
//! # Theory of operation
//!
//! Everything here works on files, after the run, on whatever machine; nothing is measured. The way is one
//! direction, and each step knows only the one before:
//!
//! - [`folder`]: reads what a run left behind into [`folder::Results`], with `clients` (load generators'
//!   files, merged), `server` (its JSON lines) and `monitor` (the CSV). Any file may be missing, and the last
//!   line of any may be cut off, as those of a run that died are: a note says so, and the rest is used.
//! - [`measure`]: the figures of the measured window, per queue and in sum.
//! - [`mod@diagnose`]: a pure function from these to findings.
//! - [`report`]: all of the above as one object, [`report::Analysis`], which is also what `report.json`
//!   holds; the terminal's table (`text`), the page (`html`, with drawings of `plot`) and
//!   `scripts/visualize_load.py` are made from this object alone.
//!
//! One clock: seconds since the first load generator of the folder started. Files of machines whose clocks
//! disagree are off by that much; a second hardly shows in the pictures, and figures are means over windows.

pub mod cli;
mod clients;
pub mod diagnose;
pub mod folder;
mod html;
pub mod measure;
mod monitor;
mod plot;
pub mod report;
mod server;
mod text;
