use super::*;

/// The text of these families alone.
fn text(families: Vec<Family>) -> String {
    #[derive(Debug)]
    struct These(Vec<Family>);
    impl Collector for These {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.iter().try_for_each(|family| family.encode(&mut encoder))
        }
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(These(families)));
    Source(registry).text()
}

/// What there is of one counter that is `number` in the text of [`WorkerStats::numbered`].
fn samples<'a>(text: &'a str, name: &str, number: u64) -> Vec<&'a str> {
    let value = match name.ends_with(NANOSECONDS) {
        true => format!(" {:e}", number as f64 / 1e9),
        false => format!(" {number}"),
    };
    text.lines().filter(|line| !line.starts_with('#') && line.ends_with(&value)).collect()
}

#[test]
fn every_counter_of_a_worker_is_exposed_once() {
    let numbered = WorkerStats::numbered();
    let text = text(families_of_workers(&[numbered], &[Some(7)]));
    let mut count = 0;
    for field in numbered.fields() {
        let found = samples(&text, field.name, field.value);
        assert_eq!(found.len(), 1, "{field:?} in\n{text}");
        assert!(found[0].starts_with("xdp_server_"), "{found:?}");
        assert!(found[0].contains("{worker=\"0\",queue=\"7\""), "{found:?}");
        count += 1;
    }
    assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), count, "and nothing else");
}

#[test]
fn every_counter_of_the_master_is_exposed_once() {
    let numbered = MasterStats::numbered();
    let text = text(families_of_master(&numbered));
    for field in numbered.fields() {
        assert_eq!(samples(&text, field.name, field.value).len(), 1, "{field:?} in\n{text}");
    }
    assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), numbered.fields().count());
    assert!(text.contains("xdp_server_master_time_seconds_total{regime=\"waiting\"} "), "{text}");
}

#[test]
fn names_of_master_and_workers_differ() {
    let mut names: Vec<String> = families_of_workers(&[WorkerStats::default()], &[])
        .into_iter()
        .chain(families_of_master(&MasterStats::default()))
        .map(|family| format!("{} {:?}", family.name, family.unit))
        .collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "{names:?}");
}

#[test]
fn names_units_and_labels_are_those_of_the_ecosystem() {
    let worker = WorkerStats {
        rx_packets: 11,
        tx_bytes: 12,
        rx_kernel_drops: 13,
        connections: 14,
        waiting_ns: 1_500_000_000,
        tx_blocked: 15,
        ..Default::default()
    };
    let text = text(families_of_workers(&[worker, WorkerStats::default()], &[Some(3), None]));
    for line in [
        "# TYPE xdp_server_received_packets counter",
        "xdp_server_received_packets_total{worker=\"0\",queue=\"3\"} 11",
        "xdp_server_received_packets_total{worker=\"1\"} 0",
        "# UNIT xdp_server_sent_bytes bytes",
        "xdp_server_sent_bytes_total{worker=\"0\",queue=\"3\"} 12",
        "xdp_server_drops_total{worker=\"0\",queue=\"3\",cause=\"rx_kernel_drops\"} 13",
        "# TYPE xdp_server_connections gauge",
        "xdp_server_connections{worker=\"0\",queue=\"3\"} 14",
        "# UNIT xdp_server_time_seconds seconds",
        "xdp_server_time_seconds_total{worker=\"0\",queue=\"3\",regime=\"waiting\"} 1.5",
        "xdp_server_transmit_blocked_total{worker=\"0\",queue=\"3\"} 15",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
    }
}
