//! Whether a SYN for a VIP gets through this machine: one is received, and the answer awaited.
//!
//! It goes the stack's whole way behind XDP: netfilter, reverse path filter, routing, connection tracking, socket lookup.
//! Its client is an address that nobody has (RFC 2544), or the one of `--client`; the answer is sent to it, and the half-open
//! connection is reset at once. What is not seen: filters before the stack, and those of other machines.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use gateway_common::checksum;
use gateway_common::packet::{Ipv4, protocol};
use serde_json::Value;

use super::trace::{self, Client};
use super::{Finding, legacy_tables, reverse_path};
use crate::datapath::gratuitous::checksum as sum;
use crate::datapath::trial::{self, Port, Trial};

/// VIPs that are tried at most.
const MOST: usize = 16;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_millis(300);
/// First port of the client; each SYN has another.
const FIRST_PORT: u16 = 40_001;
/// Sequence number of the SYNs.
const SEQUENCE: u32 = 0x0f0e_0d0c;

const SYN: u8 = 1 << 1;
const RST: u8 = 1 << 2;
const ACK: u8 = 1 << 4;

/// The client, unless one is named: of the ranges for benchmarks, which are not routed.
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1);

/// The client that a check of `family` uses.
#[must_use]
pub(super) fn client(named: &[IpAddr], family: IpAddr) -> IpAddr {
    let same = |address: &&IpAddr| address.is_ipv4() == family.is_ipv4();
    let own = match family {
        IpAddr::V4(_) => IpAddr::V4(CLIENT_V4),
        IpAddr::V6(_) => IpAddr::V6(CLIENT_V6),
    };
    named.iter().find(same).copied().unwrap_or(own)
}

/// What a packet did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// SYN-ACK.
    Accepted,
    /// RST.
    Refused,
    /// Nothing.
    Silence,
}

/// One finding for each TCP VIP of a running daemon, as its `/datapath` has them.
#[must_use]
pub(super) fn findings(daemon: &Value, interfaces: &[String], clients: &[IpAddr]) -> Vec<Finding> {
    let all = daemon["vips"].as_array().map_or(&[][..], Vec::as_slice);
    let vips: Vec<SocketAddr> = all
        .iter()
        .filter(|vip| vip["draining"] != Value::Bool(true))
        .filter_map(|vip| vip["vip"].as_str()?.parse().ok())
        .collect();
    if vips.is_empty() {
        return vec![Finding::good("VIPs", "the daemon has no TCP VIP to try")];
    }
    let trial = match Trial::open() {
        Ok(trial) => trial,
        Err(error) => {
            return vec![Finding::good("VIPs", format!("not tried: {error}"))];
        }
    };
    let mut port = FIRST_PORT;
    let mut found = Vec::new();
    for vip in vips.iter().take(MOST) {
        let client = client(clients, vip.ip());
        found.push(try_vip(&trial, daemon, interfaces, *vip, client, &mut port));
    }
    if vips.len() > MOST {
        let more = vips.len() - MOST;
        found.push(Finding::good("VIPs", format!("{more} more were not tried")));
    }
    found
}

/// Where SYNs come in.
struct Door<'a> {
    interface: &'a str,
    port: Port,
    /// Why it is another one than the uplink.
    note: Option<String>,
}

/// The uplink, if its program is one of XDP: the SYN comes in behind it. In traffic control it would meet the program,
/// which may send it to another node.
fn door<'a>(daemon: &'a Value, interfaces: &'a [String]) -> Option<Door<'a>> {
    let native = |name: &str| {
        let links = daemon["interfaces"].as_array();
        links.into_iter().flatten().any(|link| {
            link["interface"] == name && link["mode"] == "native" && link["state"] == "attached"
        })
    };
    let uplink = interfaces.iter().find(|name| native(name));
    if let Some(name) = uplink {
        return Some(Door {
            interface: name,
            port: trial::port(name)?,
            note: None,
        });
    }
    Some(Door {
        interface: "lo",
        port: trial::port("lo")?,
        note: Some(
            "as if received on lo, for no uplink has native XDP: rules for the uplink alone are not seen"
                .to_owned(),
        ),
    })
}

