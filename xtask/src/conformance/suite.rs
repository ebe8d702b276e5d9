//! The official suite and the images that its manifests name: from the cache, else built from what `tests/cluster` pins.
//!
//! The suite is its own test in its own package, unmodified. Image names are read from its manifests.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cluster::{
        Interrupt,
        go::{self, Go},
    },
    cmd, oci, paths,
    progress::Step,
    source,
};

/// Changes when the same sources shall give something else.
const FORM: &str = "1";
/// Space that a build takes at most.
const GIB: u64 = 5;
/// Packages that are compiled, roughly.
const PACKAGES: usize = 900;
const MODULE: &str = "sigs.k8s.io/gateway-api/conformance";
/// Where the program behind the tests' Services is since 1.7, and since then a module of its own.
const IMAGES: &str = "sigs.k8s.io/gateway-api-conformance-images";
const ECHO: &str = "echo-basic";
const COREDNS: &str = "coredns";
/// The version whose `echo-basic` stands in for that module.
const DONOR: &str = "1.6.3";

/// All versions, newest first.
pub(super) const NUMBERS: [&str; 2] = [VERSIONS[0].number, VERSIONS[1].number];

/// What differs between versions of the suite.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    number: &'static str,
    toolchain: &'static str,
    /// Module of `echo-basic`.
    echo: &'static str,
    /// Whether the manifests name CoreDNS.
    coredns: bool,
}

const VERSIONS: [Version; 2] = [
    Version {
        number: "1.7.0",
        toolchain: "go1.27.3",
        echo: IMAGES,
        coredns: false,
    },
    Version {
        number: DONOR,
        toolchain: "local",
        echo: MODULE,
        coredns: true,
    },
];

/// One version, built or to be built.
pub(super) struct Suite {
    version: &'static Version,
    place: PathBuf,
}

impl Suite {
    pub(super) fn new(number: &str) -> Result<Self> {
        let version = VERSIONS
            .iter()
            .find(|version| version.number == number)
            .with_context(|| format!("there is no suite {number}"))?;
        let mut folders = vec![sources(number)];
        if version.echo == IMAGES {
            folders.push(sources(DONOR));
        }
        let key = go::key(&format!("{FORM} {}", version.toolchain), &folders)?;
        let place = paths::cache()?.join(format!("conformance-{number}-{key}"));
        Ok(Self { version, place })
    }

    /// The test program.
    pub(super) fn program(&self) -> PathBuf {
        self.place.join("suite")
    }

    /// OCI archives.
    pub(super) fn images(&self) -> Vec<PathBuf> {
        let names = [ECHO, COREDNS].into_iter();
        names
            .filter(|&name| name == ECHO || self.version.coredns)
            .map(|name| self.image(name))
            .collect()
    }

