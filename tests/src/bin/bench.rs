//! Benchmarks of the kernel path and of the proxy; `cargo xtask bench` starts it. All of it is in
//! `gateway_tests::bench`; this file only maps its outcome to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    match gateway_tests::bench::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
