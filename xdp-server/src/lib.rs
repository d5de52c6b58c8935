//! stub
pub mod link;
pub mod master;
pub mod net;
pub mod quic;
pub mod session;
pub mod stats;
pub mod worker;
