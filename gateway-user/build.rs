//! Embeds the built BPF object: `FOREBAY_EBPF_OBJECT`, else `target/ebpf/forebay.o` of the workspace. Without
//! either the program still builds, with an empty object, and says so when it is asked to load it.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=FOREBAY_EBPF_OBJECT");
    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let source = env::var_os("FOREBAY_EBPF_OBJECT")
        .map_or_else(|| manifest.join("../target/ebpf/forebay.o"), PathBuf::from);
    // Cargo reruns this at every build if it is to watch a file that is not there: watch the directory then.
    let folder = source.parent().expect("an object lies in a directory");
    let watched = if source.exists() || fs::create_dir_all(folder).is_err() {
        &*source
    } else {
        folder
    };
    println!("cargo::rerun-if-changed={}", watched.display());
    let object = fs::read(&source).unwrap_or_default();
    fs::write(out.join("forebay.o"), object).expect("OUT_DIR is writable");
}
