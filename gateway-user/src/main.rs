//! The `forebay` program: reads the flags and hands over.

use std::process::ExitCode;

use clap::Parser;
use gateway_user::args::{Cli, one_sentence};
use gateway_user::cli;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli::dispatch(cli.command),
        Err(error) if error.use_stderr() => {
            let words: Vec<String> = std::env::args_os()
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            cli::usage(&one_sentence(&error, &words, |name| {
                let value = std::env::var_os(name)?;
                Some(value.to_string_lossy().into_owned())
            }))
        }
        // --help and --version.
        Err(text) => {
            let printed = text.print();
            ExitCode::from(u8::from(printed.is_err()))
        }
    }
}
