//! What clients paint: PAINT datagrams of one random pixel.

use canvas::Geometry;
use canvas::codec::datagram::ClientDatagram;
use canvas::codec::{Entry, Pixel, Pixels};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Makes payloads; always the same ones, so that runs are alike.
pub struct Brush {
    geometry: Geometry,
    colours: u16,
    rng: SmallRng,
    seq: u32,
    payload: Vec<u8>,
}

impl Brush {
    /// A brush for a canvas of this shape: its size, and its number of colours.
    pub fn new((geometry, colours): (Geometry, u16)) -> Self {
        Self { geometry, colours, rng: SmallRng::seed_from_u64(1), seq: 0, payload: Vec::new() }
    }

    /// The next payload.
    pub fn next_payload(&mut self) -> &[u8] {
        let pixel = Pixel {
            x: self.rng.random_range(0..self.geometry.width()),
            y: self.rng.random_range(0..self.geometry.height()),
            colour: self.rng.random_range(0..self.colours) as u8,
        };
        self.payload.clear();
        let pixels = [pixel.to_wire()];
        ClientDatagram::Paint { seq: self.seq, pixels: Pixels::new(&pixels) }.encode(&mut self.payload);
        self.seq = self.seq.wrapping_add(1);
        &self.payload
    }
}
