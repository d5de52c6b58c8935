//! What an interface says of XDP.

use super::{Veth, in_namespace, load};
use crate::{Mode, inspect};

#[test]
fn a_program_is_seen_with_its_name_and_mode() {
    in_namespace(|| {
        let veth = Veth::new(2);
        let idle = inspect(veth.right).expect("netlink answers");
        assert_eq!((idle.attached, idle.zero_copy), (None, false));
        for mode in [Mode::Native, Mode::Generic] {
            let mut program = load();
            program.attach(veth.right, mode).expect("it attaches");
            let attached = inspect(veth.right).unwrap().attached.expect("a program is there");
            assert_eq!((attached.name.as_deref(), attached.mode), (Some("xdp_quic"), Some(mode)));
            assert_eq!(inspect(veth.left).unwrap().attached, None);
        }
    });
}

/// Since kernel 6.3: veth has a driver that can, loopback has none.
#[test]
fn drivers_say_what_they_can() {
    in_namespace(|| {
        let veth = Veth::new(2);
        assert!(inspect(veth.right).unwrap().native);
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
        assert!(!inspect(loopback).unwrap().native);
    });
}
