//! Stateless reset (RFC 9000, section 10.3): how a server that lost a connection tells its peer at once.
//!
//! quiche announces one token and understands resets, but never sends one. The token of a connection ID is a
//! keyed hash of it, so that a restarted server, or the wrong worker, can make the same token from the stray
//! packet alone. The key outlives restarts.

use super::cid;
use crate::net::MAX_TX_PAYLOAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::time::{Duration, Instant};

/// Smallest packet that can be a reset: one byte of header, four that look like a packet number, the token.
const MIN_RESET: usize = 21;

/// Size of the resets sent, in bytes: looks like a small 1-RTT packet with our 17-byte connection IDs.
/// Shorter ones can be told from real packets; longer ones only cost.
const RESET_LEN: usize = 43;

/// Resets per second and worker, and the burst: enough for 65,536 stale clients of a restarted server to hear
/// within about their first minute of retries; too few to make a flood of forged packets worthwhile.
const RESETS_PER_SECOND: u32 = 1000;

/// Makes reset tokens and reset packets.
pub struct Resetter {
    key: Hmac<Sha256>,
    /// Resets that may be sent now.
    credit: f64,
    refilled: Instant,
}

impl Resetter {
    /// With the server's reset key.
    pub fn new(key: &[u8; 32], now: Instant) -> Self {
        let key = Hmac::new_from_slice(key).expect("HMAC takes a key of any length");
        Self { key, credit: f64::from(RESETS_PER_SECOND), refilled: now }
    }

    /// The token that belongs to connection ID `id`.
    pub fn token(&self, id: &[u8; cid::LEN]) -> [u8; 16] {
        let mut mac = self.key.clone();
        mac.update(id);
        let digest = mac.finalize().into_bytes();
        digest[..16].try_into().expect("SHA-256 is longer than 16 bytes")
    }

    /// Writes the reset that answers a 1-RTT packet of `received` bytes to `id`, and returns its length.
    /// `None` if the packet is too small to be answered with a smaller one (so that two endpoints never reset
    /// each other in a loop), or too many were sent of late.
    pub fn answer(
        &mut self,
        id: &[u8; cid::LEN],
        received: usize,
        now: Instant,
        out: &mut [u8; MAX_TX_PAYLOAD],
    ) -> Option<usize> {
        let len = RESET_LEN.min(received.checked_sub(1)?);
        if len < MIN_RESET || !self.allowed(now) {
            return None;
        }
        let (random, token) = out[..len].split_at_mut(len - 16);
        getrandom::fill(random).ok()?;
        random[0] = 0x40 | (random[0] & 0x3f); // a short header's fixed bits
        token.copy_from_slice(&self.token(id));
        Some(len)
    }

    fn allowed(&mut self, now: Instant) -> bool {
        let rate = f64::from(RESETS_PER_SECOND);
        let elapsed: Duration = now.saturating_duration_since(self.refilled);
        self.refilled = now;
        self.credit = (self.credit + elapsed.as_secs_f64() * rate).min(rate);
        let allowed = self.credit >= 1.0;
        if allowed {
            self.credit -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_are_smaller_than_what_they_answer_and_carry_the_token() {
        let now = Instant::now();
        let mut resetter = Resetter::new(&[1; 32], now);
        let (id, mut out) = ([7; cid::LEN], [0; MAX_TX_PAYLOAD]);
        for received in 0..100 {
            match resetter.answer(&id, received, now, &mut out) {
                None => assert!(received <= MIN_RESET, "{received} bytes could have been answered"),
                Some(len) => {
                    assert!((MIN_RESET..received).contains(&len));
                    assert_eq!(out[len - 16..len], resetter.token(&id));
                    assert_eq!(out[0] >> 6, 0b01);
                }
            }
        }
        assert_ne!(resetter.token(&id), resetter.token(&[8; cid::LEN]));
        assert_ne!(resetter.token(&id), Resetter::new(&[2; 32], now).token(&id));
    }

    #[test]
    fn resets_are_rate_limited_and_the_limit_refills() {
        let start = Instant::now();
        let mut resetter = Resetter::new(&[1; 32], start);
        let mut out = [0; MAX_TX_PAYLOAD];
        let mut burst = |now| {
            (0..3 * RESETS_PER_SECOND)
                .filter(|_| resetter.answer(&[7; cid::LEN], 60, now, &mut out).is_some())
                .count()
        };
        assert_eq!(burst(start), RESETS_PER_SECOND as usize);
        assert_eq!(burst(start), 0);
        assert_eq!(burst(start + Duration::from_millis(100)), RESETS_PER_SECOND as usize / 10);
    }
}
