//! `forebay bpf`: what the kernel's tables say, read from their pins, so that it works without a daemon too.
//!
//! Only names of nodes are the daemon's: nodes have their addresses for names where none answers.

pub mod answer;
pub mod trace;

use std::process::ExitCode;

use http::Method;
use serde_json::{Value, json};

use self::answer::Names;
use super::client::{self, ClientError};
use super::{failed, no_answer, only_there, print, show, usage};
use crate::args::Whom;
use crate::args::bpf::{BpfArgs, BpfCommand, FlowEnd, RowsArgs, TablesArgs};
use crate::datapath::Error;
use crate::datapath::look::Look;
use crate::snapshot::Transport;

/// Carries out `forebay bpf`.
#[must_use]
pub fn dispatch(args: &BpfArgs) -> ExitCode {
    let tables = &args.tables;
    if let (Some(what), Some(node)) = (&args.what, &tables.whom.node) {
        return failed(&only_there(&format!("bpf {}", what.name()), node));
    }
    match &args.what {
        None => overview(tables),
        Some(BpfCommand::Vips) => looked(tables, show::bpf::vips, |look| {
            Ok(answer::vips(
                &look.tables()?,
                &look.lists()?,
                &look.counters()?,
            ))
        }),
        Some(BpfCommand::Nodes) => {
            let names = names(&tables.whom);
            looked(tables, show::bpf::nodes, |look| {
                Ok(answer::nodes(&look.tables()?, &names, &look.counters()?))
            })
        }
        Some(BpfCommand::Counters) => looked(tables, show::bpf::counters, |look| {
            Ok(answer::counters(&look.counters()?))
        }),
        Some(BpfCommand::Rows(rows)) => self::rows(tables, rows),
        Some(BpfCommand::Trace(args)) => trace::run(tables, args),
    }
}

fn looked(
    args: &TablesArgs,
    table: impl Fn(&Value) -> String,
    look: impl FnOnce(&Look) -> Result<Value, Error>,
) -> ExitCode {
    match Look::open(&args.bpffs).and_then(|open| look(&open)) {
        Ok(value) => print(args.output, &value, table, |_| true),
        Err(error) => failed(&error.to_string()),
    }
}

/// What the daemon calls the nodes; nothing if none answers.
fn names(whom: &Whom) -> Names {
    client::ask(whom, Method::GET, "/datapath")
        .map(|answer| Names::of(&answer))
        .unwrap_or_default()
}

/// Everything in short: the daemon's view if there is one, else that of the tables.
fn overview(args: &TablesArgs) -> ExitCode {
    let asked = client::ask(&args.whom, Method::GET, "/datapath");
    if let (Some(node), Ok(mut answer)) = (&args.whom.node, asked.as_ref().cloned()) {
        if answer.is_object() {
            answer["memory"] = json!({"error": format!("known on node {node} alone")});
        }
        return print(args.output, &answer, show::bpf::overview, |_| true);
    }
    let kept = Look::open(&args.bpffs).and_then(|look| {
        let memory = look.memory()?;
        let total: u64 = memory.values().sum();
        Ok((look, json!({"total_bytes": total, "maps": memory})))
    });
    let whole = match (asked, kept) {
        // With --datapath off there are no tables of this daemon, whatever lies there.
        (Ok(Value::Null), _) => Value::Null,
        (Ok(mut answer), kept) => {
            answer["memory"] = match kept {
                Ok((_, memory)) => memory,
                Err(error) => json!({"error": error.to_string()}),
            };
            answer
        }
        (Err(ClientError::Connect { .. } | ClientError::Off), Ok((look, memory))) => {
            match without_daemon(&look, &memory) {
                Ok(answer) => answer,
                Err(error) => return failed(&error.to_string()),
            }
        }
        (Err(error), _) => return no_answer(&error),
    };
    print(args.output, &whole, show::bpf::overview, |_| true)
}

fn without_daemon(look: &Look, memory: &Value) -> Result<Value, Error> {
    let seen = look.tables()?;
    let names = Names::default();
    let counts = look.counters()?;
    let mut answer = json!({
        "daemon": false,
        "counters": counts.reasons,
        "memory": memory,
    });
    for part in [
        answer::vips(&seen, &look.lists()?, &counts),
        answer::nodes(&seen, &names, &counts),
        answer::owners(&seen, &names),
    ] {
        if let (Value::Object(all), Value::Object(part)) = (&mut answer, part) {
            all.extend(part);
        }
    }
    Ok(answer)
}

fn rows(tables: &TablesArgs, args: &RowsArgs) -> ExitCode {
    let flow = match flow(args) {
        Ok(flow) => flow,
        Err(sentence) => return usage(&sentence),
    };
    let names = names(&tables.whom);
    let seen = match Look::open(&tables.bpffs).and_then(|look| look.tables()) {
        Ok(seen) => seen,
        Err(error) => return failed(&error.to_string()),
    };
    let value = match flow {
        Some((client, vip, protocol)) => {
            match answer::row_of_flow(&seen, &names, client.address, vip.address, protocol) {
                Some(value) => value,
                None => {
                    return failed(&format!(
                        "{}/{} is no VIP on this node; `forebay bpf vips` lists them",
                        vip.address,
                        answer::protocol_name(protocol.number()),
                    ));
                }
            }
        }
        None if args.row.is_empty() => answer::owners(&seen, &names),
        None => answer::rows(&seen, &names, &args.row),
    };
    print(tables.output, &value, show::bpf::rows, |_| true)
}

type Flow = (FlowEnd, FlowEnd, Transport);

/// The flow that is asked about, if one is.
fn flow(args: &RowsArgs) -> Result<Option<Flow>, String> {
    let [client, vip] = args.address[..] else {
        if args.address.is_empty() {
            return Ok(None);
        }
        return Err("--address is given more than once; give it once".to_owned());
    };
    if !args.row.is_empty() {
        return Err("rows and --address exclude each other; give one of them".to_owned());
    }
    if client.protocol.is_some() {
        return Err(format!(
            "--address {} names the client with a protocol; give it behind the VIP",
            client.address
        ));
    }
    if client.address.is_ipv4() != vip.address.is_ipv4() {
        return Err(format!(
            "--address {} {} mixes IPv4 and IPv6; give two addresses of one kind",
            client.address, vip.address
        ));
    }
    Ok(Some((client, vip, vip.protocol.unwrap_or(Transport::Tcp))))
}
