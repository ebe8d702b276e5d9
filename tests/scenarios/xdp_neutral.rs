//! Neutrality: what is nobody's business but its owner's leaves the program as it came, in test runs, live through native and
//! generic XDP, and as real protocols.

mod corpus;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use gateway_common::abi::Counter;
use gateway_common::verdict::Action;
use gateway_tests::netns::{ip, wait_local};
use gateway_tests::object::fixture::{ME, SHARED, SHARED6, address, address6, over_v6, tables};
use gateway_tests::object::{Form, HEADROOM, Object, Run, fresh_namespace};
use gateway_tests::packet::checksum;
use gateway_user::datapath::gratuitous::transmit;
use rustix::thread::gettid;
use socket2::{Domain, Protocol, Socket, Type};

pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The far host's address of IPv6.
pub(crate) const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x63);

#[test]
fn xdp_neutral_in_test_runs() {
    neutral_in_test_runs(Form::Xdp);
}

#[test]
fn tc_neutral_in_test_runs() {
    neutral_in_test_runs(Form::Tc);
}

fn neutral_in_test_runs(form: Form) {
    let frames = corpus::corpus();
    assert!(frames.len() >= 400, "only {} frames", frames.len());
    fresh_namespace().unwrap();
    let mut object = Object::of(form).unwrap();
    let mut base = tables();
    let mut ran = 0;
    let mut touched = Vec::new();
    for nodes in ["IPv4", "IPv6"] {
        if nodes == "IPv6" {
            over_v6(&mut base);
        }
        object.write(&base).unwrap();
        for (name, bytes) in &frames {
            if !object.takes(bytes, HEADROOM) {
                continue;
            }
            ran += 1;
            let tunnel =
                nodes == "IPv6" && name.starts_with("datagram to the tunnel's port, this host");
            let expected = Run {
                action: Action::Pass,
                bytes: bytes.clone(),
                counted: vec![Counter::NotOurs],
                cells: vec![Counter::NotOurs.slot()],
            };
            let run = object.run(bytes).unwrap();
            if run != expected && !tunnel {
                touched.push(format!("{name} (nodes over {nodes}): {run:02x?}"));
            }
        }
    }
    println!("{} frames, {ran} runs", frames.len());
    assert!(ran >= 800, "only {ran} runs");
    assert!(
        touched.is_empty(),
        "{} touched:\n{}",
        touched.len(),
        touched.join("\n")
    );
}

/// A host at the far end of this thread's interface `up0`, its own being `far0`: a thread in a namespace of its own.
pub(crate) struct Far {
    jobs: Sender<Box<dyn FnOnce() + Send>>,
}

impl Far {
    pub(crate) fn new() -> Self {
        let (jobs, todo) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = channel();
        thread::spawn(move || {
            fresh_namespace().unwrap();
            tell.send(gettid().as_raw_nonzero()).unwrap();
            for job in todo {
                job();
            }
        });
        let there = told.recv_timeout(PATIENCE).unwrap();
        ip(&format!(
            "link add up0 type veth peer name far0 netns {there}"
        ))
        .unwrap();
        Self { jobs }
    }

    /// Starts work there; its end is told.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::sync::mpsc::Receiver<T> {
        let (tell, told) = channel();
        self.jobs
            .send(Box::new(move || {
                let _nobody_waits = tell.send(work());
            }))
            .unwrap();
        told
    }

    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(work).recv_timeout(6 * PATIENCE).unwrap()
    }

    pub(crate) fn ip(&self, words: &'static str) {
        self.run(move || ip(words).unwrap());
    }
}

/// In this thread's namespace.
fn without_ipv6() {
    for which in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
    }
}

/// Until its link-local address is known to be its own, a host asks for no neighbour: an interface of this thread's
/// namespace takes it at once.
pub(crate) fn without_dad(interface: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad");
    std::fs::write(path, "0").unwrap();
}

/// What a packet socket shows of a frame: a tag at the front is told beside it.
fn shown(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]) && frame.len() >= 18 {
        frame.drain(12..16);
    }
    frame
}

fn live(generic: bool) {
    fresh_namespace().unwrap();
    without_ipv6();
    let far = Far::new();
    far.run(without_ipv6);
    let mut object = Object::load().unwrap();
    object.write(&tables()).unwrap();
    object.attach("up0", generic).unwrap();
    let everything = Protocol::from(i32::from(0x0003u16.to_be()));
    let mut tap = Socket::new(Domain::PACKET, Type::RAW, Some(everything)).unwrap();
    tap.set_read_timeout(Some(PATIENCE)).unwrap();
    ip("link set up0 up").unwrap();
    far.ip("link set far0 up");
    let frames: Vec<_> = corpus::corpus()
        .into_iter()
        .filter(|(_, bytes)| bytes.len() <= 1_514)
        .step_by(11)
        .collect();
    let before = object.counters().unwrap();
    for (name, bytes) in &frames {
        let sent = bytes.clone();
        far.run(move || transmit(index("far0"), &sent).unwrap());
        let mut seen = [0; 2_048];
        let length = tap
            .read(&mut seen)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(seen[..length], shown(bytes), "{name}");
    }
    println!("{} frames", frames.len());
    let counted = object.counted_since(&before).unwrap();
    assert_eq!(counted, vec![Counter::NotOurs; frames.len()]);
}

/// The index of an interface of this thread's namespace.
pub(crate) fn index(name: &str) -> u32 {
    let said = ip(&format!("-o link show dev {name}")).unwrap();
    said.split(':').next().unwrap().parse().unwrap()
}

#[test]
fn xdp_neutral_live_native() {
    live(false);
}

