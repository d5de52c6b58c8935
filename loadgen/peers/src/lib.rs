//! xdp-server beside its peers: a client that saturates a server, and two servers to compare with.
//!
//! The programs of this crate: `saturate`, the client, which prepares encrypted packets ahead so that it can
//! send them faster than any server takes them; `peer-quiche` and `peer-quinn`, servers of the same protocol
//! that do the same work on quiche in a plain epoll loop, and on quinn. `scripts/bench_peers.sh` runs them in
//! turns. They share nothing with xdp-server but the `canvas` crate, which all of them speak with.
//!
//! | module | what it holds |
//! |---|---|
//! | [`udp`], [`packet`] | sending and receiving in batches: UDP sockets, whole Ethernet frames |
//! | [`client`] | the client: connecting many, preparing, blasting, searching, watching |
//! | [`session`] | what both servers do besides QUIC |
//! | [`serve`] | what both servers are told, and what they say |
//! | [`quiche_peer`], [`quinn_peer`] | the servers |

pub mod client;
pub mod packet;
pub mod quiche_peer;
pub mod quinn_peer;
pub mod serve;
pub mod session;
pub mod udp;
