//! The frames that the program saw, by outcome.
//!
//! The kernel side counts for each CPU on its own; here they are read and summed. The outcomes and their
//! order are defined once, in `bpf/xdp_quic.bpf.c`, and reach Rust by the generated skeleton.

use libbpf_rs::{MapCore, MapFlags};

use crate::error::Error;
use crate::skeleton::types::outcome;

/// Frames by outcome, since the program was loaded. Every frame that the interface received while the
/// program was attached is in exactly one; all but [`redirected`](Self::redirected) went to the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handed to the AF_XDP socket of their queue. The socket may still have dropped them, if its fill ring
    /// was empty or its receive ring full: its own statistics tell.
    pub redirected: u64,
    /// Ours, but no socket is registered for the receive queue that they came in on.
    pub no_socket: u64,
    /// Neither IPv4 nor IPv6, such as ARP.
    pub not_ip: u64,
    /// A second VLAN tag, or a service tag (802.1ad).
    pub vlan_depth: u64,
    /// IP, but not UDP.
    pub other_protocol: u64,
    /// IPv4 options, or an IPv6 extension header.
    pub ip_options: u64,
    /// Fragments of a UDP packet, the first ones too.
    pub fragment: u64,
    /// Ended before their headers, or before the length that these state.
    pub truncated: u64,
    /// The length fields of IP and UDP contradict each other.
    pub bad_length: u64,
    /// UDP to another port.
    pub other_port: u64,
    /// UDP to our port on an address that is not ours.
    pub other_address: u64,
    /// UDP to our port in an Ethernet broadcast or multicast frame.
    pub group_frame: u64,
}

// A new outcome in the program must get its field here.
const _: () = assert!(outcome::OUTCOMES.0 == 12);

impl Counters {
    pub(crate) fn read(map: &impl MapCore) -> Result<Self, Error> {
        let sum = |key: outcome| -> Result<u64, Error> {
            // One value for each CPU that the host could have. An array has every key, so never `None`.
            let values = map
                .lookup_percpu(&key.0.to_ne_bytes(), MapFlags::ANY)
                .map_err(|source| Error::Map { action: "read the packet counters", source })?;
            let values = values.iter().flatten().filter_map(|value| value.as_slice().try_into().ok());
            Ok(values.map(u64::from_ne_bytes).sum())
        };
        Ok(Self {
            redirected: sum(outcome::OUTCOME_REDIRECTED)?,
            no_socket: sum(outcome::OUTCOME_NO_SOCKET)?,
            not_ip: sum(outcome::OUTCOME_NOT_IP)?,
            vlan_depth: sum(outcome::OUTCOME_VLAN_DEPTH)?,
            other_protocol: sum(outcome::OUTCOME_OTHER_PROTOCOL)?,
            ip_options: sum(outcome::OUTCOME_IP_OPTIONS)?,
            fragment: sum(outcome::OUTCOME_FRAGMENT)?,
            truncated: sum(outcome::OUTCOME_TRUNCATED)?,
            bad_length: sum(outcome::OUTCOME_BAD_LENGTH)?,
            other_port: sum(outcome::OUTCOME_OTHER_PORT)?,
            other_address: sum(outcome::OUTCOME_OTHER_ADDRESS)?,
            group_frame: sum(outcome::OUTCOME_GROUP_FRAME)?,
        })
    }
}
