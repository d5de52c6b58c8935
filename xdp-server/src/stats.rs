//! Counters that cross threads: written by their one owner, read by whoever reports.
//!
//! A worker (or the master) counts in plain integers on its own cache lines, and copies them into its
//! [`WorkerCell`] about once a millisecond, in housekeeping: the packet path touches no shared line. A reader
//! takes a snapshot whenever it likes; fields of one snapshot may be a millisecond apart from each other.

use std::sync::atomic::{AtomicU64, Ordering};

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
        /// Bytes of them.
        rx_bytes,
        /// Of `rx_packets`: through the ordinary socket beside AF_XDP.
        rx_kernel_packets,
        /// UDP payloads sent.
        tx_packets,
        /// Bytes of them.
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
        /// Of those: by idle timeout.
        idle_timeouts,
        /// Connections refused with SERVER_FULL.
        refused_full,
        /// Connections closed for PROTOCOL_VIOLATION.
        protocol_violations,
        /// Connections closed for RATE_LIMITED.
        rate_limited,
        /// Messages received: PAINT datagrams and control frames.
        messages,
        /// Pixels received in them.
        pixels_received,
        /// Pixels rejected (outside the canvas or palette, before HELLO, overload).
        pixels_rejected,
        /// Of those: for want of room in the paint queue.
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
        /// Of those: turns that found something to do.
        busy_turns,
        /// Nanoseconds of turns that found something to do.
        working_ns,
        /// Nanoseconds of turns that did not, and of sleep.
        waiting_ns,
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
        /// Of those: ticks in which some pixel changed.
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
}