fn try_vip(
    trial: &Trial,
    daemon: &Value,
    interfaces: &[String],
    vip: SocketAddr,
    client: IpAddr,
    port: &mut u16,
) -> Finding {
    let check = format!("VIP {vip}");
    let Some(door) = door(daemon, interfaces) else {
        return Finding::good(check, "not tried: no interface is there");
    };
    if trial::way_to(client).is_none() {
        return Finding::good(
            check,
            format!("not tried: there is no route to a client at {client}; name one with --client"),
        );
    }
    let note = door
        .note
        .as_ref()
        .map_or(String::new(), |note| format!(" ({note})"));
    let mut send = || {
        *port = port.wrapping_add(1).max(FIRST_PORT);
        knock(trial, &door, vip, SocketAddr::new(client, *port))
    };
    match send() {
        Err(error) => Finding::good(
            check,
            format!("not tried: the kernel does not run it ({error})"),
        ),
        Ok(Answer::Accepted) => {
            Finding::good(check, format!("a SYN from {client} is accepted{note}"))
        }
        Ok(answer) => {
            let next = SocketAddr::new(client, port.wrapping_add(1).max(FIRST_PORT));
            let uplink = (door.interface != "lo").then_some(door.interface);
            let traced = trace::follow(
                Client {
                    address: next.ip(),
                    port: next.port(),
                },
                uplink,
                || {
                    *port = next.port();
                    // Why it is silent is what the trace says.
                    let _again = knock(trial, &door, vip, next);
                },
            );
            eaten(check, answer, &traced, &door, client, &note)
        }
    }
}

/// The finding for a SYN that was not accepted.
fn eaten(
    check: String,
    answer: Answer,
    traced: &Result<Option<trace::Culprit>, String>,
    door: &Door<'_>,
    client: IpAddr,
    note: &str,
) -> Finding {
    let fate = match answer {
        Answer::Refused => "is refused (RST)",
        _ => "is not answered",
    };
    if let Ok(Some(culprit)) = traced {
        return Finding::bad(
            check,
            format!(
                "a SYN from {client} {fate}: chain {}, {}{note}",
                culprit.chain, culprit.rule
            ),
            "let packets for VIPs pass there",
        );
    }
    if let Some(why) = reverse_path(door.interface, client) {
        return Finding::bad(
            check,
            format!("a SYN from {client} {fate}: {why}{note}"),
            format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", door.interface),
        );
    }
    if let Some(why) = conntrack_full() {
        let remedy = "raise net.netfilter.nf_conntrack_max";
        return Finding::bad(
            check,
            format!("a SYN from {client} {fate}: {why}{note}"),
            remedy,
        );
    }
    let seen = match traced {
        Ok(_) => "no rule of nftables ends it".to_owned(),
        Err(why) => format!("netfilter is not traced: {why}"),
    };
    let legacy = legacy_tables();
    let legacy = match legacy.is_empty() {
        true => String::new(),
        false => format!(
            "; iptables-legacy has rules in {}, which are not traced",
            legacy.join(", ")
        ),
    };
    Finding::bad(
        check,
        format!("a SYN from {client} {fate}: {seen}{legacy}{note}"),
        "see `forebay status` for the proxy, `ip route get` for the way back, and programs of others on the interface",
    )
}

fn conntrack_full() -> Option<String> {
    let read = |name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let (count, most) = (read("nf_conntrack_count")?, read("nf_conntrack_max")?);
    (count >= most).then(|| format!("connection tracking is full ({count} of {most})"))
}

/// Receives a SYN and waits for the answer; what it opened is reset.
fn knock(
    trial: &Trial,
    door: &Door<'_>,
    vip: SocketAddr,
    client: SocketAddr,
) -> std::io::Result<Answer> {
    let (to, ifindex) = (door.port.mac, door.port.ifindex);
    trial.receive(&segment(to, client, vip, [SEQUENCE, 0], SYN), ifindex)?;
    let found = trial.sent(PATIENCE, |packet| answer_in(packet, vip, client).is_some());
    let answer = found.and_then(|packet| answer_in(&packet, vip, client));
    let answer = answer.unwrap_or(Answer::Silence);
    // Also after silence: it may be the answer that was lost.
    let next = [SEQUENCE.wrapping_add(1), 0];
    trial.receive(&segment(to, client, vip, next, RST), ifindex)?;
    Ok(answer)
}

