//! The subcommands: ask the daemon or read files, print a table or JSON, end with an exit code.
//!
//! Exit codes: 0, 1 (what was asked about is not well, or the command failed), 2 (usage).

pub mod bpf;
pub mod check;
pub mod client;
pub mod offline;
pub mod show;
pub mod table;

use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory as _;
use http::Method;
use serde_json::Value;

use self::client::ClientError;
use crate::app;
use crate::args::agent::AgentArgs;
use crate::args::{Cli, ClientArgs, Command, ExplainArgs, Output, RunArgs, Shell};
use crate::l7::question::Question;
use crate::settings::Settings;
use crate::settings::agent::Settings as AgentSettings;
use crate::telemetry;

/// Something is not well, or failed.
const NOT_WELL: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;

/// Carries out a subcommand.
#[must_use]
pub fn dispatch(command: Command) -> ExitCode {
    match command {
        Command::Run(args) => run(*args),
        Command::Agent(args) => agent(*args),
        Command::Status(args) => ask(&args, "/status", show::status, |v| {
            v["well"] == Value::Bool(true)
        }),
        Command::Validate(args) => match offline::validate(&args.dir) {
            Ok(report) => print(args.output, &report, show::validation, |v| {
                v["well"] == Value::Bool(true)
            }),
            Err(message) => failed(&message),
        },
        Command::Explain(args) => explain(&args),
        Command::Routes(args) => ask(&args, "/config", show::routes, |_| true),
        Command::Endpoints(args) => ask(&args, "/endpoints", show::endpoints, |_| true),
        Command::Certs(args) => ask(&args, "/certs", show::certs, |v| {
            v["well"] == Value::Bool(true)
        }),
        Command::Check(args) => {
            let findings = check::all(&args);
            let well = findings.iter().all(|f| f.ok);
            match serde_json::to_value(&findings) {
                Ok(value) => print(args.output, &value, show::findings, |_| well),
                Err(error) => failed(&error.to_string()),
            }
        }
        Command::Dump(args) => {
            let mut all = serde_json::Map::new();
            for page in ["config", "status", "stats", "endpoints", "certs"] {
                match client::ask(&args.admin, Method::GET, &format!("/{page}")) {
                    Ok(value) => drop(all.insert(page.to_owned(), value)),
                    Err(error) => return no_answer(&error),
                }
            }
            print(args.output, &Value::Object(all), show::dump, |_| true)
        }
        Command::Bpf(args) => bpf::dispatch(&args),
        Command::Detach(args) => match detach(&args.pins.bpffs) {
            Ok(()) => {
                let done = serde_json::json!({"detached": args.pins.bpffs});
                print(args.output, &done, |_| "detached\n".into(), |_| true)
            }
            Err(error) => failed(&error.to_string()),
        },
        Command::Drain(args) => match client::ask(&args.admin, Method::POST, "/drain") {
            Ok(value) => print(args.output, &value, |_| "draining\n".into(), |_| true),
            Err(error) => no_answer(&error),
        },
        Command::Completion(args) => completion(args.shell),
    }
}

fn completion(shell: Shell) -> ExitCode {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "forebay", &mut script);
    written(&script);
    ExitCode::SUCCESS
}

/// Says what is wrong with the command line.
#[must_use]
pub fn usage(message: &str) -> ExitCode {
    eprintln!("forebay: {message}");
    ExitCode::from(USAGE)
}

fn failed(message: &str) -> ExitCode {
    eprintln!("forebay: {message}");
    ExitCode::from(NOT_WELL)
}

fn no_answer(error: &ClientError) -> ExitCode {
    match error {
        ClientError::Off => usage(&error.to_string()),
        _ => failed(&error.to_string()),
    }
}

fn run(mut args: RunArgs) -> ExitCode {
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    args.kubernetes |= in_pod && args.config.is_none();
    telemetry::start(args.log.log, args.log.log_format);
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match Settings::new(args, Some(host), cores) {
        Ok(settings) => match app::run(settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.to_string()),
        },
        Err(errors) => wrong(&errors),
    }
}

fn agent(args: AgentArgs) -> ExitCode {
    telemetry::start(args.log.log, args.log.log_format);
    match AgentSettings::new(args) {
        Ok(settings) => match crate::agent::run(&settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.to_string()),
        },
        Err(errors) => wrong(&errors),
    }
}

fn wrong(errors: &[String]) -> ExitCode {
    for error in errors {
        eprintln!("forebay: {error}");
    }
    ExitCode::from(USAGE)
}

fn ask(
    args: &ClientArgs,
    page: &str,
    table: impl Fn(&Value) -> String,
    well: impl Fn(&Value) -> bool,
) -> ExitCode {
    match client::ask(&args.admin, Method::GET, page) {
        Ok(value) => print(args.output, &value, table, well),
        Err(error) => no_answer(&error),
    }
}

fn explain(args: &ExplainArgs) -> ExitCode {
    let question = match Question::new(&args.url, &args.method, &args.header) {
        Ok(question) => question,
        Err(error) => return usage(&error.to_string()),
    };
    let table = |v: &Value| show::explanation(v, question.port());
    let won = |v: &Value| {
        v.as_array()
            .is_some_and(|all| all.iter().any(|e| !e["winner"].is_null()))
    };
    if let Some(dir) = &args.config {
        return match offline::explain(dir, &question) {
            Ok(value) => print(args.client.output, &value, table, won),
            Err(message) => failed(&message),
        };
    }
    let mut page = format!(
        "/explain?url={}&method={}",
        escape(&args.url),
        escape(&args.method)
    );
    for header in &args.header {
        page += &format!("&header={}", escape(header));
    }
    ask(&args.client, &page, table, won)
}

/// Percent-encodes a query value.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}

fn print(
    output: Output,
    value: &Value,
    table: impl Fn(&Value) -> String,
    well: impl Fn(&Value) -> bool,
) -> ExitCode {
    let text = match output {
        Output::Table => table(value),
        Output::Json => format!("{value:#}\n"),
    };
    written(text.as_bytes());
    ExitCode::from(if well(value) { 0 } else { NOT_WELL })
}

/// A reader that went away (a pager that was left) is no failure of the command.
fn written(text: &[u8]) {
    let mut out = std::io::stdout();
    drop(out.write_all(text).and_then(|()| out.flush()));
}

/// Takes everything away, unless a forebay uses it: that one would go on without its programs, and refuse whoever connects.
fn detach(bpffs: &std::path::Path) -> Result<(), crate::datapath::Error> {
    if bpffs.is_dir() {
        crate::datapath::Lock::take(bpffs, std::time::Duration::ZERO).map(drop)?;
    }
    crate::datapath::detach(bpffs)
}
