//! The indirection table of receive side scaling: from a hash's low bits to a queue.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Entries of a table given as `even:N` without their number: what many NICs have. For numbers of queues that
/// are powers of two any larger one means the same; for others it must be the NIC's own.
const COMMON_LENGTH: usize = 128;
/// Most entries. The largest tables of today's NICs have 2048; only there to refuse slips.
const LONGEST: usize = 16_384;

/// Which queue each value of the hash's low bits leads to; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u16>")]
pub struct Table(Vec<u16>);

/// Why a text or list is no table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Neither a list nor `even:...`.
    #[error(
        "an RSS table is a list of queues, 0,1,2,3,0,1,2,3, or even:N for {COMMON_LENGTH} entries that lead \
         to queues 0 to N-1 in turn, or even:N:LENGTH"
    )]
    Syntax,
    /// The low bits of a hash cannot index it.
    #[error(
        "the entries of an RSS table are a power of two, at most {LONGEST}, as ethtool -x shows; not {0}"
    )]
    Length(usize),
}

impl Table {
    /// The queue that a packet with this hash arrives on.
    pub fn queue(&self, hash: u32) -> u16 {
        self.0[hash as usize & (self.0.len() - 1)]
    }

    /// All queues that it leads to, in order.
    pub fn queues(&self) -> Vec<u16> {
        let mut queues = self.0.clone();
        queues.sort_unstable();
        queues.dedup();
        queues
    }
}

impl TryFrom<Vec<u16>> for Table {
    type Error = TableError;

    fn try_from(entries: Vec<u16>) -> Result<Self, TableError> {
        match entries.len() {
            length if length.is_power_of_two() && length <= LONGEST => Ok(Self(entries)),
            length => Err(TableError::Length(length)),
        }
    }
}

impl FromStr for Table {
    type Err = TableError;

    fn from_str(text: &str) -> Result<Self, TableError> {
        let number = |digits: &str| digits.parse::<u16>().map_err(|_| TableError::Syntax);
        let Some(even) = text.strip_prefix("even:") else {
            return text
                .split(',')
                .map(|queue| number(queue.trim()))
                .collect::<Result<Vec<_>, _>>()?
                .try_into();
        };
        let (queues, length) = match even.split_once(':') {
            None => (number(even)?, COMMON_LENGTH),
            Some((queues, length)) => (number(queues)?, usize::from(number(length)?)),
        };
        if queues == 0 {
            return Err(TableError::Syntax);
        }
        (0..queues).cycle().take(length).collect::<Vec<_>>().try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_bits_choose_the_entry() {
        let table: Table = "3,0, 7,0".parse().unwrap();
        assert_eq!([0, 1, 2, 3, 4, 0xffff_fffe].map(|hash| table.queue(hash)), [3, 0, 7, 0, 3, 7]);
        assert_eq!(table.queues(), [0, 3, 7]);
    }

    #[test]
    fn even_tables_are_ethtools() {
        let table: Table = "even:47".parse().unwrap();
        assert_eq!(table.queues(), (0..47).collect::<Vec<_>>());
        assert_eq!([46, 47, 127, 128].map(|hash| table.queue(hash)), [46, 0, 33, 0]);
        assert_eq!("even:47:512".parse::<Table>().unwrap().queue(128), 34);
    }

    #[test]
    fn what_is_no_table() {
        for (text, error) in [
            ("", TableError::Syntax),
            ("even", TableError::Syntax),
            ("even:0", TableError::Syntax),
            ("even:4:x", TableError::Syntax),
            ("0,1,65536,3", TableError::Syntax),
            ("0,1,2", TableError::Length(3)),
            ("even:4:0", TableError::Length(0)),
            ("even:4:32768", TableError::Length(32_768)),
        ] {
            assert_eq!(text.parse::<Table>(), Err(error), "{text}");
        }
    }
}