/// A TCP segment without data, in Ethernet.
fn segment(
    to: [u8; 6],
    client: SocketAddr,
    vip: SocketAddr,
    [sequence, acknowledged]: [u32; 2],
    flags: u8,
) -> Vec<u8> {
    let mut tcp = client.port().to_be_bytes().to_vec();
    tcp.extend(vip.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledged.to_be_bytes());
    tcp.extend([5 << 4, flags, 4, 0, 0, 0, 0, 0]);
    let length = tcp.len() as u16;
    let [high, low] = length.to_be_bytes();
    // A source that no interface has: locally administered.
    let mut frame = [to, [2, 0, 0, 0, 0, 0xfb]].concat();
    let mut with_sum = |ends: &[u8]| {
        let pseudo = [0, 0, high, low, 0, 0, 0, protocol::TCP];
        let sum = sum(&[ends, &pseudo, &tcp].concat());
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    };
    match (client.ip(), vip.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            with_sum(&[source.octets(), destination.octets()].concat());
            let mut ip = Ipv4 {
                version_ihl: 0x45,
                total_length: (20 + length).to_be_bytes(),
                fragment: [0x40, 0],
                ttl: 64,
                protocol: protocol::TCP,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4::default()
            };
            ip.checksum = checksum::ipv4(&ip).to_be_bytes();
            frame.extend([0x08, 0x00]);
            frame.extend(bytemuck::bytes_of(&ip));
        }
        (source, destination) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let ends = [octets(source), octets(destination)].concat();
            with_sum(&ends);
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol::TCP, 64]);
            frame.extend(ends);
        }
    }
    frame.extend(tcp);
    frame
}

/// What a packet answers to a SYN between these two, if it is an answer.
fn answer_in(packet: &[u8], vip: SocketAddr, client: SocketAddr) -> Option<Answer> {
    let (ends, tcp) = match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet[0] & 0xf) * 4;
            let ends = (address(packet.get(12..16)?)?, address(packet.get(16..20)?)?);
            (
                ends,
                (packet.get(9) == Some(&protocol::TCP)).then(|| packet.get(length..))??,
            )
        }
        6 => {
            let ends = (address(packet.get(8..24)?)?, address(packet.get(24..40)?)?);
            (
                ends,
                (packet.get(6) == Some(&protocol::TCP)).then(|| packet.get(40..))??,
            )
        }
        _ => return None,
    };
    let ports: [u8; 4] = tcp.get(..4)?.try_into().ok()?;
    let wanted = [vip.port().to_be_bytes(), client.port().to_be_bytes()].concat();
    if ends != (vip.ip(), client.ip()) || ports != wanted[..] {
        return None;
    }
    let flags = *tcp.get(13)?;
    if flags & RST != 0 {
        return Some(Answer::Refused);
    }
    (flags & (SYN | ACK) == SYN | ACK).then_some(Answer::Accepted)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_known_by_their_ends_and_flags() {
        for (vip, other) in [
            ("192.0.2.100:80", "198.18.0.1:40001"),
            ("[2001:db8::1]:80", "[2001:2::1]:40001"),
        ] {
            let (vip, other): (SocketAddr, SocketAddr) =
                (vip.parse().unwrap(), other.parse().unwrap());
            let packet = |from, to, flags| segment([2; 6], from, to, [7, 8], flags)[14..].to_vec();
            let said = |packet: &[u8]| answer_in(packet, vip, other);
            let good = packet(vip, other, SYN | ACK);
            assert_eq!(said(&good), Some(Answer::Accepted));
            assert_eq!(said(&packet(vip, other, RST | ACK)), Some(Answer::Refused));
            assert_eq!(said(&packet(vip, other, ACK)), None);
            assert_eq!(said(&packet(other, vip, SYN)), None, "the question itself");
            for end in 0..good.len() {
                assert_eq!(said(&good[..end.min(33)]), None);
            }
        }
    }

    #[test]
    fn segments_have_right_checksums() {
        let vip: SocketAddr = "192.0.2.100:80".parse().unwrap();
        let client: SocketAddr = "198.18.0.1:40001".parse().unwrap();
        let frame = segment([2; 6], client, vip, [7, 0], SYN);
        assert_eq!(sum(&frame[14..34]), 0);
        let pseudo = [&frame[26..34], &[0, 0, 0, 20, 0, 0, 0, 6], &frame[34..]].concat();
        assert_eq!(sum(&pseudo), 0);
    }
}
