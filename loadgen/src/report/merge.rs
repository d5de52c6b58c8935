//! One report out of several: of the processes of a machine, or of several machines' result files.
//!
//! Counts are summed, distributions are added bucket by bucket and the percentiles taken again from the
//! sum. What cannot be summed says how it is made, below.

use std::collections::BTreeMap;

use super::{Distributions, PhaseTimes, Report};
use crate::rss::QueueShare;

/// Where the reports that are merged come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Processes of one machine, which may use this many CPUs together.
    OneMachine {
        /// How many.
        cpus: u64,
    },
    /// Machines of their own.
    Machines,
}

/// Why reports do not belong to one run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// There was nothing to merge.
    #[error("there is no result to merge")]
    Nothing,
    /// Different loads.
    #[error("{one} is of an {first}, and {other} of an {second}: figures of different loads do not add up")]
    Different {
        /// Id of a report.
        one: String,
        /// Its load.
        first: String,
        /// Id of another.
        other: String,
        /// Its load.
        second: String,
    },
}

impl Report {
    /// The report of a run that several processes did together, called `id`.
    ///
    /// # Errors
    /// They are not of one run.
    pub fn merge(id: &str, reports: &[Self], origin: Origin) -> Result<Self, MergeError> {
        let first = reports.first().ok_or(MergeError::Nothing)?;
        let kind = |report: &Self| format!("{:?} loop of {}", report.load_loop, report.scenario.name());
        if let Some(other) = reports.iter().find(|report| kind(report) != kind(first)) {
            return Err(MergeError::Different {
                one: first.id.clone(),
                first: kind(first).to_lowercase(),
                other: other.id.clone(),
                second: kind(other).to_lowercase(),
            });
        }
        let started = reports.iter().map(|report| report.started_unix_ms).min().unwrap_or_default();
        let mut merged = Self {
            id: id.to_owned(),
            target: first.target.clone(),
            scenario: first.scenario,
            load_loop: first.load_loop,
            started_unix_ms: started,
            phases: phases(reports, started),
            queues: queues(reports),
            verified: verified(reports),
            ..Self::default()
        };
        let mut times = Distributions::default();
        for report in reports {
            merged.add(report, &mut times);
        }
        let client = &mut merged.client;
        if let Origin::OneMachine { cpus } = origin {
            // The processes may share CPUs, and the namespace's counter is everybody's.
            client.cpus = cpus;
            client.udp_sndbuf_errors =
                reports.iter().map(|report| report.client.udp_sndbuf_errors).max().unwrap_or_default();
        }
        let busy: f64 =
            reports.iter().map(|report| report.client.cpu_share * report.client.cpus as f64).sum();
        client.cpu_share = busy / client.cpus.max(1) as f64;
        let kb = |report: &Self| report.client.kb_per_client * report.connections as f64;
        client.kb_per_client = reports.iter().map(kb).sum::<f64>() / merged.connections.max(1) as f64;
        merged.set_times(times);
        Ok(merged)
    }

    /// Adds what can be added.
    fn add(&mut self, other: &Self, times: &mut Distributions) {
        self.processes += other.processes.max(1);
        self.partial |= other.partial;
        self.interrupted |= other.interrupted;
        self.clients += other.clients;
        self.watchers += other.watchers;
        self.connections += other.connections;
        // Their peaks may have been at different times: an upper bound.
        self.connections_peak += other.connections_peak;
        self.failed += other.failed;
        for (cause, count) in &other.failures_by_cause {
            *self.failures_by_cause.entry(cause.clone()).or_default() += count;
        }
        self.pixels_sent += other.pixels_sent;
        self.pixels_sent_datagram += other.pixels_sent_datagram;
        self.pixels_sent_frame += other.pixels_sent_frame;
        self.pixels_unsent += other.pixels_unsent;
        self.pixels_acked += other.pixels_acked;
        self.pixels_rejected += other.pixels_rejected;
        self.pixels_sent_run += other.pixels_sent_run;
        // Each has the server's count of what all of them painted.
        self.pixels_applied = self.pixels_applied.max(other.pixels_applied);
        self.pixels_proven = self.pixels_proven.max(other.pixels_proven);
        self.diff_datagrams += other.diff_datagrams;
        self.records_applied += other.records_applied;
        self.gaps += other.gaps;
        self.repairs += other.repairs;
        self.unconfirmed += other.unconfirmed;
        self.handshakes += other.handshakes;
        self.rebinds += other.rebinds;
        self.ramp_s = self.ramp_s.max(other.ramp_s);
        self.duration_s = self.duration_s.max(other.duration_s);
        self.pixels_per_s += other.pixels_per_s;
        self.handshakes_per_s += other.handshakes_per_s;
        times.latency_us.add(&other.histograms.latency_us);
        times.handshake_us.add(&other.histograms.handshake_us);
        times.ping_us.add(&other.histograms.ping_us);
        times.late_us.add(&other.histograms.late_us);
        let (ours, theirs) = (&mut self.client, &other.client);
        ours.cpus += theirs.cpus;
        ours.max_thread_cpu_share = ours.max_thread_cpu_share.max(theirs.max_thread_cpu_share);
        ours.rss_mb += theirs.rss_mb;
        ours.unsent += theirs.unsent;
        ours.udp_rcvbuf_errors += theirs.udp_rcvbuf_errors;
        ours.udp_sndbuf_errors += theirs.udp_sndbuf_errors;
        ours.ports_exhausted += theirs.ports_exhausted;
        let said_by = |text: &String| format!("{}: {text}", other.id);
        self.limited_by_client =
            self.limited_by_client.take().or(other.limited_by_client.as_ref().map(said_by));
        self.verify_error = self.verify_error.take().or(other.verify_error.as_ref().map(said_by));
        // The most telling kind of failure counts: it is the first in the order of `Failure`.
        if other.failure.is_some_and(|failure| self.failure.is_none_or(|ours| failure < ours)) {
            (self.failure, self.error) = (other.failure, other.error.as_ref().map(said_by));
        }
    }
}

