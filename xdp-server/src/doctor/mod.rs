//! `xdp-server doctor`: is this host ready for these settings, and what would make it so?
//!
//! Theory of operation ------------------- The doctor judges one configuration, the one that its flags,
//! environment and file describe: `Wanted`. Each subject has a file with `Facts`, which are gathered first
//! and judged after, so that the judgement is a pure function, tested on hosts that are not there. Facts come
//! from files below a [`Root`](root::Root), from ethtool and netlink questions, and from trying what leaves
//! no trace: a socket, a ring, the port. Nothing is changed, and no privilege is needed; what only root can
//! see is said to be so.
//!
//! A [`Row`] is `fail` only if the server would refuse to start with these settings, `warn` if it would have
//! less than this host can give. Each of those has one remedy, which turns the row to ok: a command to type,
//! or, where the host cannot do what was asked for, other flags to give.
//!
//! [`run`] is all of it; called once, by `main`, instead of the server.

mod conntrack;
mod cores;
mod endpoint;
mod interface;
mod interrupts;
mod kernel;
mod memory;
mod privileges;
mod root;
mod row;
mod sockets;
mod table;
#[cfg(test)]
mod tests;
mod wanted;
mod xdp;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::Settings;
use crate::host::nic::NicError;
use crate::host::{HostError, HostFacts};
use crate::report::colours_wanted;
use root::Root;
use row::{Remedy, Row, Status};
use wanted::Wanted;

/// All that was found.
#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Says what kind of object this is, as in the server's own.
    event: &'static str,
    version: &'static str,
    /// The worst row.
    result: Status,
    /// The status that the program exits with.
    exit: u8,
    checks: Vec<Row>,
    /// Huge pages of 2 MiB in numbers; none if none are wanted or can be had.
    huge_pages: Option<memory::PageNeed>,
}

impl Diagnosis {
    fn new(mut checks: Vec<Row>, huge_pages: Option<memory::PageNeed>) -> Self {
        if nix::unistd::geteuid().is_root() {
            checks.iter_mut().filter_map(|row| row.remedy.as_mut()).for_each(Remedy::without_sudo);
        }
        let result = checks.iter().map(|row| row.status).max().unwrap_or(Status::Ok).max(Status::Ok);
        let exit = match result {
            Status::Skip | Status::Ok => 0,
            Status::Warn => 1,
            Status::Fail => 2,
        };
        Self { event: "doctor", version: env!("CARGO_PKG_VERSION"), result, exit, checks, huge_pages }
    }

    /// One line for all.
    fn summary(&self) -> String {
        let count = |status| self.checks.iter().filter(|row| row.status == status).count();
        let verdict = match self.result {
            Status::Fail => "xdp-server cannot run with these settings",
            Status::Warn => "xdp-server runs, with less than this host could give",
            Status::Ok | Status::Skip => "this host is ready",
        };
        let [ok, warn, fail] = [Status::Ok, Status::Warn, Status::Fail].map(count);
        format!("{ok} ok, {warn} warn, {fail} fail: {verdict}")
    }
}

/// Examines the host, prints the diagnosis, and returns the status to exit with: 0 if all is well, 1 with
/// warnings, 2 if the server cannot run.
///
/// As with the server, `--json` is one object on standard output, with the text on standard error, and
/// `--quiet` leaves nothing of the text but what fails.
pub fn run(settings: &Settings) -> ExitCode {
    let diagnosis = examine(settings);
    let terminal = if settings.json { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
    let colour = terminal && colours_wanted(&|variable| std::env::var(variable).ok());
    let text = match settings.quiet {
        false => format!("{}\n{}\n", table::text(&diagnosis.checks, colour), diagnosis.summary()),
        true => {
            let failing: Vec<Row> =
                diagnosis.checks.iter().filter(|row| row.status == Status::Fail).cloned().collect();
            if failing.is_empty() { String::new() } else { table::text(&failing, colour) }
        }
    };
    // A reader that goes away (`| head`) does not change the diagnosis.
    let _ = match settings.json {
        true => {
            let json = serde_json::to_string(&diagnosis).expect("strings and numbers are JSON");
            let _ = io::stderr().write_all(text.as_bytes());
            writeln!(io::stdout(), "{json}")
        }
        false => io::stdout().write_all(text.as_bytes()),
    };
    ExitCode::from(diagnosis.exit)
}

/// Gathers the facts, and judges them.
fn examine(settings: &Settings) -> Diagnosis {
    let root = Root::host();
    // An interface that cannot be read is a row; the other checks are made as if there were none.
    let (host, unreadable) = match HostFacts::gather(settings.iface.as_deref()) {
        Err(HostError::Nic(error)) => (HostFacts::gather(None), Some(error)),
        gathered => (gathered, None),
    };
    let host = match host {
        Ok(host) => host,
        Err(error) => {
            let remedy = Remedy::command("taskset -acp 0-1023 $$");
            return Diagnosis::new(vec![Row::fail("cores", error.to_string(), remedy)], None);
        }
    };
    let wanted = Wanted::new(settings, &host);
    let kernel = kernel::Facts::gather(&root);
    let privileges = privileges::Facts::gather(&root);
    let memory = memory::Facts::gather(&root);

    let mut rows = kernel.rows(&wanted);
    rows.extend(privileges.rows(&wanted));
    rows.extend(interface_rows(&root, &wanted, &kernel, unreadable));
    rows.extend(memory.rows(&wanted));
    rows.extend(cores::Facts::gather(&root).rows(&wanted));
    if let (true, Some(nic)) = (wanted.uses_xdp(), &host.nic) {
        rows.extend(interrupts::Facts::gather(&root, nic).rows(&wanted, nic));
    }
    rows.extend(sockets::Facts::gather(&root, privileges.is_net_admin()).rows(&wanted));
    rows.push(conntrack::Facts::gather(&root, settings.listen.port()).row(&wanted));
    rows.extend(endpoint::Facts::gather(&wanted).rows(&wanted));
    Diagnosis::new(rows, memory.need(&wanted))
}

/// What there is to say of the interface that was asked for.
fn interface_rows(
    root: &Root,
    wanted: &Wanted<'_>,
    kernel: &kernel::Facts,
    unreadable: Option<NicError>,
) -> Vec<Row> {
    let Some(name) = &wanted.settings.iface else {
        return vec![Row::skip("interface", "no --iface: nothing about AF_XDP is checked")];
    };
    if let Some(NicError::OtherNamespace(name, _)) = unreadable {
        let found = format!("/sys belongs to another network namespace, and does not show {name}");
        let program = std::env::current_exe().unwrap_or_else(|_| "xdp-server".into());
        let program = row::quoted(&program.to_string_lossy());
        let inner = format!("mount -t sysfs sysfs /sys && exec {program} doctor --iface {name}");
        let remedy = Remedy::command(format!("sudo unshare --mount sh -c {}", row::quoted(&inner)))
            .or("ip netns exec NAMESPACE, which also remounts /sys");
        return vec![Row::fail("interface", found, remedy)];
    }
    let Some(nic) = &wanted.host.nic else {
        return wanted.misfit.iter().filter_map(|misfit| interface::missing(misfit, wanted)).collect();
    };
    let mut rows = interface::Facts::gather(root, name).rows(wanted, nic);
    if wanted.uses_xdp() {
        rows.extend(xdp::Facts::gather(root, nic, kernel.version()).rows(wanted, nic));
    }
    rows
}
