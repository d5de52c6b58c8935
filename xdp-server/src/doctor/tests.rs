//! What the tests of all checks share, and the diagnosis as a whole.

use std::path::Path;

use super::row::{Action, Remedy, Row, Status};
use super::*;
use crate::cli::{self, Command};
use crate::host::nic::Nic;

/// The settings that these flags stand for.
pub(super) fn settings(flags: &str) -> Settings {
    let args: Vec<_> = ["xdp-server"].into_iter().chain(flags.split_whitespace()).map(Into::into).collect();
    let nothing = |_: &Path| Err(io::ErrorKind::NotFound.into());
    match cli::parse_from(&args, &|_| None, &nothing).unwrap() {
        Command::Serve(settings) | Command::Doctor(settings) => settings,
        other => panic!("{other:?} is neither"),
    }
}

/// A host of four CPUs on one node, with an interface of four queues.
pub(super) fn host() -> HostFacts {
    HostFacts {
        allowed: vec![0, 1, 2, 3],
        online: vec![0, 1, 2, 3],
        cpu_quota: 4,
        nodes: [(0, 0), (1, 0), (2, 0), (3, 0)].into(),
        nic: Some(Nic {
            name: "eth0".into(),
            index: 2,
            up: true,
            driver: Some("ice".into()),
            rx_queues: 4,
            tx_queues: 4,
            numa_node: None,
            mtu: 1500,
        }),
        interfaces: vec!["eth0".into(), "lo".into()],
    }
}

/// What is to be typed, or given.
#[track_caller]
pub(super) fn typed(row: &Row) -> &str {
    match &row.remedy.as_ref().unwrap_or_else(|| panic!("a remedy for {row:?}")).action {
        Action::Type(text) | Action::Give(text) => text,
    }
}

#[test]
fn the_worst_row_is_the_result() {
    let remedy = || Remedy::command("x");
    let result = |rows: Vec<Row>| {
        let diagnosis = Diagnosis::new(rows, None);
        (diagnosis.result, diagnosis.exit, diagnosis.summary())
    };
    let (ok, skip) = (|| Row::ok("a", ""), || Row::skip("b", ""));
    assert_eq!(result(vec![skip()]).1, 0);
    assert_eq!(
        result(vec![ok(), skip()]),
        (Status::Ok, 0, "1 ok, 0 warn, 0 fail: this host is ready".into())
    );
    assert_eq!(result(vec![ok(), Row::warn("c", "", remedy()), skip()]).1, 1);
    let worst = result(vec![Row::fail("d", "", remedy()), Row::warn("c", "", remedy())]);
    assert_eq!((worst.0, worst.1), (Status::Fail, 2));
}

#[test]
fn the_settings_are_planned_for_even_where_they_do_not_fit() {
    let mut host = host();
    host.nic.as_mut().unwrap().up = false;
    let many = settings("--iface eth0 --queues 3 --cpus 9,2,3,1,0");
    let wanted = Wanted::new(&many, &host);
    assert!(wanted.misfit.is_some());
    assert_eq!((wanted.workers(), wanted.worker_cpus(), wanted.cpus()), (3, vec![0, 1, 3], vec![0, 1, 2, 3]));
    host.nic = None;
    assert_eq!(Wanted::new(&many, &host).workers(), 3);
}

/// On whatever host this runs: each trouble has a remedy, nothing else has, and no check is there twice.
#[test]
fn this_host_is_examined_soundly() {
    for flags in ["", "--iface lo", "--iface no-such-if", "--iface lo --backend xdp", "--backend socket"] {
        let diagnosis = examine(&settings(flags));
        for row in &diagnosis.checks {
            let trouble = matches!(row.status, Status::Warn | Status::Fail);
            assert_eq!(trouble, row.remedy.is_some(), "{flags}: {row:?}");
            assert!(!row.found.is_empty(), "{flags}: {row:?}");
            let same = diagnosis.checks.iter().filter(|other| other.check == row.check);
            assert_eq!(same.count(), 1, "{flags}: {row:?}");
        }
        let text = table::text(&diagnosis.checks, false);
        let wide = text.lines().find(|line| line.chars().count() > 100 && line.contains(' '));
        assert!(wide.is_none_or(|line| line.split_whitespace().any(|word| word.len() > 60)), "{wide:?}");
    }
}
