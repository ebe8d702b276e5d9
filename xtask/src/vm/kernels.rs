//! The kernels to try: those of `tests/vm/kernels.yaml`, or a file of the user's own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::paths;

/// A kernel of the list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listed {
    /// What `--kernel` calls it.
    pub(super) id: String,
    /// Suite of the Debian archive.
    pub(super) suite: String,
    /// Package there, see the file.
    pub(super) package: String,
    /// It is older than Forebay serves.
    #[serde(default)]
    pub(super) below: bool,
}

/// A kernel to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// From the archive.
    Listed(Listed),
    /// An image of the user's own.
    Image(PathBuf),
}

impl Wanted {
    /// Its name in results.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Listed(listed) => listed.id.clone(),
            Self::Image(path) => path.display().to_string(),
        }
    }
}

/// The list.
pub(super) fn list() -> Result<Vec<Listed>> {
    let path = paths::root().join("tests/vm/kernels.yaml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} is no list", path.display()))
}

/// Those that were asked for; all of the list if none was.
pub(super) fn chosen(asked: &[String], list: &[Listed]) -> Result<Vec<Wanted>> {
    if asked.is_empty() {
        return Ok(list.iter().cloned().map(Wanted::Listed).collect());
    }
    asked.iter().map(|text| one(text, list)).collect()
}

fn one(text: &str, list: &[Listed]) -> Result<Wanted> {
    if let Some(listed) = list.iter().find(|listed| listed.id == text) {
        return Ok(Wanted::Listed(listed.clone()));
    }
    let path = Path::new(text);
    if !path.exists() && !text.contains('/') {
        let known: Vec<&str> = list.iter().map(|listed| &*listed.id).collect();
        bail!(
            "--kernel {text}: there is no such kernel: known are {}, and paths of images",
            known.join(", ")
        );
    }
    ensure!(
        path.is_file(),
        "--kernel {text}: there is no such file: give the path of a bzImage, for example /boot/vmlinuz"
    );
    Ok(Wanted::Image(path.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_the_list_has_a_name_of_its_own() {
        let list = list().unwrap();
        let mut ids: Vec<&str> = list.iter().map(|listed| &*listed.id).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
        assert!(count >= 2, "{count}");
    }

    #[test]
    fn an_unknown_kernel_is_answered_by_those_that_are_known() {
        let list = list().unwrap();
        let error = chosen(&["6.66".to_owned()], &list).unwrap_err().to_string();
        assert!(
            error.starts_with("--kernel 6.66: there is no such kernel: known are 5.10, 6.1"),
            "{error}"
        );
        let error = chosen(&["/no/such".to_owned()], &list).unwrap_err();
        assert!(error.to_string().contains("no such file"), "{error}");
        assert_eq!(chosen(&["6.1".to_owned()], &list).unwrap()[0].name(), "6.1");
        assert_eq!(chosen(&[], &list).unwrap().len(), list.len());
    }
}
