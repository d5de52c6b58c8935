//! The colours that a pixel can have: 2 to 256 RGB entries, sent once in WELCOME. A pixel is an index.

use thiserror::Error;

/// A number of colours that a palette cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a palette of {0} colours cannot be: it must have 2 to 256")]
pub struct PaletteError(
    /// The colours that were given.
    pub usize,
);

/// The list of colours; always 2 to 256 of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Palette(Vec<[u8; 3]>);

impl Palette {
    /// A palette of these colours, each red, green, blue.
    ///
    /// # Errors
    /// When there are fewer than 2 or more than 256.
    pub fn new(colours: Vec<[u8; 3]>) -> Result<Self, PaletteError> {
        if (2..=256).contains(&colours.len()) { Ok(Self(colours)) } else { Err(PaletteError(colours.len())) }
    }

    /// The colours in the order of their index.
    pub fn colours(&self) -> &[[u8; 3]] {
        &self.0
    }

    /// True when a pixel may have this index.
    pub fn contains(&self, colour: u8) -> bool {
        usize::from(colour) < self.0.len()
    }
}

/// Thirty-two colours in the manner of the public pixel canvases: from light to dark within a hue, white
/// first, so that a new canvas, which is all zeros, is white.
impl Default for Palette {
    fn default() -> Self {
        Self(
            [
                0xff_ff_ff, 0xd4_d7_d9, 0x89_8d_90, 0x51_52_52, 0x00_00_00, 0xff_b4_70, 0x9c_69_26,
                0x6d_48_2f, //
                0xff_99_aa, 0xff_38_81, 0xde_10_7f, 0x6d_00_1a, 0xbe_00_39, 0xff_45_00, 0xff_a8_00,
                0xff_d6_35, //
                0xff_f8_b8, 0x7e_ed_56, 0x00_cc_78, 0x00_a3_68, 0x00_cc_c0, 0x00_9e_aa, 0x00_75_6f,
                0x51_e9_f4, //
                0x36_90_ea, 0x24_50_a4, 0x94_b3_ff, 0x6a_5c_ff, 0x49_3a_c1, 0xe4_ab_ff, 0xb4_4a_c0,
                0x81_1e_9f,
            ]
            .map(|rgb: u32| [(rgb >> 16) as u8, (rgb >> 8) as u8, rgb as u8])
            .to_vec(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        for bad in [0, 1, 257] {
            let error = Palette::new(vec![[0; 3]; bad]).unwrap_err();
            assert_eq!(error, PaletteError(bad));
            assert!(error.to_string().contains("2 to 256"));
        }
        for good in [2, 256] {
            assert_eq!(Palette::new(vec![[7; 3]; good]).unwrap().colours().len(), good);
        }
    }

    #[test]
    fn default_has_32_different_colours_and_starts_white() {
        let palette = Palette::default();
        let mut colours = palette.colours().to_vec();
        assert_eq!(colours.len(), 32);
        assert_eq!(colours[0], [255, 255, 255]);
        colours.sort_unstable();
        colours.dedup();
        assert_eq!(colours.len(), 32);
        assert!(palette.contains(31));
        assert!(!palette.contains(32));
    }
}
