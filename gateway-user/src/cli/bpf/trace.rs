//! `forebay bpf trace`: follows packets as this node decides about them, one line each.
//!
//! Each line names the node, so that the output of several nodes can be merged by time.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gateway_common::abi::trace::{seen, want, why};
use gateway_common::abi::{Counter, Row, TraceEvent, TraceFilter, reason_of};
use gateway_common::encap::{Phase, Tunnel};
use gateway_common::verdict::{Action, Verdict};
use serde_json::{Value, json};

use super::answer::{Names, protocol_name, ranks};
use super::names;
use crate::args::Output;
use crate::args::bpf::{TablesArgs, TraceArgs};
use crate::cli::failed;
use crate::datapath::Error;
use crate::datapath::look::{Look, Seen};
use crate::datapath::trace::{LEASE, Tracer, now};
use crate::l4::{abi_address, address_of};
use crate::proxy::access_log::date_time;

/// How often the ring buffer is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Follows packets until enough were seen, the time is over or somebody ends it.
pub(super) fn run(tables: &TablesArgs, args: &TraceArgs) -> ExitCode {
    let names = names(&tables.whom);
    let host = || {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    };
    let named = args.node_name.clone();
    let node = named
        .or_else(|| names.own().map(str::to_owned))
        .unwrap_or_else(host);
    let opened = Look::open(&tables.bpffs).and_then(|look| {
        let seen = look.tables()?;
        let tracer = Tracer::start(&look, filter(args))?;
        Ok((look, seen, tracer))
    });
    let (look, seen, tracer) = match opened {
        Ok(opened) => opened,
        Err(error) => return failed(&error.to_string()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("the system gives no timers: {error}")),
    };
    eprintln!("tracing on {node}; end with Ctrl-C");
    let mut view = View {
        names,
        node,
        seen,
        output: tables.output,
    };
    let followed = runtime.block_on(follow(&look, tracer, &mut view, args));
    match followed {
        Ok(0) => ExitCode::SUCCESS,
        Ok(lost) => {
            eprintln!(
                "forebay: {lost} packets are not shown, since they came faster than they could be read; ask for fewer with --address, --port, --vip or --sample"
            );
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error.to_string()),
    }
}

/// What the programs are asked for.
#[must_use]
pub fn filter(args: &TraceArgs) -> TraceFilter {
    let mut filter = TraceFilter {
        most: u32::MAX / args.sample,
        port: args.port.unwrap_or(0).to_be_bytes(),
        ..TraceFilter::default()
    };
    if let Some(address) = args.address {
        filter.wants |= want::ADDRESS;
        filter.address = abi_address(address);
    }
    if let Some(vip) = args.vip {
        filter.wants |= want::VIP;
        filter.vip = abi_address(vip.address);
        filter.vip_port = vip.port.to_be_bytes();
        filter.protocol = vip
            .protocol
            .map_or(0, |protocol| u32::from(protocol.number()));
    }
    filter
}

