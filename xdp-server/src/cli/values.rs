//! Values that are more than a number or a word: sizes, addresses, interface names, CPU lists. Each parser's
//! error says what is allowed; clap puts the flag's name in front.

use std::net::SocketAddr;

use super::settings::Metrics;
use crate::host::cpus;

/// Largest socket buffer, in bytes. The kernel keeps the doubled value in an `int` and clamps what is larger,
/// silently; a larger limit here would promise what it does not give.
const MAX_SOCKET_BUFFER: usize = 1 << 30;

/// Smallest socket buffer, in bytes: about two full packets with the kernel's overhead. Smaller ones cannot
/// even hold a client's first flight, which shows as handshakes that time out.
const MIN_SOCKET_BUFFER: usize = 4096;

/// Longest interface name, in bytes: the kernel's IFNAMSIZ less the closing zero.
const MAX_INTERFACE_NAME: usize = 15;

/// Parses a socket buffer's size: see [`size`].
pub(super) fn socket_buffer(text: &str) -> Result<usize, String> {
    match size(text)? {
        bytes @ MIN_SOCKET_BUFFER..=MAX_SOCKET_BUFFER => Ok(bytes),
        _ => Err("allowed is 4KiB to 1GiB".to_owned()),
    }
}

/// Parses a size in bytes with an optional suffix. Only powers of 1024, since that is what memory comes in;
/// `MB`, which half of the readers take for one and half for the other, is refused.
fn size(text: &str) -> Result<usize, String> {
    let bad = || "give bytes, or a number with KiB, MiB or GiB (K, M, G for short), such as 64MiB".to_owned();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim() {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return Err(bad()),
    };
    if digits.starts_with('+') {
        return Err(bad()); // which `parse` would take
    }
    let number: usize = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than memory can be".to_owned())
}

/// Parses the address to listen on. Port 0 is refused: every worker has a socket and the XDP program a filter
/// on one and the same port, which clients must know beforehand.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        "give ADDRESS:PORT with a numeric address, such as [::]:4433 (all, IPv4 too) or 192.0.2.1:4433"
            .to_owned()
    })?;
    match address.port() {
        0 => Err("port 0 stands for any port; clients must know it, so give 1 to 65535".to_owned()),
        _ => Ok(address),
    }
}

/// Parses where to serve metrics.
pub(super) fn metrics(text: &str) -> Result<Metrics, String> {
    if text == "off" {
        return Ok(Metrics::Off);
    }
    text.parse().map(Metrics::At).map_err(|_| {
        "give off, or ADDRESS:PORT with a numeric address, such as 127.0.0.1:9464 or [::]:9464 (all, IPv4 \
         too)"
            .to_owned()
    })
}

/// Parses an interface's name as the kernel would allow it, so that it is safe to use as one component of a
/// path.
pub(super) fn interface(text: &str) -> Result<String, String> {
    let allowed = |c: char| !c.is_whitespace() && c != '/' && c != ':';
    if (1..=MAX_INTERFACE_NAME).contains(&text.len())
        && text.chars().all(allowed)
        && text != "."
        && text != ".."
    {
        Ok(text.to_owned())
    } else {
        Err("an interface's name has 1 to 15 bytes, and no space, slash or colon; `ip link` lists them"
            .to_owned())
    }
}

/// The value of `--cpus`. A type of its own, since clap takes a bare `Vec` for an option that is given
/// several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CpuList(pub(super) Vec<usize>);

/// Parses `--cpus`.
pub(super) fn cpu_list(text: &str) -> Result<CpuList, String> {
    cpus::parse_list(text).map(CpuList).map_err(|error| error.to_string())
}

/// A token: HELLO has one byte for its length.
pub(super) fn token(text: &str) -> Result<String, String> {
    match text.len() {
        1..=255 => Ok(text.to_owned()),
        length => Err(format!("has {length} bytes; 1 to 255 are allowed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_bounded() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("64K", 65536),
            ("64k", 65536),
            ("3KiB", 3072),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1G", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "64MB", "64mb", "-1", "+1", "1.5M", "0x10", "64M64", "é"] {
            assert!(size(text).unwrap_err().contains("such as 64MiB"), "{text}");
        }
        assert!(size("18446744073709551615K").unwrap_err().contains("more than memory"));
        assert_eq!(socket_buffer("1GiB"), Ok(1 << 30));
        assert!(socket_buffer("1073741825").unwrap_err().contains("4KiB to 1GiB"));
        assert!(socket_buffer("4095").is_err());
    }

    #[test]
    fn listen_addresses_need_a_numeric_address_and_a_port() {
        assert_eq!(listen_address("[::]:4433").unwrap().to_string(), "[::]:4433");
        assert!(listen_address("192.0.2.1:1").is_ok());
        for text in [":4433", "4433", "localhost:4433", "::4433", "1.2.3.4:65536", ""] {
            assert!(listen_address(text).unwrap_err().contains("[::]:4433"), "{text}");
        }
        assert!(listen_address("[::]:0").unwrap_err().contains("1 to 65535"));
    }

    #[test]
    fn interface_names_are_one_path_component() {
        for name in ["eth0", "enp1s0f0np0", "veth-a.1"] {
            assert_eq!(interface(name).unwrap(), name);
        }
        for name in ["", "..", ".", "a/b", "eth 0", "eth0:1", "sixteen-bytes-xx"] {
            assert!(interface(name).is_err(), "{name}");
        }
    }
}
