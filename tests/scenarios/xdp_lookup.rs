//! The socket lookup program in a namespace: who gets a connection for a VIP, and who is refused.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use gateway_common::abi::{Counter, GROUPS, SLOTS_PER_GROUP};
use gateway_tests::object::fixture::{DELETED, LISTENING, SHARED, VIP, set_up_loopback, tables};
use gateway_tests::object::{Object, fresh_namespace};

/// Port of the proxy's own socket on loopback.
const OWN: u16 = 39_001;

#[test]
fn xdp_lookup_gives_vips_to_the_proxy_and_nothing_else() {
    fresh_namespace().unwrap();
    set_up_loopback(&[VIP, SHARED, DELETED]).unwrap();
    let mut tables = tables();
    for vip in tables.vips.iter_mut() {
        // The VIP that listens is served by the last group, the other one by a group without sockets.
        vip.group = if vip.key.port == LISTENING.to_be_bytes() {
            GROUPS as u16 - 1
        } else {
            3
        };
    }
    let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, OWN)).unwrap();
    let host = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 22)).unwrap();
    let mut object = Object::load().unwrap();
    object.write(&tables).unwrap();
    object.set_proxy_port(OWN).unwrap();
    // Not the first slot: an empty one is skipped.
    object
        .set_socket(GROUPS * SLOTS_PER_GROUP - 3, &proxy)
        .unwrap();
    object.attach_lookup().unwrap();

    let served = connect(&mut object, VIP, LISTENING);
    assert_eq!(served, (None, vec![Counter::LookupRedirected]));
    assert_eq!(
        proxy.accept().unwrap().0.local_addr().unwrap(),
        SocketAddrV4::new(VIP.into(), LISTENING).into()
    );

    let refused = Some(ErrorKind::ConnectionRefused);
    assert_eq!(
        connect(&mut object, VIP, 80),
        (refused, vec![Counter::LookupNoSocket]),
        "group without sockets"
    );
    assert_eq!(
        connect(&mut object, VIP, 22),
        (refused, vec![Counter::LookupRefused]),
        "the host's service on a VIP"
    );
    assert_eq!(
        connect(&mut object, VIP, OWN),
        (refused, vec![Counter::LookupRefused]),
        "the proxy's port on a VIP"
    );
    assert_eq!(
        connect(&mut object, DELETED, 80),
        (refused, vec![Counter::LookupRefused]),
        "a deleted VIP"
    );
    assert_eq!(
        connect(&mut object, [127, 0, 0, 1], OWN),
        (refused, vec![Counter::LookupLoopback]),
        "the proxy directly"
    );
    assert_eq!(
        connect(&mut object, SHARED, 22),
        (None, vec![]),
        "the host's service on a shared address"
    );
    assert_eq!(
        connect(&mut object, [127, 0, 0, 1], 22),
        (None, vec![]),
        "the host's service"
    );
    drop(proxy);
    assert_eq!(
        connect(&mut object, VIP, LISTENING),
        (refused, vec![Counter::LookupNoSocket]),
        "the proxy is gone"
    );
    drop(host);
}

/// How a connection fails, if it does, and what was counted.
fn connect(object: &mut Object, address: [u8; 4], port: u16) -> (Option<ErrorKind>, Vec<Counter>) {
    let before = object.counters().unwrap();
    let to = SocketAddrV4::new(Ipv4Addr::from(address), port);
    let failure = TcpStream::connect_timeout(&to.into(), Duration::from_secs(5))
        .err()
        .map(|error| error.kind());
    (failure, object.counted_since(&before).unwrap())
}
