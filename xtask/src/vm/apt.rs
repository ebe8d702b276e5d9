//! Packages from the Debian archive, through this machine's own apt and nothing of its state.
//!
//! Mirror, proxy and trusted keys are the machine's. Lists and downloads are in a directory of our own, one for each suite,
//! so that nothing needs root and suites of other releases never reach the machine's own lists. apt checks the
//! signature of the index and the hash of each package.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::geteuid;

use crate::{cmd, progress::Step};

/// The keys of Debian, where its releases have them; else the ones that apt trusts anyway.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// A suite's index in a directory of our own.
pub(super) struct Suite {
    configuration: PathBuf,
}

/// A package as the index describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) sha256: String,
    depends: Vec<String>,
}

impl Suite {
    /// Fetches the suite's index into `directory`.
    pub(super) fn update(suite: &str, directory: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = directory.join(part);
            fs::create_dir_all(&part)
                .with_context(|| format!("cannot create {}", part.display()))?;
        }
        let mirror = mirror(suite, &known()?)?;
        let keyring = KEYRINGS.into_iter().find(|path| Path::new(path).is_file());
        let signed = keyring.map_or_else(String::new, |path| format!("signed-by={path} "));
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write(
            "sources.list",
            // A mirror that lags behind has older packages, signed as well; what they are for runs in a machine alone.
            format!("deb [{signed}check-valid-until=no] {mirror} {suite} main\n"),
        )?;
        write("status", String::new())?;
        write("apt.conf", configuration(directory)?)?;
        let found = Self {
            configuration: directory.join("apt.conf"),
        };
        cmd::output(
            found
                .apt("apt-get")
                .args(["-q", "update", "--error-on=any"]),
        )
        .with_context(|| format!("the index of {suite} cannot be fetched from {mirror}"))?;
        Ok(found)
    }

    /// The package that `wanted` names and the parts of the kernel that it depends on. Of kernels that are no longer the newest the
    /// archive drops some, which may have held nothing but documents: they are left out.
    pub(super) fn resolve(&self, wanted: &str) -> Result<Vec<Package>> {
        let names = cmd::output(self.apt("apt-cache").args(["pkgnames", "linux-image"]))?;
        let first = newest(wanted, &names)
            .with_context(|| format!("the archive has no package {wanted} any more"))?;
        parts(&first, |name| self.show(name))
    }

    /// The package of this name.
    pub(super) fn package(&self, name: &str) -> Result<Package> {
        described(name, &self.show(name)?)
    }

    fn show(&self, name: &str) -> Result<String> {
        let mut apt = self.apt("apt-cache");
        cmd::output(apt.args(["show", "--no-all-versions", name]))
    }

    /// Downloads a package into `directory`; apt compares its hash with the index.
    pub(super) fn download(&self, package: &Package, directory: &Path) -> Result<()> {
        let exactly = format!("{}={}", package.name, package.version);
        let mut apt = self.apt("apt-get");
        apt.current_dir(directory)
            .args(["-q", "download", &exactly]);
        cmd::output(&mut apt).map(drop)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", &self.configuration)
            .env("LC_ALL", "C");
        command
    }
}

/// Instead of the machine's own configuration, whose hooks are for its own state; only how it reaches archives is kept.
fn configuration(directory: &Path) -> Result<String> {
    let at = directory.display();
    let machine = cmd::output(Command::new("apt-config").arg("dump"))?;
    let reach: String = machine
        .lines()
        .filter(|line| line.starts_with("Acquire::http"))
        .flat_map(|line| [line, "\n"])
        .collect();
    Ok(format!(
        "{reach}\
         Dir::Etc::Main \"/dev/null\";\n\
         Dir::Etc::Parts \"/dev/null\";\n\
         Dir::State \"{at}\";\n\
         Dir::State::Lists \"{at}/lists\";\n\
         Dir::State::status \"{at}/status\";\n\
         Dir::Cache \"{at}/cache\";\n\
         Dir::Etc::SourceList \"{at}/sources.list\";\n\
         Dir::Etc::SourceParts \"/dev/null\";\n\
         Dir::Etc::Preferences \"/dev/null\";\n\
         Dir::Etc::PreferencesParts \"/dev/null\";\n\
         APT::Sandbox::User \"root\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\n\
         Acquire::Retries \"3\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
    ))
}

/// What this machine's apt has lists of: `origin|suite's name|address` a line.
fn known() -> Result<String> {
    let format = "$(ORIGIN)|$(RELEASE)|$(REPO_URI)";
    cmd::output(Command::new("apt-get").args(["indextargets", "--format", format]))
        .context("the kernels come from the Debian archive by apt: on this machine give one with --kernel PATH --modules DIR")
}

/// Where this machine gets packages of Debian from: the archive of security updates for its suites, else the main one.
fn mirror(suite: &str, known: &str) -> Result<String> {
    let is_security = |name: &str| name.contains("-security");
    let found = known.lines().find_map(|line| {
        let mut fields = line.splitn(3, '|');
        let (origin, name, address) = (fields.next()?, fields.next()?, fields.next()?);
        let fits = origin == "Debian" && is_security(name) == is_security(suite);
        fits.then(|| address.to_owned())
    });
    match found {
        Some(address) => Ok(address),
        None => bail!(
            "this machine's apt has no lists of an archive that could hold {suite}: run `sudo apt-get update`, or give a kernel with --kernel PATH --modules DIR"
        ),
    }
}

/// Of the names that fit `wanted`, the one of the newest kernel.
fn newest(wanted: &str, names: &str) -> Option<String> {
    let fits = |name: &&str| match wanted.split_once('*') {
        Some((begin, end)) => {
            name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end)
        }
        None => *name == wanted,
    };
    let found = names.lines().filter(fits).max_by(|a, b| by_number(a, b));
    found.map(str::to_owned)
}

