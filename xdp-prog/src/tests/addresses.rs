//! The set of addresses: replaced as asked, refused when it makes no sense; and an interface's addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libbpf_rs::MapCore;

use super::{config, in_namespace, ip, load, require_root};
use crate::{Config, Error, XdpProgram, interface_addresses};

/// The program's set, as it is in the kernel, sorted.
fn set(program: &XdpProgram) -> Vec<IpAddr> {
    let address = |key: Vec<u8>| Ipv6Addr::from(<[u8; 16]>::try_from(key).expect("16 bytes")).to_canonical();
    let mut keys: Vec<IpAddr> = program.addresses.keys().map(address).collect();
    keys.sort_unstable();
    keys
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn the_set_is_replaced() {
    let program = load();
    assert_eq!(set(&program).len(), 2);

    let [first, second, third] = ["10.1.0.1", "fe80::1", "10.1.0.3"].map(address);
    program.set_addresses(&[first, second, first]).expect("duplicates are fine");
    assert_eq!(set(&program), ["10.1.0.1", "fe80::1"].map(address));

    let mapped = address("::ffff:10.1.0.1");
    program.set_addresses(&[mapped, third]).expect("mapped ones are fine");
    assert_eq!(set(&program), ["10.1.0.1", "10.1.0.3"].map(address));

    program.set_addresses(&[]).expect("none is fine");
    assert!(set(&program).is_empty());
}

#[test]
fn a_full_set_is_replaced_by_another_and_a_larger_one_refused() {
    let program = load();
    let addresses = |from: u32, count: u32| -> Vec<IpAddr> {
        (from..from + count).map(|number| Ipv4Addr::from(number).into()).collect()
    };
    program.set_addresses(&addresses(0x0a00_0000, 512)).expect("512 fit");
    program.set_addresses(&addresses(0x0b00_0000, 512)).expect("512 others fit");
    let full = set(&program);
    assert_eq!(full.len(), 512);
    let error = program.set_addresses(&addresses(0x0c00_0000, 513)).expect_err("513 do not fit");
    assert!(matches!(error, Error::TooManyAddresses { given: 513, most: 512 }), "{error}");
    assert_eq!(set(&program), full, "nothing changed");
}

#[test]
fn addresses_of_no_host_are_refused() {
    let program = load();
    let before = set(&program);
    for text in
        ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1", "::ffff:224.0.0.1", "255.255.255.255"]
    {
        let error = program.set_addresses(&[address("10.1.0.1"), address(text)]).expect_err(text);
        assert!(matches!(error, Error::NotUnicast { .. }), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!(set(&program), before, "nothing changed");
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    require_root();
    let refused = [
        Config { port: 0, ..config() },
        Config { queues: 0, ..config() },
        Config { addresses: vec![Ipv4Addr::UNSPECIFIED.into()], ..config() },
    ];
    for config in refused {
        let error = XdpProgram::load(&config).expect_err("it makes no sense");
        assert!(matches!(error, Error::InvalidConfig { .. } | Error::NotUnicast { .. }), "{error}");
    }
}

#[test]
fn a_failed_load_repeats_what_libbpf_said() {
    require_root();
    // More sockets than the kernel has memory for.
    let error = XdpProgram::load(&Config { queues: u32::MAX, ..config() }).expect_err("too large");
    assert!(matches!(&error, Error::Load { messages, .. } if messages.contains("xsks")), "{error}");
    assert!(error.to_string().contains("xsks"), "{error}");
}

#[test]
fn an_interface_has_its_own_addresses() {
    in_namespace(|| {
        ip("link add mine type veth peer name mine2");
        ip("addr add 10.1.0.1/24 dev mine");
        ip("addr add 10.1.0.2/24 dev mine label mine:second");
        ip("addr add fd00::1/64 dev mine nodad");
        ip("addr add 10.1.0.3/24 dev mine2");
        let mut found = interface_addresses("mine").expect("the interface exists");
        found.sort_unstable();
        assert_eq!(found, ["10.1.0.1", "10.1.0.2", "fd00::1"].map(address));

        let error = interface_addresses("min").expect_err("no such interface");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("`min`"), "{error}");
    });
}
