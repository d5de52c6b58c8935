//! Counters that cross threads: written by their one owner, read by whoever reports.
//!
//! A worker (or the master) counts in plain integers on its own cache lines, and copies them into its
//! [`WorkerCell`] about once a millisecond, in housekeeping: the packet path touches no shared line. A reader
//! takes a snapshot whenever it likes; fields of one snapshot may be a millisecond apart from each other.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter of a block, for who reports all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it counts: one or two sentences. Those of gauges begin with `Gauge:`.
    pub doc: &'static str,
    /// Its value.
    pub value: u64,
}

/// Declares a block of `u64` counters, its atomic twin and the copies between them.
macro_rules! counters {
    ($(#[$meta:meta])* $name:ident, $(#[$cell_meta:meta])* $cell:ident { $($(#[doc = $doc:literal])+ $field:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: u64,)+ }

        $(#[$cell_meta])*
        #[derive(Debug, Default)]
        #[repr(align(128))] // two lines: adjacent-line prefetch must not make writers share
        pub struct $cell { $($field: AtomicU64,)+ }

        impl $cell {
            /// Makes `now` visible to readers. Owner only.
            pub fn publish(&self, now: &$name) { $(self.$field.store(now.$field, Ordering::Relaxed);)+ }

            /// What the owner last published.
            pub fn snapshot(&self) -> $name { $name { $($field: self.$field.load(Ordering::Relaxed),)+ } }
        }

        impl $name {
            /// Adds `other` field by field: the sum over workers.
            pub fn add(&mut self, other: &$name) { $(self.$field = self.$field.wrapping_add(other.$field);)+ }

            /// All counters, in the order in which they are declared.
            pub fn fields(&self) -> impl Iterator<Item = Field> {
                [$(Field {
                    name: stringify!($field),
                    doc: concat!($($doc),+).trim_ascii(),
                    value: self.$field,
                }),+].into_iter()
            }

            /// Values that all differ: 1 for the first counter, 2 for the second...
            #[cfg(test)]
            pub(crate) fn numbered() -> $name {
                let mut numbers = 1..;
                $name { $($field: numbers.next().unwrap(),)+ }
            }
        }
    };
}

counters! {
    /// What one worker did since start. Gauges are marked; all else only grows.
    WorkerStats,
    /// The published copy of [`WorkerStats`].
    WorkerCell {
        /// UDP payloads received.
        rx_packets,
        /// Bytes of UDP payloads received.
        rx_bytes,
        /// UDP payloads received through the ordinary socket beside AF_XDP; `rx_packets` has them, too.
        rx_kernel_packets,
        /// UDP payloads sent.
        tx_packets,
        /// Bytes of UDP payloads sent.
        tx_bytes,
        /// Times that no transmit buffer was free.
        tx_blocked,
        /// Packets that the kernel refused to send.
        tx_errors,
        /// Trains that the kernel refused as one message; their packets were then sent one by one.
        tx_trains_refused,
        /// Times that an operation found the submission queue full (io_uring).
        sq_full,
        /// Frames dropped: truncated, or lengths that contradict each other.
        rx_truncated,
        /// Frames dropped: not UDP to us.
        rx_not_ours,
        /// Payloads dropped: too long.
        rx_too_long,
        /// Dropped by the kernel for want of room (receive ring or socket buffer).
        rx_kernel_drops,
        /// Times that the kernel found the fill ring empty.
        fill_ring_empty,
        /// Descriptors that the kernel rejected.
        invalid_descriptors,
        /// Payloads dropped: no QUIC packet can be read from them.
        drop_malformed,
        /// Payloads dropped: connection ID never issued, or stale.
        drop_unknown_id,
        /// Payloads dropped: to a new connection, but not a valid Initial (too short, wrong type).
        drop_not_initial,
        /// Payloads dropped: QUIC refused them (failed authentication and the like).
        drop_quic,
        /// Initials dropped: no room even to refuse politely.
        drop_full,
        /// Initials of strangers dropped: too many waited to be accepted, or for too long.
        drop_newcomers,
        /// Packets received for another worker's connection and handed to it.
        strays_out,
        /// Packets taken over from other workers.
        strays_in,
        /// Strays dropped because the owner's inbox was full.
        strays_dropped,
        /// Version Negotiation packets sent.
        version_negotiations,
        /// Stateless resets sent.
        stateless_resets,
        /// Handshakes begun.
        handshakes_started,
        /// Handshakes completed.
        handshakes_completed,
        /// Gauge: connections in the table, handshakes included.
        connections,
        /// Gauge: connections past HELLO that receive diffs.
        subscribers,
        /// Connections ended, for whatever reason.
        connections_closed,
        /// Connections ended by idle timeout; `connections_closed` has them, too.
        idle_timeouts,
        /// Connections refused with SERVER_FULL.
        refused_full,
        /// Connections closed for PROTOCOL_VIOLATION.
        protocol_violations,
        /// Connections closed for RATE_LIMITED.
        rate_limited,
        /// Connections closed because the client's address changed more often than QUIC can follow.
        moved_too_often,
        /// Messages received: PAINT datagrams and control frames.
        messages,
        /// Pixels received in messages.
        pixels_received,
        /// Pixels rejected (outside the canvas or palette, before HELLO, overload).
        pixels_rejected,
        /// Pixels rejected for want of room in the paint queue; `pixels_rejected` has them, too.
        pixels_overload,
        /// Client datagrams dropped as malformed.
        datagrams_malformed,
        /// Client datagrams dropped for their unknown type.
        datagrams_unknown,
        /// DIFF payloads handed to QUIC (datagrams, or frames for clients without).
        diffs_sent,
        /// DIFF payloads not sent: the client was past its byte budget.
        diffs_over_budget,
        /// DIFF payloads not sent or discarded unsent: the client's connection could not take them
        /// (congestion).
        diffs_congested,
        /// VERSIONS payloads handed to QUIC.
        versions_sent,
        /// Tile images sent (snapshot, view, repair).
        tiles_sent,
        /// Gauge: 1 when the drain has told every client.
        drained,
        /// Turns of the worker's loop.
        turns,
        /// Turns of the worker's loop that found something to do.
        busy_turns,
        /// Turns that received packets: `rx_packets` by this is the mean batch.
        rx_batches,
        /// Of those: turns that received as many as a turn may, so that more were probably waiting.
        rx_batches_full,
        /// Nanoseconds with nothing to do, sleep included.
        waiting_ns,
        /// Nanoseconds spent receiving on established connections.
        receiving_ns,
        /// Nanoseconds spent on packets of handshakes.
        handshaking_ns,
        /// Nanoseconds spent handing ticks to subscribers.
        fanning_out_ns,
        /// Nanoseconds spent sealing and sending packets.
        sending_ns,
        /// Nanoseconds with something to send and no transmit buffer for it.
        blocked_ns,
        /// Nanoseconds spent on all else: timers, housekeeping, the master where it shares the thread.
        other_ns,
    }
}

impl WorkerStats {
    /// Nanoseconds that were not spent waiting for something to do. Being blocked counts as work: a worker
    /// that cannot send is no idle one.
    pub fn working_ns(&self) -> u64 {
        self.receiving_ns
            + self.handshaking_ns
            + self.fanning_out_ns
            + self.sending_ns
            + self.blocked_ns
            + self.other_ns
    }
}

counters! {
    /// What the canvas master did since start.
    MasterStats,
    /// The published copy of [`MasterStats`].
    MasterCell {
        /// Pixels applied to the canvas; equally the commit position.
        pixels_applied,
        /// Ticks published.
        ticks,
        /// Ticks in which some pixel changed.
        ticks_with_changes,
        /// Pixels in the diffs: those that were painted, each once a tick.
        pixels_changed,
        /// Ticks that some worker's full queue refused.
        ticks_refused,
        /// Nanoseconds spent draining and encoding.
        working_ns,
        /// Nanoseconds spent with nothing to do.
        waiting_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_counters_come_back_and_add_up() {
        let cell = WorkerCell::default();
        let mine = WorkerStats { rx_packets: 7, waiting_ns: u64::MAX, ..Default::default() };
        cell.publish(&mine);
        assert_eq!(cell.snapshot(), mine);
        let mut sum = mine;
        sum.add(&WorkerStats { rx_packets: 3, waiting_ns: 1, ..Default::default() });
        assert_eq!((sum.rx_packets, sum.waiting_ns), (10, 0));
    }

    #[test]
    fn fields_are_all_there_is() {
        let numbered = WorkerStats::numbered();
        let json = serde_json::to_value(numbered).unwrap();
        let fields: Vec<Field> = numbered.fields().collect();
        assert_eq!(fields.len(), json.as_object().unwrap().len());
        for (field, number) in fields.iter().zip(1..) {
            assert_eq!((&json[field.name], field.value), (&number.into(), number), "{field:?}");
            assert!(field.doc.ends_with('.') && !field.doc.starts_with(' '), "{field:?}");
        }
    }
}
