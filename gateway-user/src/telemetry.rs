//! Logging of the daemon: to standard error, as text or JSON.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt, registry};

use crate::args::{LogFormat, LogLevel};

/// Libraries that say of every single attempt what this program says once, in its own words.
const CHATTY: [&str; 2] = ["kube_client", "kube_runtime"];

/// Installs the log for the whole process. A second call changes nothing.
pub fn start(level: LogLevel, format: LogFormat) {
    let level = filter(level);
    let mut targets = Targets::new().with_default(level);
    if level < LevelFilter::DEBUG {
        targets = targets.with_targets(CHATTY.map(|name| (name, LevelFilter::OFF)));
    }
    let layer = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let layer = match format {
        LogFormat::Text => layer
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // The only error is that a log is installed already.
    drop(registry().with(layer.with_filter(targets)).try_init());
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
