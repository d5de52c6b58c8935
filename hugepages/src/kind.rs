//! The names of things: kinds of pages, what a request may say about them, and sizes as people read them.

use std::{fmt, str::FromStr, sync::OnceLock};

/// Bytes in a 2 MiB page: one entry of the second-lowest page table on x86-64 and, with 4 KiB pages, on
/// arm64.
pub(crate) const MIB2: usize = 2 << 20;
/// Bytes in a 1 GiB page, one level above.
pub(crate) const GIB1: usize = 1 << 30;

/// How many times its own length a region may take when [`Pages::Auto`] rounds it up to whole pages (a plain
/// ratio). 2 means that a region of 512 MiB may take a 1 GiB page and one of 1 MiB a 2 MiB page. Larger burns
/// scarce pages on little memory: 1 GiB pages are few and cannot be split. Smaller leaves a region that
/// almost fills a page, such as 900 MiB, on 450 small ones.
const AUTO_MAX_STRETCH: usize = 2;

/// A kind of pages: one rung of the ladder. The order is the ladder's, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageKind {
    /// Explicit huge pages of 1 GiB, from the kernel's pool.
    Huge1G,
    /// Explicit huge pages of 2 MiB, from the kernel's pool.
    Huge2M,
    /// Transparent huge pages: ordinary memory that the kernel puts on 2 MiB pages where it can.
    Transparent,
    /// Pages of the base size, 4 KiB on x86-64.
    Plain,
}

impl PageKind {
    /// All kinds, best first.
    pub const ALL: [Self; 4] = [Self::Huge1G, Self::Huge2M, Self::Transparent, Self::Plain];

    /// Bytes in one page. Regions of this kind have a multiple of it as length and as address.
    pub fn size(self) -> usize {
        match self {
            Self::Huge1G => GIB1,
            Self::Huge2M | Self::Transparent => MIB2,
            Self::Plain => base_page_size(),
        }
    }

    /// Whether pages of this kind come from a pool that the operator fills ([`crate::HugePages`]).
    pub fn is_explicit(self) -> bool {
        matches!(self, Self::Huge1G | Self::Huge2M)
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transparent => f.pad("THP"),
            _ => f.pad(&Bytes(self.size()).to_string()),
        }
    }
}

impl FromStr for PageKind {
    type Err = UnknownPages;

    fn from_str(s: &str) -> Result<Self, UnknownPages> {
        match s {
            "1g" => Ok(Self::Huge1G),
            "2m" => Ok(Self::Huge2M),
            "thp" => Ok(Self::Transparent),
            "plain" => Ok(Self::Plain),
            _ => Err(UnknownPages(s.to_owned())),
        }
    }
}

/// Which pages a request wants, and whether it may get others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pages {
    /// The best that can be had, leaving out kinds of which more than half would be rounding.
    #[default]
    Auto,
    /// This kind, or else the best one below it.
    AtMost(PageKind),
    /// This kind, or else an error that says what to type.
    Exactly(PageKind),
}

impl Pages {
    /// Whether `kind` is one of the rungs that a region of `len` bytes would try.
    pub fn tries(self, kind: PageKind, len: usize) -> bool {
        self.rungs(len).any(|rung| rung == kind)
    }

    /// The rungs to try for `len` bytes, best first; at least one.
    pub(crate) fn rungs(self, len: usize) -> impl Iterator<Item = PageKind> {
        PageKind::ALL.into_iter().filter(move |&kind| match self {
            Self::Auto => {
                kind == PageKind::Plain
                    || len.next_multiple_of(kind.size()) <= len.saturating_mul(AUTO_MAX_STRETCH)
            }
            Self::AtMost(first) => kind >= first,
            Self::Exactly(only) => kind == only,
        })
    }
}

/// The command line's words: a kind by name is meant exactly.
impl FromStr for Pages {
    type Err = UnknownPages;

    fn from_str(s: &str) -> Result<Self, UnknownPages> {
        if s == "auto" { Ok(Self::Auto) } else { s.parse().map(Self::Exactly) }
    }
}

