//! A node leaves while long requests run: none breaks.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use gateway_tests::{
    backend::{BYTES, Behaviour},
    client::{Load, Tally},
    demo::drain::drain,
    eventually::{eventually, throughout},
    fixture::HOST,
    leftovers::Ledger,
    rig::{Options, Rig, VIP},
    topology::CLIENT,
};
use socket2::{Domain, Protocol, Socket, Type};

#[test]
fn no_request_breaks_when_a_node_leaves() {
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    print!("{}", drain(&mut rig, Duration::from_secs(3)).unwrap());
}

#[test]
fn what_outlasts_the_drain_hears_of_its_end() {
    const HELD: usize = 8;
    const SOON: Duration = Duration::from_secs(10);
    let options = Options {
        drain_timeout: Duration::from_secs(1),
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.backends.set_all(Behaviour {
        hold: 3 * SOON,
        fail: false,
    });
    let load = Load {
        overlap: HELD,
        timeout: 2 * SOON,
        ..rig.load_through(0, HOST, HELD).unwrap()
    };
    let running = rig.client.start(load).unwrap();
    eventually("the held requests at the backends", SOON, || {
        let seen = rig.backends.count();
        ensure!(seen == HELD, "{seen} of {HELD}");
        Ok(())
    })
    .unwrap();
    rig.daemons[0].terminate(SOON).unwrap();
    let tally = Tally::of(&running.stop().unwrap());
    // A VIP that is not local any more sends nothing: who waits would wait for as long as it likes.
    assert_eq!(tally.reset + tally.cut_off, HELD, "{tally}");
}

#[test]
fn others_hear_of_a_drain_from_the_node_itself() {
    const REQUESTS: usize = 60;
    // Less than it takes a list to go round, and less than a node that was stopped waits for others to take over.
    const SOON: Duration = Duration::from_millis(500);
    let mut rig = Rig::start(Ledger::open().unwrap(), &Options::default()).unwrap();
    let name = rig.topology.nodes[0].name.clone();
    // The list calls it ready all the time.
    rig.daemons[0].ask(&["drain"]).unwrap();
    eventually("what the others hold it for", SOON, || {
        for daemon in &rig.daemons[1..] {
            let status = daemon.status()?;
            let nodes = status["datapath"]["nodes"].as_array();
            let mut nodes = nodes.into_iter().flatten();
            let one = nodes.find(|node| node["name"] == *name);
            ensure!(one.is_some_and(|one| one["state"] == "Draining"), "{one:?}");
        }
        Ok(())
    })
    .unwrap();
    let back = rig.topology.nodes[0].back;
    for through in [1, 0] {
        rig.backends.forget_all();
        let load = Load {
            ports: rig.ports(0, REQUESTS).unwrap(),
            ..Load::new(VIP, HOST, REQUESTS)
        };
        rig.deliver_to(through).unwrap();
        let tally = Tally::of(&rig.client.send(load).unwrap());
        assert_eq!(tally.status(200), REQUESTS, "{tally}");
        let seen = rig.backends.seen();
        assert_eq!(seen.len(), REQUESTS);
        assert!(seen.iter().all(|one| one.peer != back));
    }
}

/// A client with room for little, which has asked for so many bytes from this port.
fn asks(port: u16, length: usize) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(CLIENT, port).into())?;
    socket.set_recv_buffer_size(8 << 10)?;
    socket.connect(&SocketAddr::V4(VIP).into())?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {BYTES}{length} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n"
    )?;
    Ok(stream)
}

#[test]
fn a_slow_client_gets_the_end_of_what_a_leaving_node_has_sent() {
    // So much that the kernel takes all of it from the proxy at once, and more than the client takes at once.
    const LENGTH: usize = 60_000;
    const PAUSE: Duration = Duration::from_millis(100);
    let options = Options {
        drain_timeout: Duration::from_secs(30),
        ..Options::default()
    };
    let mut rig = Rig::start(Ledger::open().unwrap(), &options).unwrap();
    rig.deliver_to(0).unwrap();
    let ports = rig.ports(0, 2).unwrap();
    let client = rig.topology.client.clone();
    let ask = |port| client.run(|| asks(port, LENGTH)).unwrap();
    // One that takes nothing is not waited for until the drain's deadline.
    let (mut slow, _silent) = (ask(ports[0]), ask(ports[1]));
    let reading = thread::spawn(move || -> Result<(String, Duration)> {
        let (mut answer, begun) = (Vec::new(), Instant::now());
        loop {
            let mut part = [0; 1_000];
            match slow.read(&mut part)? {
                0 => return Ok((String::from_utf8(answer)?, begun.elapsed())),
                read => answer.extend(&part[..read]),
            }
            throughout("a pause", PAUSE, || Ok(()))?;
        }
    });
    eventually("both at a backend", Duration::from_secs(5), || {
        ensure!(rig.backends.count() == 2);
        Ok(())
    })
    .unwrap();
    let begun = Instant::now();
    rig.leave(0).unwrap();
    let left = begun.elapsed();
    let (answer, took) = reading.join().unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(body.len(), LENGTH);
    assert!(took > LENGTH as u32 / 1_000 * PAUSE, "{took:?}");
    println!("the client took {took:?}, the node {left:?}");
    assert!(left < Duration::from_secs(20), "{left:?}");
}
