//! The flags of the commands that ask a running daemon.

use clap::{Args, ValueEnum};

use super::{Endpoint, Output};

/// Flags of the commands that ask a running daemon.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    /// Where the daemon's admin endpoint is: ADDR:PORT or unix:PATH.
    #[arg(
        long,
        env = "FOREBAY_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:15000"
    )]
    pub admin: Endpoint,
    /// Form of the answer.
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub output: Output,
}

/// Flags of `forebay dump`.
#[derive(Args, Clone, Debug)]
pub struct DumpArgs {
    /// Where the daemon's admin endpoint is: ADDR:PORT or unix:PATH.
    #[arg(
        long,
        env = "FOREBAY_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:15000"
    )]
    pub admin: Endpoint,
    /// Form of the answer; the tables leave out what the JSON has beyond them.
    #[arg(long, value_name = "FORM", default_value = "json")]
    pub output: Output,
}

/// Flags of `forebay completion`.
#[derive(Args, Clone, Debug)]
pub struct CompletionArgs {
    /// The shell.
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Shells that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// `eval "$(forebay completion bash)"`.
    Bash,
    /// `forebay completion zsh > _forebay`, in a directory of `$fpath`.
    Zsh,
    /// `forebay completion fish | source`.
    Fish,
}