/// A word that names no pages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no kind of pages; use auto, 1g, 2m, thp or plain")]
pub struct UnknownPages(pub String);

/// Bytes in a base page of this kernel.
fn base_page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    // SAFETY: `sysconf` takes no pointers and has no preconditions.
    *SIZE.get_or_init(|| usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096))
}

/// A number of bytes as people read it: `1.5 GiB`, `128 MiB`, `4 KiB`, `17 B`; at most one decimal, rounded
/// down.
pub(crate) struct Bytes(pub usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            n if n >= 1 << 30 => (1 << 30, "GiB"),
            n if n >= 1 << 20 => (1 << 20, "MiB"),
            n if n >= 1 << 10 => (1 << 10, "KiB"),
            _ => (1, "B"),
        };
        match self.0 % unit * 10 / unit {
            0 => write!(f, "{} {name}", self.0 / unit),
            tenths => write!(f, "{}.{tenths} {name}", self.0 / unit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_can_be_asked_about() {
        assert!(Pages::Auto.tries(PageKind::Huge2M, MIB2) && !Pages::Auto.tries(PageKind::Huge1G, MIB2));
        assert!(
            Pages::Auto.tries(PageKind::Huge1G, GIB1 / 2)
                && !Pages::Auto.tries(PageKind::Huge1G, GIB1 / 2 - 1)
        );
        assert!(Pages::AtMost(PageKind::Huge1G).tries(PageKind::Huge1G, 1));
        assert!(!Pages::AtMost(PageKind::Transparent).tries(PageKind::Huge2M, MIB2));
    }

    fn rungs(pages: Pages, len: usize) -> Vec<PageKind> {
        pages.rungs(len).collect()
    }

    #[test]
    fn auto_leaves_out_pages_that_would_be_mostly_rounding() {
        use PageKind::*;
        assert_eq!(rungs(Pages::Auto, 1), [Plain]);
        assert_eq!(rungs(Pages::Auto, (1 << 20) - 1), [Plain]);
        assert_eq!(rungs(Pages::Auto, 1 << 20), [Huge2M, Transparent, Plain]);
        assert_eq!(rungs(Pages::Auto, (512 << 20) - 1), [Huge2M, Transparent, Plain]);
        assert_eq!(rungs(Pages::Auto, 512 << 20), PageKind::ALL);
        assert_eq!(rungs(Pages::Auto, GIB1 + 1), PageKind::ALL);
    }

    #[test]
    fn named_rungs_are_tried_whatever_they_waste() {
        use PageKind::*;
        assert_eq!(rungs(Pages::AtMost(Huge1G), 1), PageKind::ALL);
        assert_eq!(rungs(Pages::AtMost(Transparent), 1), [Transparent, Plain]);
        assert_eq!(rungs(Pages::Exactly(Huge1G), 1), [Huge1G]);
    }

    #[test]
    fn words_and_names() {
        assert_eq!("auto".parse(), Ok(Pages::Auto));
        for (word, kind, name) in [
            ("1g", PageKind::Huge1G, "1 GiB"),
            ("2m", PageKind::Huge2M, "2 MiB"),
            ("thp", PageKind::Transparent, "THP"),
        ] {
            assert_eq!(word.parse(), Ok(kind));
            assert_eq!(word.parse(), Ok(Pages::Exactly(kind)));
            assert_eq!(kind.to_string(), name);
        }
        assert_eq!("plain".parse(), Ok(PageKind::Plain));
        assert_eq!("".parse::<Pages>(), Err(UnknownPages(String::new())));
        assert!("auto".parse::<PageKind>().is_err());
        let error = "4m".parse::<Pages>().unwrap_err().to_string();
        assert!(error.contains("\"4m\"") && error.contains("auto, 1g, 2m, thp or plain"), "{error}");
    }

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (MIB2, "2 MiB"),
            (MIB2 - 1, "1.9 MiB"),
            (GIB1 + GIB1 / 2, "1.5 GiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
