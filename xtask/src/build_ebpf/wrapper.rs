//! This program as cargo's RUSTC_WRAPPER: crate ids that do not depend on the checkout's path.
//!
//! Cargo derives `-C metadata` of a path dependency outside its workspace from the absolute path, and rustc
//! derives symbol names and their order from that. For the BPF target it is replaced by name and version,
//! which are unique there. Everything else goes to the compiler as it came.

use std::{
    env,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

/// Set by the build; tells this program that cargo calls it as a wrapper.
pub(crate) const MARK: &str = "FOREBAY_RUSTC_WRAPPER";

/// Becomes the compiler if this is a wrapper's call; returns only if it is none, or on an error.
pub(crate) fn run_if_called_by_cargo() -> Option<ExitCode> {
    env::var_os(MARK)?;
    let mut args = env::args().skip(1);
    let rustc = args.next()?;
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let args = with_fixed_metadata(args.collect(), &version);
    let error = Command::new(&rustc).args(args).exec();
    eprintln!("error: cannot run {rustc}: {error}");
    Some(ExitCode::FAILURE)
}

fn with_fixed_metadata(mut args: Vec<String>, version: &str) -> Vec<String> {
    let after = |flag: &str| {
        args.iter()
            .position(|arg| arg == flag)
            .and_then(|at| args.get(at + 1))
            .cloned()
    };
    let for_bpf = after("--target").is_some_and(|target| target.starts_with("bpf"));
    let Some(name) = after("--crate-name").filter(|_| for_bpf) else {
        return args;
    };
    for arg in &mut args {
        if arg.starts_with("metadata=") {
            *arg = format!("metadata={name}-{version}");
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(args: &str) -> String {
        with_fixed_metadata(args.split(' ').map(str::to_owned).collect(), "0.1.0").join(" ")
    }

    #[test]
    fn metadata_of_bpf_crates_is_name_and_version() {
        assert_eq!(
            fixed(
                "--crate-name common -C metadata=9f -C extra-filename=-9f --target bpfel-unknown-none"
            ),
            "--crate-name common -C metadata=common-0.1.0 -C extra-filename=-9f --target bpfel-unknown-none",
        );
    }

    #[test]
    fn host_crates_and_questions_are_left_alone() {
        let host = "--crate-name macros -C metadata=9f";
        assert_eq!(fixed(host), host);
        assert_eq!(fixed("-vV"), "-vV");
    }
}