    /// The Go that has built it.
    pub(super) fn go(&self) -> Result<String> {
        let path = self.place.join("go");
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// What is not upstream's own in it, if anything.
    pub(super) fn note(&self) -> Option<String> {
        (self.version.echo == IMAGES).then(|| {
            format!(
                "The module `{IMAGES}`, which the suite requires, is replaced by the folder `{ECHO}` of `{MODULE}` \
                 v{DONOR}: the program behind the tests' Services, and the types and messages that the suite shares with \
                 it. Tests, manifests and everything else of the suite are v{}'s, unmodified.",
                self.version.number
            )
        })
    }

    fn image(&self, name: &str) -> PathBuf {
        self.place.join("images").join(format!("{name}.tar"))
    }

    /// Finds it, or builds it.
    pub(super) fn provide(&self, step: &Step, interrupt: &Interrupt) -> Result<String> {
        let wanted = go::Wanted {
            place: &self.place,
            what: "building the suite",
            gib: GIB,
            toolchain: self.version.toolchain,
        };
        let built = go::provide(interrupt, &wanted, |go, out| self.build(step, go, out))?;
        let how = if built { "built" } else { "cached" };
        Ok(format!("{}, {how}", self.version.number))
    }

    fn build(&self, step: &Step, go: &Go<'_>, out: &Path) -> Result<()> {
        let version = self.version;
        let source = go.work().join("source");
        copy(&sources(version.number), &source)?;
        step.say("go mod download");
        if version.echo == IMAGES {
            stand_in(go, &source)?;
        }
        go.run(go.command(&source, &["mod", "download"]), |_| {})?;
        let bin = go.work().join("bin");
        fs::create_dir(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
        let echo = format!("{}/{ECHO}", version.echo);
        let mut build = go.command(&source, &["build", "-v", "-trimpath", "-ldflags=-s -w"]);
        build.arg("-o").arg(&bin).args([&echo, MODULE]);
        go.run(build, |lines| {
            step.say(&format!("go build: {lines} of {PACKAGES} packages"));
        })?;
        step.say("go test -c");
        let mut test = go.command(&source, &["test", "-c", "-trimpath", "-ldflags=-s -w"]);
        test.arg("-o").arg(out.join("suite")).arg(MODULE);
        go.run(test, |_| {})?;
        if version.coredns {
            step.say("CoreDNS");
            let folder = source.join(COREDNS);
            let mut build = go.command(&folder, &["build", "-trimpath", "-ldflags=-s -w"]);
            build.arg("-o").arg(&bin).arg(".");
            go.run(build, |_| {})?;
        }
        step.say("images");
        self.write_images(&unpacked(go, version.number), &bin, &out.join("images"))?;
        let mut said = go.command(&source, &["env", "GOVERSION"]);
        let path = out.join("go");
        fs::write(&path, cmd::output(&mut said)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_images(&self, module: &Path, bin: &Path, out: &Path) -> Result<()> {
        fs::create_dir(out).with_context(|| format!("cannot create {}", out.display()))?;
        let mut names = BTreeSet::new();
        for path in source::files(module)? {
            if path.extension().is_some_and(|end| end == "yaml") {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                names.extend(images_in(&text).map(str::to_owned));
            }
        }
        for archive in self.images() {
            let program = archive.file_stem().unwrap_or_default().to_string_lossy();
            let found: Vec<String> = names
                .iter()
                .filter(|name| repository(name) == program)
                .cloned()
                .collect();
            ensure!(!found.is_empty(), "no manifest names an image {program}");
            let image = image(&program, found, &bin.join(program.as_ref()))?;
            image.write(&out.join(format!("{program}.tar")))?;
        }
        Ok(())
    }
}

/// An image of one program.
fn image(program: &str, names: Vec<String>, path: &Path) -> Result<oci::Image> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(oci::Image {
        names,
        layers: vec![vec![oci::Entry::program(program, bytes)]],
        start: oci::Start {
            entrypoint: vec![format!("/{program}")],
            // CoreDNS binds port 53 by a capability, which is the root user's only.
            user: if program == COREDNS {
                ""
            } else {
                "65532:65532"
            }
            .to_owned(),
        },
        ..oci::Image::default()
    })
}

/// The images that a manifest's containers are made of.
fn images_in(manifest: &str) -> impl Iterator<Item = &str> {
    manifest.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("- ").unwrap_or(line);
        Some(line.strip_prefix("image: ")?.trim())
    })
}

/// `c` in `host/a/b/c:tag`.
fn repository(image: &str) -> &str {
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split(':').next().unwrap_or(last)
}

/// The module that cannot be had, made of the donor's folder.
fn stand_in(go: &Go<'_>, source: &Path) -> Result<()> {
    let donor = go.work().join("donor");
    copy(&sources(DONOR), &donor)?;
    go.run(go.command(&donor, &["mod", "download", MODULE]), |_| {})?;
    let images = source.join("images");
    copy(&unpacked(go, DONOR).join(ECHO), &images.join(ECHO))?;
    let old = format!("{MODULE}/{ECHO}");
    let new = format!("{IMAGES}/{ECHO}");
    for path in source::files(&images)? {
        let name = path.to_string_lossy();
        // Generated files name their package in bytes that are preceded by their length.
        if name.ends_with(".go") && !name.ends_with(".pb.go") {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            fs::write(&path, text.replace(&old, &new))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let path = images.join("go.mod");
    fs::write(&path, format!("module {IMAGES}\n\ngo 1.26.0\n"))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Where Go has unpacked that version of the suite.
fn unpacked(go: &Go<'_>, number: &str) -> PathBuf {
    go.work()
        .join("modules")
        .join(format!("{MODULE}@v{number}"))
}

/// What is pinned for that version.
fn sources(number: &str) -> PathBuf {
    paths::root()
        .join("tests/cluster")
        .join(format!("conformance-{number}"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for path in source::files(from)? {
        let target = to.join(path.strip_prefix(from).unwrap_or(&path));
        let parent = target.parent().unwrap_or(to);
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        // Its contents only: what Go has unpacked is read-only.
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(&target, bytes).with_context(|| format!("cannot write {}", target.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_pinned_and_has_definitions() {
        for version in VERSIONS {
            let text = fs::read_to_string(sources(version.number).join("go.mod")).unwrap();
            assert!(text.contains(&format!("{MODULE} v{}\n", version.number)));
            assert!(text.contains(&format!("sigs.k8s.io/gateway-api v{} ", version.number)));
            assert!(text.contains(&format!("tool {}/{ECHO}\n", version.echo)));
            assert_eq!(text.contains("replace"), version.echo == IMAGES);
            assert_eq!(
                sources(version.number).join(COREDNS).is_dir(),
                version.coredns
            );
        }
    }

    #[test]
    fn images_are_read_from_manifests() {
        let manifest = "spec:\n  containers:\n  - image: host/a/echo-basic:v1\n  - name: b\n    \
                        image: host/coredns:v2\n    imagePullPolicy: IfNotPresent\n";
        let found: Vec<&str> = images_in(manifest).collect();
        assert_eq!(found, ["host/a/echo-basic:v1", "host/coredns:v2"]);
        assert_eq!(
            found.into_iter().map(repository).collect::<Vec<_>>(),
            [ECHO, COREDNS]
        );
    }
}
