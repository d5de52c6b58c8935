//! The addresses of an interface, and the program's set of them.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use libbpf_rs::{MapCore, MapFlags};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;

use crate::error::Error;

/// A key of the program's map: an IPv6 address in network order, IPv4 as `::ffff:a.b.c.d`.
type Key = [u8; 16];

fn key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn is_unicast(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(broadcast || address.is_multicast() || address.is_unspecified())
}

/// Makes `addresses` the keys of `map`, additions first.
pub(crate) fn replace(map: &impl MapCore, addresses: &[IpAddr]) -> Result<(), Error> {
    // Canonical, so that the mapped forms of 0.0.0.0 and of multicast addresses are seen through too.
    if let Some(&address) = addresses.iter().find(|address| !is_unicast(address.to_canonical())) {
        return Err(Error::NotUnicast { address });
    }
    let wanted: HashSet<Key> = addresses.iter().copied().map(key).collect();
    // Old and new ones are in the map together for a moment.
    let most = map.max_entries() as usize / 2;
    if wanted.len() > most {
        return Err(Error::TooManyAddresses { given: wanted.len(), most });
    }
    let stale: Vec<Vec<u8>> =
        map.keys().filter(|old| !wanted.iter().any(|key| key.as_slice() == old)).collect();
    for key in &wanted {
        map.update(key, &[0], MapFlags::ANY)
            .map_err(|source| Error::Map { action: "add an address to the XDP program", source })?;
    }
    for key in &stale {
        map.delete(key)
            .map_err(|source| Error::Map { action: "remove an address from the XDP program", source })?;
    }
    Ok(())
}

/// The IPv4 and IPv6 addresses of the interface named `ifname`, link-local ones included, each once, in the
/// calling thread's network namespace. Those of VLAN interfaces on top of it are not among them.
///
/// # Errors
/// `NotFound` when there is no such interface; else what the system says.
pub fn interface_addresses(ifname: &str) -> io::Result<Vec<IpAddr>> {
    if if_nametoindex(ifname).is_err() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no network interface `{ifname}`; list them with: ip -brief link"),
        ));
    }
    let mut found = Vec::new();
    for entry in getifaddrs()? {
        // An IPv4 address with a label is listed under that: `eth0:1` is an address of `eth0`.
        let name = entry.interface_name.split(':').next();
        let Some(address) = entry.address.filter(|_| name == Some(ifname)) else { continue };
        let address = if let Some(v4) = address.as_sockaddr_in() {
            IpAddr::V4(v4.ip())
        } else if let Some(v6) = address.as_sockaddr_in6() {
            IpAddr::V6(v6.ip())
        } else {
            continue; // the link-layer address
        };
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}
