//! The image that the quick start's pods are made of: built from `tests/cluster/echo`, and in no registry.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use super::{go, wait::Interrupt};
use crate::{oci, paths};

/// As the example's manifests have it.
pub(super) const IMAGE: &str = "forebay.dev/examples/echo:1";
/// Space that a build takes at most.
const GIB: u64 = 1;

/// The archive; it is built once.
pub(super) fn image(interrupt: &Interrupt) -> Result<PathBuf> {
    let source = modules();
    let key = go::key(IMAGE, std::slice::from_ref(&source))?;
    let place = paths::cache()?.join(format!("echo-{key}"));
    let wanted = go::Wanted {
        place: &place,
        what: "building the example's image",
        gib: GIB,
        toolchain: "local",
    };
    go::provide(interrupt, &wanted, |go, out| {
        let program = go.work().join("echo");
        let mut build = go.command(&source, &["build", "-trimpath", "-ldflags=-s -w"]);
        build.arg("-o").arg(&program).arg(".");
        go.run(build, |_| {})?;
        let bytes =
            fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        let image = oci::Image {
            names: vec![IMAGE.to_owned()],
            layers: vec![vec![oci::Entry::program("echo", bytes)]],
            start: oci::Start {
                entrypoint: vec!["/echo".to_owned()],
                user: "65532:65532".to_owned(),
            },
            ..oci::Image::default()
        };
        image.write(&out.join("echo.tar")).map(drop)
    })?;
    Ok(place.join("echo.tar"))
}

fn modules() -> PathBuf {
    paths::root().join("tests/cluster/echo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_s_pods_are_made_of_it() {
        let path = paths::root().join("examples/kubernetes-quickstart/backends.yaml");
        let text = fs::read_to_string(path).unwrap();
        let images: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("image: "))
            .collect();
        assert_eq!(images, [IMAGE, IMAGE]);
    }
}
