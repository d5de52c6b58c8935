//! Numbers, times, hashes and colours as text. Pure functions.

use std::fmt::Write as _;

use time::OffsetDateTime;

/// Terminal attributes that are used here (ECMA-48, SGR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    Bold = 1,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// `text` in that ink, if `colour` is wanted.
pub(crate) fn paint(colour: bool, ink: Ink, text: &str) -> String {
    match colour {
        true => format!("\x1b[{}m{text}\x1b[0m", ink as u8),
        false => text.to_owned(),
    }
}

/// A count in at most five characters (below a quintillion): exact below 10,000, then three digits and k, M,
/// G, T, P, E.
pub(super) fn short(count: u64) -> String {
    if count < 10_000 {
        return count.to_string();
    }
    let (mut value, mut unit) = (count as f64 / 1e3, 'k');
    for larger in ['M', 'G', 'T', 'P', 'E'] {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1e3, larger);
    }
    let decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{unit}")
}

/// A count in full, in groups of three digits.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share of 0 to 1 in per cent; a dash where there is none.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.0}%", share * 100.0))
}

/// `2025-01-31T12:34:56Z`.
pub(super) fn rfc3339(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!("{}T{}Z", date(at), clock(at))
}

/// `2025-01-31 12:34 UTC`.
pub(crate) fn minute(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!("{} {:02}:{:02} UTC", date(at), at.hour(), at.minute())
}

/// `12:34:56`, in the offset that `at` has.
pub(super) fn clock(at: OffsetDateTime) -> String {
    format!("{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second())
}

fn date(at: OffsetDateTime) -> String {
    format!("{:04}-{:02}-{:02}", at.year(), u8::from(at.month()), at.day())
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes everything
        text
    })
}

/// Base64 (RFC 4648, section 4), with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            match i <= group.len() {
                true => text.push(char::from(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stay_short() {
        for (count, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (28_549, "28.5k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (1_234_567, "1.23M"),
            (9_995_000, "10.0M"),
            (480_000_000_000, "480G"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(short(count), text);
            assert!(short(count).len() <= 5);
        }
    }

    #[test]
    fn full_counts_are_grouped() {
        for (count, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (12_345, "12,345"), (1_234_567, "1,234,567")]
        {
            assert_eq!(grouped(count), text);
        }
    }

    #[test]
    fn base64_and_hex_are_those_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
        assert_eq!(hex(&[0x00, 0x0f, 0xa5]), "000fa5");
    }

    #[test]
    fn times_are_utc() {
        let at = OffsetDateTime::from_unix_timestamp(1_735_689_599).unwrap();
        assert_eq!(rfc3339(at), "2024-12-31T23:59:59Z");
        assert_eq!(
            minute(at.to_offset(time::UtcOffset::from_hms(5, 30, 0).unwrap())),
            "2024-12-31 23:59 UTC"
        );
        assert_eq!(clock(at), "23:59:59");
    }

    #[test]
    fn shares_and_colours() {
        assert_eq!(
            (percent(Some(0.834)), percent(Some(1.0)), percent(None)),
            ("83%".into(), "100%".into(), "-".into())
        );
        assert_eq!(paint(true, Ink::Red, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(paint(false, Ink::Red, "x"), "x");
    }
}
