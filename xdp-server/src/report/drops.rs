//! What counts as a drop, and why it was dropped.
//!
//! A drop is something that came in or was to go out, and did not get there: a packet, a client datagram, a
//! pixel, a diff or a tick, each counted in its own unit. What a client is told about (a pixel outside of the
//! canvas) is no drop.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::stats::WorkerStats;

/// One reason to drop.
#[derive(Debug)]
pub(super) struct Cause {
    /// The counter's name, as in JSON.
    pub(super) name: &'static str,
    /// A few characters for the live line.
    label: &'static str,
    of: fn(&WorkerStats) -> u64,
}

/// The causes: counters of [`WorkerStats`] that do not overlap, and their labels.
macro_rules! causes {
    ($($name:ident $label:literal,)+) => {
        &[$(Cause { name: stringify!($name), label: $label, of: |stats| stats.$name },)+]
    };
}

const CAUSES: &[Cause] = causes! {
    rx_truncated "truncated",
    rx_not_ours "not ours",
    rx_too_long "too long",
    rx_kernel_drops "kernel",
    invalid_descriptors "descriptor",
    tx_errors "tx error",
    drop_malformed "malformed",
    drop_unknown_id "unknown id",
    drop_not_initial "not initial",
    drop_quic "quic",
    drop_full "table full",
    drop_newcomers "newcomers",
    strays_dropped "stray",
    pixels_overload "overload",
    datagrams_malformed "bad dgram",
    datagrams_unknown "dgram type",
    diffs_over_budget "budget",
    diffs_congested "congestion",
};

/// Whether the counter of this name is a cause of drops.
pub(crate) fn is_drop(counter: &str) -> bool {
    CAUSES.iter().any(|cause| cause.name == counter)
}

/// Drops by cause, largest first, none of them zero. In JSON an object of counters by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Drops(Vec<(&'static Cause, u64)>);

impl Drops {
    /// Those counted between two snapshots of (a sum over) workers.
    pub(super) fn between(before: &WorkerStats, now: &WorkerStats) -> Drops {
        let delta = |cause: &Cause| (cause.of)(now).saturating_sub((cause.of)(before));
        let mut drops: Vec<_> =
            CAUSES.iter().map(|cause| (cause, delta(cause))).filter(|drop| drop.1 > 0).collect();
        drops.sort_by_key(|drop| std::cmp::Reverse(drop.1));
        Drops(drops)
    }

    /// All of them.
    pub(super) fn sum(&self) -> u64 {
        self.0.iter().map(|drop| drop.1).fold(0, u64::saturating_add)
    }

    /// Label and count of each.
    pub(super) fn labelled(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(cause, count)| (cause.label, *count))
    }
}

impl Serialize for Drops {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (cause, count) in &self.0 {
            map.serialize_entry(cause.name, count)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_cause_comes_first_and_zeros_are_left_out() {
        let before = WorkerStats { rx_kernel_drops: 100, drop_quic: 5, ..Default::default() };
        let now = WorkerStats { rx_kernel_drops: 103, drop_quic: 5, diffs_congested: 7, ..before };
        let drops = Drops::between(&before, &now);
        assert_eq!(drops.labelled().collect::<Vec<_>>(), [("congestion", 7), ("kernel", 3)]);
        assert_eq!(drops.sum(), 10);
        let json = serde_json::to_string(&drops).unwrap();
        assert_eq!(json, r#"{"diffs_congested":7,"rx_kernel_drops":3}"#);
    }

    #[test]
    fn every_cause_reads_the_counter_that_it_names() {
        let json = serde_json::to_value(WorkerStats::default()).unwrap();
        for cause in CAUSES {
            let mut one = json.clone();
            one[cause.name] = 1.into(); // of a counter that exists
            assert_eq!(one.as_object().unwrap().len(), json.as_object().unwrap().len(), "{}", cause.name);
            assert!(cause.label.len() <= 11, "{}", cause.label);
        }
    }
}