#[test]
fn xdp_neutral_live_generic() {
    live(true);
}

#[test]
fn xdp_neutral_for_real_protocols() {
    for generic in [false, true] {
        let mode = move || real_protocols(generic);
        thread::spawn(mode).join().unwrap();
    }
}

fn real_protocols(generic: bool) {
    fresh_namespace().unwrap();
    let far = Far::new();
    let mut object = Object::load().unwrap();
    object.write(&tables()).unwrap();
    object.attach("up0", generic).unwrap();
    without_dad("up0");
    far.run(|| without_dad("far0"));
    for words in [
        "link set lo up".to_owned(),
        "link set up0 up".to_owned(),
        format!("addr add {}/24 dev up0", IpAddr::from(address(ME))),
        format!("addr add {}/64 dev up0 nodad", IpAddr::from(address6(ME))),
        format!("addr add {}/32 dev up0", IpAddr::from(SHARED)),
        format!("addr add {}/128 dev up0 nodad", IpAddr::from(SHARED6)),
    ] {
        ip(&words).unwrap();
    }
    for words in [
        "link set far0 up",
        "addr add 192.0.2.99/24 dev far0",
        "addr add 2001:db8:1::63/64 dev far0 nodad",
        "route add 203.0.113.0/24 dev far0",
        "route add 2001:db8:113::/48 dev far0",
    ] {
        far.ip(words);
    }
    wait_local([address6(ME), SHARED6].map(IpAddr::from)).unwrap();
    far.run(|| wait_local([FAR6]).unwrap());
    let before = object.counters().unwrap();
    let own = [IpAddr::from(address(ME)), IpAddr::from(address6(ME))];
    let shared = [IpAddr::from(SHARED), IpAddr::from(SHARED6)];
    for to in own.into_iter().chain(shared) {
        ping(&far, to);
        stream(&far, to);
        datagrams(&far, to);
    }
    let mut counted = BTreeMap::new();
    for counter in object.counted_since(&before).unwrap() {
        *counted.entry(counter.name()).or_insert(0) += 1;
    }
    assert_eq!(
        counted.keys().collect::<Vec<_>>(),
        [&"not_ours"],
        "{counted:?}"
    );
    println!("generic: {generic}, {counted:?}");
}

/// Echo there and back, after neighbour discovery.
fn ping(far: &Far, to: IpAddr) {
    far.run(move || {
        let (domain, protocol, kind) = if to.is_ipv4() {
            (Domain::IPV4, Protocol::ICMPV4, 8)
        } else {
            (Domain::IPV6, Protocol::ICMPV6, 128)
        };
        let mut socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut echo = [&[kind, 0, 0, 0, 0x4f, 0x42, 0, 1][..], &[0x55; 56]].concat();
        // The kernel sums ICMPv6 by itself.
        if to.is_ipv4() {
            let sum = checksum(&echo).to_be_bytes();
            echo[2..4].copy_from_slice(&sum);
        }
        socket
            .send_to(&echo, &SocketAddr::new(to, 0).into())
            .unwrap();
        let mut seen = [0; 256];
        loop {
            let length = socket
                .read(&mut seen)
                .unwrap_or_else(|error| panic!("no echo of {to}: {error}"));
            let answer = if to.is_ipv4() {
                &seen[20..length]
            } else {
                &seen[..length]
            };
            if matches!(answer[0], 0 | 129) && answer[4..] == echo[4..] {
                return;
            }
        }
    });
}

/// 4 MiB to a service of the host and back, to the last byte.
fn stream(far: &Far, to: IpAddr) {
    let listener = TcpListener::bind((to, 22)).unwrap();
    let service = thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let (mut peer, _) = listener.accept().unwrap();
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            std::io::copy(&mut peer.try_clone().unwrap(), &mut peer).unwrap()
        });
        far.run(move || {
            let mut stream =
                TcpStream::connect_timeout(&SocketAddr::new(to, 22), PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let sent: Vec<u8> = (0..4u32 << 20)
                .map(|byte| ((byte * 7) >> 3) as u8)
                .collect();
            let (mut writer, bytes) = (stream.try_clone().unwrap(), sent.clone());
            let writes = thread::spawn(move || {
                writer.write_all(&bytes).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            writes.join().unwrap();
            assert!(back == sent, "{to}: other bytes came back");
        });
        echo.join().unwrap()
    });
    assert_eq!(service, 4 << 20);
}

/// Datagrams of all sizes to a service of the host and back, the largest in fragments.
fn datagrams(far: &Far, to: IpAddr) {
    let service = UdpSocket::bind((to, 9_999)).unwrap();
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    for length in [0, 1, 100, 1_400, 1_472, 3_000, 10_240] {
        let told = far.start(move || {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let sent: Vec<u8> = (0..length as u32)
                .map(|byte| ((byte * 13) >> 2) as u8)
                .collect();
            socket.send_to(&sent, (to, 9_999)).unwrap();
            let mut back = vec![0; 20_000];
            let received = socket
                .recv(&mut back)
                .unwrap_or_else(|error| panic!("{to}, {length}: {error}"));
            assert!(
                back[..received] == sent,
                "{to}, {length}: other bytes came back"
            );
        });
        let mut seen = vec![0; 20_000];
        match service.recv_from(&mut seen) {
            Ok((received, from)) => {
                service.send_to(&seen[..received], from).unwrap();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                panic!("{to}: {length} bytes did not come")
            }
            Err(error) => panic!("{to}, {length}: {error}"),
        }
        told.recv_timeout(PATIENCE).unwrap();
    }
}
