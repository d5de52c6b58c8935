//! Connection IDs that carry their own route (canvas/1, section 6).
//!
//! Seventeen bytes: the worker's index in the clear, then one AES-128 block that hides the slot in that
//! worker's table, the slot's generation, the serial number of the ID on its connection, and the worker's
//! index once more as a check. Any worker, and a reuseport program, routes a packet by byte 0; the owner
//! finds the connection by decrypting one block: no table is searched. Who lacks the key can neither make up
//! an ID nor link two IDs of one connection.

use aes::Aes128;
use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};

/// Length of a server connection ID in bytes: the worker's index and one AES block.
pub const LEN: usize = 17;

/// What a connection ID says once decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the worker that owns the connection.
    pub worker: u8,
    /// Slot in that worker's connection table.
    pub slot: u32,
    /// Generation of the slot: tells a former tenant's ID from the present one's.
    pub generation: u32,
    /// Serial number of this ID on its connection; what makes two IDs of one connection differ.
    pub serial: u32,
}

/// Encrypts and decrypts connection IDs. One key for all workers, kept across restarts.
#[derive(Clone)]
pub struct CidCodec(Aes128);

impl CidCodec {
    /// A codec with the server's connection-ID key.
    pub fn new(key: &[u8; 16]) -> Self {
        Self(Aes128::new(key.into()))
    }

    /// The connection ID for `route`.
    pub fn encode(&self, route: &Route) -> [u8; LEN] {
        let mut id = [0; LEN];
        id[0] = route.worker;
        id[1..5].copy_from_slice(&route.slot.to_le_bytes());
        id[5..9].copy_from_slice(&route.generation.to_le_bytes());
        id[9..13].copy_from_slice(&route.serial.to_le_bytes());
        id[13..17].copy_from_slice(&u32::from(route.worker).to_le_bytes());
        let (_, block) = id.split_at_mut(1);
        self.0.encrypt_block(block.into());
        id
    }

    /// The route in `id`, or `None` if this server never issued it.
    pub fn decode(&self, id: &[u8; LEN]) -> Option<Route> {
        let mut block: [u8; 16] = [0; 16];
        block.copy_from_slice(&id[1..]);
        self.0.decrypt_block((&mut block).into());
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        (word(12) == u32::from(id[0])).then(|| Route {
            worker: id[0],
            slot: word(0),
            generation: word(4),
            serial: word(8),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decode_undoes_encode(key: [u8; 16], worker: u8, slot: u32, generation: u32, serial: u32) {
            let codec = CidCodec::new(&key);
            let route = Route { worker, slot, generation, serial };
            prop_assert_eq!(codec.decode(&codec.encode(&route)), Some(route));
        }

        #[test]
        fn a_changed_id_is_not_ours(key: [u8; 16], at in 0usize..LEN, flip in 1u8..) {
            let codec = CidCodec::new(&key);
            let mut id = codec.encode(&Route { worker: 3, slot: 1, generation: 2, serial: 3 });
            id[at] ^= flip;
            // 32 check bits: a false accept has odds of 1 in 4 billion.
            prop_assert_eq!(codec.decode(&id), None);
        }
    }

    #[test]
    fn ids_of_one_connection_share_only_the_worker() {
        let codec = CidCodec::new(&[7; 16]);
        let id = |serial| codec.encode(&Route { worker: 9, slot: 5, generation: 1, serial });
        let same = id(0).iter().zip(id(1)).filter(|(a, b)| **a == *b).count();
        assert!(id(0)[0] == 9 && id(1)[0] == 9 && same < 6, "{same} bytes in common");
    }

    /// The layout of the page, checked against AES-128 of FIPS 197, appendix B key schedule aside: an
    /// all-zero route of worker 0 is the zero block, whose encryption under the zero key is published (NIST
    /// GFSbox, CAVS).
    #[test]
    fn layout_is_one_aes_block_after_the_worker() {
        let codec = CidCodec::new(&[0; 16]);
        let id = codec.encode(&Route { worker: 0, slot: 0, generation: 0, serial: 0 });
        assert_eq!(
            id,
            [
                0x00, 0x66, 0xe9, 0x4b, 0xd4, 0xef, 0x8a, 0x2c, 0x3b, 0x88, 0x4c, 0xfa, 0x59, 0xca, 0x34,
                0x2b, 0x2e
            ]
        );
    }
}
