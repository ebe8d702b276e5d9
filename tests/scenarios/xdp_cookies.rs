//! SYN cookies with real peers: a client's kernel takes our answer, and the listener's kernel takes its ACK.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use gateway_common::abi::{Counter, Row, cpu_state};
use gateway_tests::netns::{ip, wait_local};
use gateway_tests::object::fixture::{
    LISTENING, ME, OWN_MAC, VIP, VIP6, address, address6, change_node, mac, tables,
};
use gateway_tests::object::{Object, fresh_namespace};
use gateway_tests::packet::{Ends, Frame, Load, SYN};
use gateway_user::datapath::gratuitous::transmit;
use socket2::{Domain, Socket, Type};

use crate::xdp_neutral::{FAR6, Far, PATIENCE, index, without_dad};
use crate::xdp_verdicts::jiffies;

/// Backlog of the listener: it is full with as many half-open connections, or one more, as kernels differ.
const QUEUE: u8 = 2;

#[test]
fn xdp_cookies_end_in_connections() {
    fresh_namespace().unwrap();
    let far = Far::new();
    let mut object = Object::load().unwrap();
    let mut base = tables();
    base.jiffies = jiffies(&mut object, &base);
    base.rows.fill(Row::new(ME, false, [(0, false); 3]));
    change_node(&mut base, ME, |own| own.ifindex = index("up0"));
    (base.config.syn_limit, base.config.window_jiffies) = (1, 1_000_000);
    {
        let mut words = base.cpu_state.borrow_mut();
        let slot = cpu_state::SYNS as usize;
        (words[slot], words[slot + 1]) = (base.jiffies, 1);
    }
    object.write(&base).unwrap();
    object.attach("up0", true).unwrap();
    set_up(&far);
    for vip in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
        let listener = listen(vip);
        // What its SYN was counted as.
        let opened = |listener: &Socket| {
            let before = object.counters().unwrap();
            connect(&far, vip, listener);
            let mut counted = object.counted_since(&before).unwrap();
            counted.retain(|counter| matches!(counter, Counter::OwnSyn | Counter::SynCookie));
            counted
        };
        syncookies(1);
        assert_eq!(opened(&listener), [Counter::OwnSyn], "room in the queue");
        half_open(&far, vip);
        assert_eq!(opened(&listener), [Counter::SynCookie], "the queue is full");
        assert_eq!(opened(&listener), [Counter::SynCookie], "and stays so");
        drop(listener);
        let listener = listen(vip);
        syncookies(2);
        assert_eq!(opened(&listener), [Counter::SynCookie], "always");
        syncookies(0);
        assert_eq!(opened(&listener), [Counter::OwnSyn], "never");
    }
}

fn syncookies(mode: u8) {
    std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", mode.to_string()).unwrap();
}

/// VIPs on loopback, as the agent does it; neighbours are found by our own answers.
fn set_up(far: &Far) {
    without_dad("up0");
    far.run(|| without_dad("far0"));
    let [a, b, c, d, e, f] = OWN_MAC;
    for words in [
        "link set lo up".to_owned(),
        format!("link set up0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        "link set up0 up".to_owned(),
        format!("addr add {}/24 dev up0", IpAddr::from(address(ME))),
        format!("addr add {}/64 dev up0 nodad", IpAddr::from(address6(ME))),
        format!("addr add {}/32 dev lo", IpAddr::from(VIP)),
        format!("addr add {}/128 dev lo nodad", IpAddr::from(VIP6)),
    ] {
        ip(&words).unwrap();
    }
    std::fs::write("/proc/sys/net/ipv4/conf/up0/arp_ignore", "1").unwrap();
    for words in [
        "link set far0 up",
        "addr add 192.0.2.99/24 dev far0",
        "addr add 2001:db8:1::63/64 dev far0 nodad",
        "route add 203.0.113.10/32 dev far0",
        "route add 2001:db8:113::10/128 dev far0",
    ] {
        far.ip(words);
    }
    wait_local([address6(ME), VIP6].map(IpAddr::from)).unwrap();
    far.run(|| wait_local([FAR6]).unwrap());
    // Else no checksum would be looked at.
    far.run(|| {
        let done = Command::new("ethtool")
            .args(["-K", "far0", "tx", "off"])
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    });
}

fn listen(vip: IpAddr) -> Socket {
    let domain = if vip.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let listener = Socket::new(domain, Type::STREAM, None).unwrap();
    listener.set_reuse_address(true).unwrap();
    listener
        .bind(&SocketAddr::new(vip, LISTENING).into())
        .unwrap();
    listener.listen(QUEUE.into()).unwrap();
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    listener
}

/// A whole connection: what is said is heard on both sides.
fn connect(far: &Far, vip: IpAddr, listener: &Socket) {
    let client = far.start(move || {
        let to = SocketAddr::new(vip, LISTENING);
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"is it you?").unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        heard
    });
    let (accepted, _) = listener.accept().unwrap();
    let mut accepted = TcpStream::from(accepted);
    accepted.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut heard = [0; 10];
    accepted.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"is it you?");
    accepted.write_all(b"it is").unwrap();
    drop(accepted);
    assert_eq!(client.recv_timeout(PATIENCE).unwrap(), "it is");
}

/// Fills the listener's queue by SYNs of addresses that never answer.
fn half_open(far: &Far, vip: IpAddr) {
    for last in 0..=QUEUE {
        let load = Load::Tcp {
            ports: [40_000, LISTENING],
            flags: SYN,
            numbers: [1, 0],
            options: Vec::new(),
            data: Vec::new(),
        };
        let mut from6 = address6(ME);
        from6[15] = 200 + last;
        let ends = if vip.is_ipv4() {
            Ends::V4([192, 0, 2, 200 + last], VIP)
        } else {
            Ends::V6(from6, VIP6)
        };
        let syn = Frame::new(OWN_MAC, mac(99), ends, load).build();
        far.run(move || transmit(index("far0"), &syn).unwrap());
    }
}