/// Names compared by the numbers in them.
fn by_number(a: &str, b: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b))
}

/// A kernel's first package and the parts that it depends on, from what apt shows of each.
fn parts(first: &str, show: impl Fn(&str) -> Result<String>) -> Result<Vec<Package>> {
    let mut open = vec![first.to_owned()];
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    while let Some(name) = open.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let shown = show(&name)?;
        // apt knows what others depend on by name alone.
        if shown.is_empty() && name != first {
            continue;
        }
        let package = described(&name, &shown)?;
        open.extend(package.depends.iter().cloned());
        // The others are empty and only name the newest version.
        if package.name.contains('.') {
            found.push(package);
        }
    }
    Ok(found)
}

/// The package of this name from what `apt-cache show` prints, or an error.
fn described(name: &str, shown: &str) -> Result<Package> {
    package(shown).with_context(|| format!("apt describes {name} without version or hash"))
}

/// A package from what `apt-cache show` prints.
fn package(shown: &str) -> Option<Package> {
    let field = |name: &str| {
        let of = |line: &str| {
            line.strip_prefix(name)?
                .strip_prefix(": ")
                .map(str::to_owned)
        };
        shown.lines().find_map(of)
    };
    // The files of a kernel; the rest is what a machine needs to install it.
    let parts = [
        "linux-base-",
        "linux-binary-",
        "linux-image-",
        "linux-modules-",
    ];
    let depends = field("Depends").unwrap_or_default();
    let depends = depends
        .split(", ")
        .filter_map(|one| one.split(' ').next())
        .filter(|name| parts.iter().any(|part| name.starts_with(part)));
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        sha256: field("SHA256")?,
        depends: depends.map(str::to_owned).collect(),
    })
}

#[cfg(test)]
impl Package {
    /// A package without dependencies.
    pub(super) fn with_hash(name: &str, version: &str, sha256: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            sha256: sha256.to_owned(),
            depends: Vec::new(),
        }
    }
}

/// Has apt fetch its lists where it has none, as on a machine that was just made: they tell where its archive is.
pub(super) fn refresh(step: &Step) -> Result<()> {
    let is_known = |known: &str| known.lines().any(|line| line.starts_with("Debian|"));
    if !geteuid().is_root() || !cmd::is_there("apt-get") || is_known(&known()?) {
        return Ok(());
    }
    step.say("apt-get update");
    cmd::output(Command::new("apt-get").args(["-q", "update"])).map(drop)
}

/// Whether apt is there at all.
pub(super) fn require() -> Result<()> {
    ensure!(
        cmd::is_there("apt-get") && cmd::is_there("dpkg-deb"),
        "there is no apt-get, which kernels are fetched by: give one with --kernel PATH --modules DIR"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_that_holds_the_suite() {
        let known = "Else|stable|http://else/\n\
                     Debian|bookworm|http://one/debian/\n\
                     Debian|bookworm-security|http://two/debian-security/";
        assert_eq!(
            mirror("trixie-backports", known).unwrap(),
            "http://one/debian/"
        );
        assert_eq!(
            mirror("bullseye-security", known).unwrap(),
            "http://two/debian-security/"
        );
        let error = mirror("trixie-backports", "Else|stable|http://else/").unwrap_err();
        assert!(error.to_string().contains("sudo apt-get update"), "{error}");
    }

    #[test]
    fn of_many_kernels_the_newest_is_taken() {
        let names = "linux-image-6.18.9+deb13-cloud-amd64\n\
                     linux-image-6.18.15+deb13-cloud-amd64\n\
                     linux-image-6.18.15+deb13-cloud-amd64-dbg\n\
                     linux-image-7.3.4+deb13-cloud-amd64\n\
                     linux-image-cloud-amd64";
        assert_eq!(
            newest("linux-image-6.18.*-cloud-amd64", names).as_deref(),
            Some("linux-image-6.18.15+deb13-cloud-amd64")
        );
        assert_eq!(
            newest("linux-image-cloud-amd64", names).as_deref(),
            Some("linux-image-cloud-amd64")
        );
        assert_eq!(newest("linux-image-6.19.*-cloud-amd64", names), None);
    }

    #[test]
    fn parts_that_the_archive_has_dropped_are_left_out() {
        let show = |name: &str| {
            Ok(match name {
                "linux-image-6.18" => "Package: linux-image-6.18\nVersion: 6-1\nSHA256: abc\n\
                     Depends: kmod, linux-base-6.18 (= 6-1), linux-modules-6.18 (= 6-1)"
                    .to_owned(),
                "linux-modules-6.18" => {
                    "Package: linux-modules-6.18\nVersion: 6-1\nSHA256: def".to_owned()
                }
                _ => String::new(),
            })
        };
        let found = parts("linux-image-6.18", show).unwrap();
        let names: Vec<&str> = found.iter().map(|package| &*package.name).collect();
        assert_eq!(names, ["linux-image-6.18", "linux-modules-6.18"]);
        let error = parts("linux-base-6.18", show).unwrap_err();
        assert_eq!(
            error.to_string(),
            "apt describes linux-base-6.18 without version or hash"
        );
    }

    #[test]
    fn only_parts_of_the_kernel_are_followed() {
        let shown = "Package: linux-image-7\nVersion: 7-1\n\
                     Depends: dracut | linux-initramfs-tool, linux-binary-7 (= 7-1), linux-modules-7 (= 7-1)\n\
                     SHA256: abc\n";
        let package = package(shown).unwrap();
        assert_eq!(package.depends, ["linux-binary-7", "linux-modules-7"]);
        assert_eq!((&*package.version, &*package.sha256), ("7-1", "abc"));
    }
}
