//! Logging of the daemon: to standard error, as text or JSON.

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

use crate::args::{LogFormat, LogLevel};

/// Installs the log for the whole process. A second call changes nothing.
pub fn start(level: LogLevel, format: LogFormat) {
    let builder = fmt()
        .with_writer(std::io::stderr)
        .with_max_level(filter(level))
        .with_target(false);
    let result = match format {
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // The only error is that a log is installed already.
    drop(result);
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