/// Packets that were lost.
async fn follow(
    look: &Look,
    mut tracer: Tracer,
    view: &mut View,
    args: &TraceArgs,
) -> Result<u64, Error> {
    let end = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut ended = std::pin::pin!(ended());
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut renewed = Instant::now();
    loop {
        let over = end.is_some_and(|end| end <= Instant::now());
        while let Some(event) = tracer.next_event() {
            // A reader that went away is no failure.
            if !view.print(&event) {
                return Ok(tracer.lost());
            }
            left -= 1;
            if left == 0 {
                return Ok(tracer.lost());
            }
        }
        if over {
            return Ok(tracer.lost());
        }
        if renewed.elapsed() > LEASE / 4 {
            tracer.renew();
            renewed = Instant::now();
            view.seen = look.tables()?;
        }
        tokio::select! {
            () = &mut ended => return Ok(tracer.lost()),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Ctrl-C, or the signal that ends processes.
async fn ended() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
    }
}

/// What events are shown with.
#[derive(Debug)]
pub struct View {
    /// What the daemon calls the nodes.
    pub names: Names,
    /// This node.
    pub node: String,
    /// The tables, to name nodes by.
    pub seen: Seen,
    /// Form of the lines.
    pub output: Output,
}

impl View {
    fn print(&self, event: &TraceEvent) -> bool {
        let value = self.event(event, &wall(event.time));
        let line = match self.output {
            Output::Json => format!("{value}\n"),
            Output::Table => line(&value),
        };
        let mut out = std::io::stdout();
        out.write_all(line.as_bytes())
            .and_then(|()| out.flush())
            .is_ok()
    }

    /// An event with everything that is known of it.
    #[must_use]
    pub fn event(&self, event: &TraceEvent, time: &str) -> Value {
        let end = |address, port| {
            SocketAddr::new(address_of(address), u16::from_be_bytes(port)).to_string()
        };
        let is = |bit: u8| event.seen & bit != 0;
        let mut value = json!({
            "time": time,
            "node": self.node,
            "client": end(event.client, event.client_port),
            "vip": end(event.vip, event.vip_port),
            "protocol": protocol_name(event.protocol),
            "syn": is(seen::SYN),
            "icmp_error": is(seen::ERROR),
            "fragment": is(seen::FRAGMENT),
            "bytes": event.length,
        });
        if is(seen::ROW) {
            self.row(&mut value, event);
        }
        let tunnel = Tunnel::unpack(event.arrival);
        value["from"] = json!(match tunnel.map(|tunnel| tunnel.phase) {
            None => "client",
            Some(Phase::Delivery) => "delivery",
            Some(Phase::SecondChance) => "second chance",
            Some(Phase::Detour) => "detour",
        });
        value["hops_left"] = json!(tunnel.map(|tunnel| tunnel.hops));
        if let Some(verdict) = Verdict::unpack(event.verdict) {
            value["action"] = json!(match verdict.action() {
                Action::Pass => "pass",
                Action::Drop => "drop",
                Action::Transmit | Action::Redirect { .. } => "send",
            });
            value["reason"] = json!(reason_of(verdict.cell()).map(Counter::name));
            if let Some(to) = verdict.node() {
                value["to"] = json!(self.names.call(&self.seen, to));
            }
        }
        value["why"] = json!(match event.why {
            why::OWNER => Some("the owner"),
            why::HEIR => Some("the heir"),
            why::SECOND_CHANCE => Some("may hold the flow"),
            why::DETOUR => Some("heir of a suspect owner"),
            _ => None,
        });
        value
    }

    fn row(&self, value: &mut Value, event: &TraceEvent) {
        let row = Row(event.row);
        let suspect = |index: u16| {
            let others = (0..3).map(|i| row.next(i));
            let mut places = std::iter::once(row.owner()).chain(others);
            let place = places.position(|node| node == index);
            place.is_some_and(|place| event.suspects >> place & 1 != 0)
        };
        let ranks = ranks(row);
        let call = |index: &u16| self.names.call(&self.seen, *index);
        let suspects = ranks.iter().filter(|index| suspect(**index)).map(call);
        value["suspects"] = json!(suspects.collect::<Vec<_>>());
        value["ranks"] = json!(ranks.iter().map(call).collect::<Vec<_>>());
        value["row"] = json!(event.row_number);
        value["in_transition"] = json!(row.in_transition());
        let owner = row.owner();
        value["owner"] = json!((owner != 0).then(|| call(&owner)));
    }
}

/// An event as text.
#[must_use]
pub fn line(event: &Value) -> String {
    let text = |name: &str| match &event[name] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let is = |name: &str| event[name] == Value::Bool(true);
    let mut line = format!(
        "{} {} {} > {}/{}",
        text("time"),
        text("node"),
        text("client"),
        text("vip"),
        text("protocol")
    );
    for (name, word) in [
        ("syn", " SYN"),
        ("icmp_error", " ICMP error"),
        ("fragment", " fragment"),
    ] {
        if is(name) {
            line += word;
        }
    }
    if !event["hops_left"].is_null() {
        line += &format!(", {} with {} hops left", text("from"), text("hops_left"));
    }
    if !event["row"].is_null() {
        let list = |name: &str| -> Vec<&str> {
            let items = event[name].as_array().into_iter().flatten();
            items.filter_map(Value::as_str).collect()
        };
        line += &format!(", row {}", text("row"));
        if is("in_transition") {
            line += " in transition";
        }
        line += &format!(" of {} ({})", text("owner"), list("ranks").join(" > "));
        let suspects = list("suspects");
        if !suspects.is_empty() {
            line += &format!(", suspect: {}", suspects.join(", "));
        }
    }
    line += &format!(": {} {}", text("action"), text("reason"));
    if !event["to"].is_null() {
        line += &format!(" to {}", text("to"));
    }
    if !event["why"].is_null() {
        line += &format!(", {}", text("why"));
    }
    line + "\n"
}

/// A time of CLOCK_MONOTONIC, in nanoseconds, as the wall clock has it, to the microsecond.
fn wall(time: u64) -> String {
    let ago = Duration::from_nanos(now().saturating_sub(time));
    let at = SystemTime::now()
        .checked_sub(ago)
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    format!("{}.{:06}Z", date_time(at.as_secs()), at.subsec_micros())
}

#[cfg(test)]
mod tests;
