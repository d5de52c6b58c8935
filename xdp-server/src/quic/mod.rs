//! QUIC around quiche: which packet belongs to which connection, and what to answer to those that belong to
//! none.
//!
//! Nothing here sees a file descriptor or a canvas. quiche itself does the rest: TLS, loss recovery, streams.

pub mod cid;
pub mod config;
pub mod header;
pub mod hot;
pub mod reset;
pub mod table;
pub mod tls;
pub mod wheel;