/// Verified if all that were asked to verify did.
fn verified(reports: &[Report]) -> Option<bool> {
    reports.iter().filter_map(|report| report.verified).reduce(|one, other| one && other)
}

/// Each stage from when the first entered it until the last left it.
fn phases(reports: &[Report], started: u64) -> Vec<PhaseTimes> {
    let mut merged: Vec<PhaseTimes> = Vec::new();
    for report in reports {
        let offset = (report.started_unix_ms - started) as f64 / 1000.0;
        for phase in &report.phases {
            let (start_s, end_s) = (phase.start_s + offset, phase.end_s + offset);
            match merged.iter_mut().find(|known| known.name == phase.name) {
                Some(known) => {
                    (known.start_s, known.end_s) = (known.start_s.min(start_s), known.end_s.max(end_s))
                }
                None => merged.push(PhaseTimes { name: phase.name, start_s, end_s }),
            }
        }
    }
    merged
}

/// The sum for each queue, if any report knows of queues.
fn queues(reports: &[Report]) -> Option<Vec<QueueShare>> {
    let mut sums = BTreeMap::new();
    for load in reports.iter().filter_map(|report| report.queues.as_ref()).flatten() {
        let sum =
            sums.entry(load.queue).or_insert(QueueShare { queue: load.queue, connections: 0, ports: 0 });
        sum.connections += load.connections;
        sum.ports += load.ports;
    }
    (!sums.is_empty()).then(|| sums.into_values().collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::{ClientLoad, Failure, Loop};
    use crate::sample::Stage;

    fn report(id: &str, started_unix_ms: u64, ms: &[u64]) -> Report {
        let mut times = Distributions::default();
        ms.iter().for_each(|&ms| times.latency_us.record(Duration::from_millis(ms)));
        let client = ClientLoad { cpus: 1, cpu_share: 0.5, kb_per_client: 30.0, ..ClientLoad::default() };
        let mut report = Report {
            id: id.to_owned(),
            started_unix_ms,
            clients: 10,
            connections: 10,
            pixels_sent: 100,
            pixels_per_s: 50.0,
            pixels_applied: Some(200),
            failures_by_cause: [("reset".to_owned(), 1)].into(),
            phases: vec![PhaseTimes { name: Stage::Window, start_s: 1.0, end_s: 3.0 }],
            queues: Some(vec![QueueShare { queue: 0, connections: 10, ports: 2 }]),
            client,
            ..Report::default()
        };
        report.set_times(times);
        report
    }

    #[test]
    fn counts_sum_and_percentiles_are_those_of_all_samples() {
        let (one, other) = (report("a", 1000, &[1, 2, 3]), report("b", 1500, &[1000; 97]));
        let merged = Report::merge("both", &[one.clone(), other], Origin::OneMachine { cpus: 2 }).unwrap();
        assert_eq!((merged.clients, merged.pixels_sent, merged.pixels_applied), (20, 200, Some(200)));
        assert_eq!((merged.pixels_per_s, merged.processes), (100.0, 2));
        assert_eq!(merged.failures_by_cause["reset"], 2);
        assert_eq!(merged.latency_ms, report("c", 0, &[&[1, 2, 3][..], &[1000; 97]].concat()).latency_ms);
        assert_eq!((merged.client.cpu_share, merged.client.kb_per_client), (0.5, 30.0));
        assert_eq!(merged.phases, [PhaseTimes { name: Stage::Window, start_s: 1.0, end_s: 3.5 }]);
        assert_eq!(merged.queues, Some(vec![QueueShare { queue: 0, connections: 20, ports: 4 }]));
        // And what was merged can be merged again.
        let again = Report::merge("all", &[merged, one], Origin::Machines).unwrap();
        assert_eq!((again.processes, again.clients, again.latency_ms.count), (3, 30, 103));
    }

    #[test]
    fn the_most_telling_failure_counts_and_says_whose_it_is() {
        let mut reports = [report("a", 0, &[]), report("b", 0, &[]), report("c", 0, &[])];
        reports[1].fail(Failure::Other, "too many".to_owned());
        reports[2].fail(Failure::ServerDied, "lost".to_owned());
        (reports[0].verified, reports[1].verified) = (Some(true), Some(false));
        let merged = Report::merge("all", &reports, Origin::Machines).unwrap();
        assert_eq!((merged.failure, merged.error.as_deref()), (Some(Failure::ServerDied), Some("c: lost")));
        assert_eq!(merged.verified, Some(false));
    }

    #[test]
    fn different_loads_are_not_merged() {
        let closed = Report { load_loop: Loop::Closed, ..report("b", 0, &[]) };
        let error = Report::merge("x", &[report("a", 0, &[]), closed], Origin::Machines).unwrap_err();
        assert!(error.to_string().contains("closed loop of paint"), "{error}");
        assert_eq!(Report::merge("x", &[], Origin::Machines).unwrap_err(), MergeError::Nothing);
    }
}
