//! Reads the manifest files of a directory.
//!
//! Every file is read once, however many symbolic links lead to it: a mounted ConfigMap shows each file both
//! below `..data` and at its place. Names that begin with a dot are skipped, so that neither such a mount's
//! inner directories nor an editor's swap files are taken for manifests. Nothing is parsed here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest manifest file, in bytes.
pub const MAX_FILE_SIZE: u64 = 4 << 20;

/// Deepest directory below the one that is read.
const MAX_DEPTH: usize = 16;

/// What a directory held when it was read. Paths are relative to it, with `/` between their parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Manifest files.
    pub files: BTreeMap<String, Content>,
    /// Directories that could not be read, and why; the empty path is the directory itself.
    pub unreadable: BTreeMap<String, String>,
    /// All directories that were read and that a change may happen in, with device and inode.
    pub directories: BTreeMap<PathBuf, (u64, u64)>,
}

/// What became of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Its text.
    Text(String),
    /// Somebody is writing it: what was last read from it stays.
    BeingWritten,
    /// One phrase why it could not be read.
    Unreadable(String),
}

/// Reads `dir` and everything below it, except the files of `being_written`.
#[must_use]
pub fn read(dir: &Path, being_written: &BTreeSet<PathBuf>) -> Listing {
    let mut reader = Reader {
        listing: Listing::default(),
        seen: BTreeSet::new(),
        being_written,
    };
    reader.directory(dir, "", 0);
    reader.listing
}

struct Reader<'a> {
    listing: Listing,
    seen: BTreeSet<(u64, u64)>,
    being_written: &'a BTreeSet<PathBuf>,
}

impl Reader<'_> {
    fn directory(&mut self, dir: &Path, path: &str, depth: usize) {
        let names = match self.names(dir, depth) {
            Ok(names) => names,
            Err(error) => {
                self.listing.unreadable.insert(path.to_owned(), error);
                return;
            }
        };
        for name in names {
            let below = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}/{name}")
            };
            let full = dir.join(&name);
            match fs::metadata(&full) {
                Ok(meta) if meta.is_dir() => self.directory(&full, &below, depth + 1),
                Ok(meta) if meta.is_file() && is_manifest(&name) => {
                    if self.seen.insert((meta.dev(), meta.ino()))
                        && let Some(content) = self.content(&full)
                    {
                        self.listing.files.insert(below, content);
                    }
                }
                Err(error) if is_manifest(&name) && error.kind() != io::ErrorKind::NotFound => {
                    let content = Content::Unreadable(phrase(&error));
                    self.listing.files.insert(below, content);
                }
                // Something else, or removed since the directory was listed: as if it had never been there.
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// The names in a directory in byte order; none if it was read already, by another path.
    fn names(&mut self, dir: &Path, depth: usize) -> Result<Vec<String>, String> {
        if depth > MAX_DEPTH {
            return Err(format!("it lies more than {MAX_DEPTH} directories deep"));
        }
        let meta = fs::metadata(dir).map_err(|e| phrase(&e))?;
        if !meta.is_dir() {
            return Err("it is not a directory".into());
        }
        let id = (meta.dev(), meta.ino());
        if !self.seen.insert(id) {
            return Ok(Vec::new());
        }
        self.listing.directories.insert(dir.to_owned(), id);
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(|e| phrase(&e))? {
            let name = entry.map_err(|e| phrase(&e))?.file_name();
            if let Some(name) = name.to_str().filter(|n| !n.starts_with('.')) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// `None` if the file is gone.
    fn content(&self, path: &Path) -> Option<Content> {
        if self.being_written.contains(path) {
            return Some(Content::BeingWritten);
        }
        match text(path) {
            Ok(Some(text)) => Some(Content::Text(text)),
            Ok(None) => None,
            Err(why) => Some(Content::Unreadable(why)),
        }
    }
}

fn is_manifest(name: &str) -> bool {
    matches!(
        name.rsplit_once('.'),
        Some((stem, "yaml" | "yml" | "json")) if !stem.is_empty()
    )
}

/// The text of a file; `None` if it is gone.
fn text(path: &Path) -> Result<Option<String>, String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(phrase(&error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| phrase(&e))?;
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(format!(
            "it is larger than {} MiB; split it",
            MAX_FILE_SIZE >> 20
        ));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| {
        format!(
            "it is not UTF-8 (byte {})",
            error.utf8_error().valid_up_to()
        )
    })
}

/// An I/O error as a phrase without the system's error number.
#[must_use]
pub fn phrase(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::NotADirectory => "it is not a directory".into(),
        _ => {
            let text = error.to_string();
            match text.rfind(" (os error") {
                Some(end) => text[..end].to_lowercase(),
                None => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn paths(listing: &Listing) -> Vec<&str> {
        listing.files.keys().map(String::as_str).collect()
    }

    #[test]
    fn manifests_are_found_by_their_ending_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("b/c")).unwrap();
        for name in [
            "a.yaml",
            "b/x.yml",
            "b/c/y.json",
            "a.txt",
            ".a.yaml.swp",
            ".hidden.yaml",
            ".yaml",
            "a.yaml~",
        ] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let listing = read(dir.path(), &BTreeSet::new());
        assert_eq!(paths(&listing), ["a.yaml", "b/c/y.json", "b/x.yml"]);
        assert_eq!(listing.files["b/x.yml"], Content::Text("b/x.yml".into()));
        assert_eq!(listing.directories.len(), 3);
    }

    #[test]
    fn a_mounted_config_map_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("..2026_01_01");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("gateway.yaml"), "kind: Gateway").unwrap();
        symlink("..2026_01_01", dir.path().join("..data")).unwrap();
        symlink("..data/gateway.yaml", dir.path().join("gateway.yaml")).unwrap();
        symlink("gateway.yaml", dir.path().join("same.yaml")).unwrap();
        symlink(".", dir.path().join("loop")).unwrap();
        symlink("nowhere.yaml", dir.path().join("dangling.yaml")).unwrap();
        let listing = read(dir.path(), &BTreeSet::new());
        assert_eq!(paths(&listing), ["gateway.yaml"]);
        assert_eq!(listing.unreadable, BTreeMap::new());
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("big.yaml"), vec![b'#'; (4 << 20) + 1]).unwrap();
        fs::write(dir.path().join("binary.yaml"), [b'a', 0xff]).unwrap();
        let listing = read(dir.path(), &BTreeSet::new());
        assert_eq!(
            listing.files["big.yaml"],
            Content::Unreadable("it is larger than 4 MiB; split it".into())
        );
        assert_eq!(
            listing.files["binary.yaml"],
            Content::Unreadable("it is not UTF-8 (byte 1)".into())
        );
        let missing = read(&dir.path().join("missing"), &BTreeSet::new());
        assert_eq!(missing.unreadable[""], "it does not exist");
        let file = read(&dir.path().join("big.yaml"), &BTreeSet::new());
        assert_eq!(file.unreadable[""], "it is not a directory");
    }
}
