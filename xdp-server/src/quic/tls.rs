//! The settings of TLS that quiche leaves to BoringSSL: session tickets, and memory.
//!
//! quiche takes a BoringSSL context made here, and lends the TLS state of a connection. What is set:
//!
//! - *Tickets.* A client that comes back with one resumes: neither signature nor certificate, a third of the
//!   cost. The key that seals them is the same for all workers and kept across restarts, so that any worker
//!   takes the tickets of any other. The Diffie-Hellman exchange is made all the same: whoever steals the key
//!   cannot read recorded traffic. 0-RTT stays off: a replayed HELLO or PAINT would be obeyed.
//! - *Memory.* Once its handshake is over a connection needs no certificate, key or list of algorithms; by
//!   default BoringSSL keeps a copy of these settings for each connection.

use super::config::Connection;
use boring::error::ErrorStack;
use boring::ssl::{SslContextBuilder, SslMethod, SslRef};
use foreign_types_shared::ForeignTypeRef;

/// Length of the key of session tickets in bytes: name, HMAC key and AES key, 16 each, as BoringSSL has it.
pub const TICKET_KEY_LEN: usize = 48;

/// Tickets that a client gets with its handshake. Each costs a derivation, an encryption and some 200 bytes
/// in the packet; a client that comes back gets a new one. BoringSSL's 2 are for browsers, which open several
/// connections at a time.
const TICKETS: usize = 1;

/// A context for one worker, without certificate or key. Unlike quiche's own it loads no certificate
/// authorities, which only clients need.
///
/// # Errors
/// BoringSSL's, if it has no memory.
pub fn context() -> Result<SslContextBuilder, ErrorStack> {
    let context = SslContextBuilder::new(SslMethod::tls())?;
    // SAFETY: the pointer is the builder's own, which lives.
    let set = unsafe { boring_sys::SSL_CTX_set_num_tickets(context.as_ptr(), TICKETS) };
    if set == 1 { Ok(context) } else { Err(ErrorStack::get()) }
}

/// Makes BoringSSL free a connection's handshake settings when its handshake is complete. Call before the
/// first packet.
pub fn free_settings_after_handshake(quic: &mut Connection) {
    let tls: &mut SslRef = quic.as_mut();
    // SAFETY: the pointer is the connection's own TLS state, borrowed. What must not be called afterwards is
    // `SSL_clear`: quiche calls it for clients only, which are told of another version or to retry.
    unsafe { boring_sys::SSL_set_shed_handshake_config(tls.as_ptr(), 1) };
}
