//! A large upload goes on while its node drains, although every packet then takes a longer way.

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gateway_common::abi::Counter;
use gateway_tests::eventually::{eventually, throughout};
use gateway_tests::fixture::{HOST, ReplicaState};
use gateway_tests::leftovers::Ledger;
use gateway_tests::maps;
use gateway_tests::rig::{Options, Rig, VIP};
use gateway_tests::topology::CLIENT;
use gateway_tests::wire::{Frame, Kind, Tap};
use socket2::{Domain, Protocol, Socket, Type};

/// Bytes of the upload.
const SIZE: usize = 1 << 20;

/// Parts that it is sent in, and the time between two of them.
const PARTS: usize = 64;
const PAUSE: Duration = Duration::from_millis(50);

/// What is left of 1500 bytes beside the headers of our UDP form (36) and of IPv4 and TCP (40).
const MSS: u16 = 1_424;

#[test]
fn an_upload_of_a_megabyte_crosses_a_drain_in_whole_packets() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    let leaving = 2;
    let port = rig.ports(leaving, 1).unwrap()[0];
    rig.deliver_to(0).unwrap();
    let errors = Tap::start(&rig.topology.switch, Kind::Icmp).unwrap();
    let accepted = Tap::start(&rig.topology.client, Kind::SynAck).unwrap();
    let chances = |rig: &Rig| maps::counter(rig.daemons[0].bpffs(), Counter::SecondChance).unwrap();
    let others = |rig: &Rig| maps::counter(rig.daemons[1].bpffs(), Counter::SecondChance).unwrap();
    let before = chances(&rig) + others(&rig);
    let client = rig.topology.client.clone();
    let begun = Instant::now();
    let uploading = std::thread::spawn(move || client.run(|| upload(port)));
    eventually("the upload at a backend", Duration::from_secs(5), || {
        ensure!(rig.backends.count() > 0, "not yet");
        Ok(())
    })
    .unwrap();
    rig.mark(leaving, ReplicaState::Draining).unwrap();
    let (answer, slowest) = uploading.join().unwrap().unwrap();
    let took = begun.elapsed();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with(&format!("{SIZE} bytes\n")), "{answer}");
    let back = rig.topology.nodes[leaving].back;
    assert!(rig.backends.seen().iter().any(|seen| seen.peer == back));
    let packets = chances(&rig) + others(&rig) - before;
    println!(
        "{SIZE} bytes in {took:?}, of {:?} at least; slowest part {slowest:?}; {packets} packets by second chance",
        PAUSE * PARTS as u32
    );
    assert!(packets as usize > SIZE / usize::from(MSS) / 4, "{packets}");
    assert!(took < PAUSE * PARTS as u32 + Duration::from_secs(3));
    let too_big = errors.stop().unwrap();
    assert!(!too_big.iter().any(is_too_big), "a packet was too big");
    let offered: Vec<u16> = (accepted.stop().unwrap().iter())
        .filter_map(segment)
        .collect();
    assert!(!offered.is_empty());
    assert!(offered.iter().all(|size| *size <= MSS), "{offered:?}");
}

/// Sends the upload in parts; the answer and the longest time that a part took.
fn upload(port: u16) -> Result<(String, Duration)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(CLIENT, port).into())?;
    // So small that a stall is seen by the part that it stops.
    socket.set_send_buffer_size(64 << 10)?;
    socket.connect(&SocketAddr::V4(VIP).into())?;
    let mut stream = TcpStream::from(socket);
    let patience = Some(Duration::from_secs(10));
    stream.set_write_timeout(patience)?;
    stream.set_read_timeout(patience)?;
    write!(
        stream,
        "POST /upload HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {SIZE}\r\nconnection: close\r\n\r\n"
    )?;
    let part = vec![7; SIZE / PARTS];
    let mut slowest = Duration::ZERO;
    for number in 0..PARTS {
        let begun = Instant::now();
        stream
            .write_all(&part)
            .with_context(|| format!("part {number} of {PARTS}"))?;
        slowest = slowest.max(begun.elapsed());
        throughout("a pause", PAUSE, || Ok(()))?;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the answer")?;
    Ok((answer, slowest))
}

/// Destination unreachable: fragmentation needed.
fn is_too_big(frame: &Frame) -> bool {
    frame.bytes[14 + 20..].starts_with(&[3, 4])
}

/// The maximum segment size that a SYN-ACK offers, as its first option.
fn segment(frame: &Frame) -> Option<u16> {
    match frame.bytes.get(14 + 20 + 20..)? {
        [2, 4, high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}
