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
use std::time::SystemTime;

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
    /// The files that were looked at; it says nothing of others and of directories. None: all were.
    pub only: Option<BTreeSet<String>>,
    /// Stamps of the files by which it can be seen later that they have not changed.
    pub stamps: BTreeMap<String, Stamp>,
    /// Whether some file is reached by a link: then a change of one path may be one of others.
    pub linked: bool,
}

/// What the system says of a file: if that is the same, so is what the file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            file: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Whether a further change would surely show: time stamps are coarse, so not of what has changed only just now.
    fn is_settled(&self) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or(u64::MAX);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.is_ok_and(|now| now.as_secs() > changed.saturating_add(2))
    }
}

/// What became of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Its text.
    Text(String),
    /// Its stamp is that of the last reading.
    Unchanged,
    /// Somebody is writing it: what was last read from it stays.
    BeingWritten,
    /// One phrase why it could not be read.
    Unreadable(String),
}

/// Reads `dir` and everything below it, except the files of `being_written`.
#[must_use]
pub fn read(dir: &Path, being_written: &BTreeSet<PathBuf>) -> Listing {
    read_changed(dir, being_written, &BTreeMap::new())
}

/// The same, but does not open files whose stamps are `known`.
#[must_use]
pub fn read_changed(
    dir: &Path,
    being_written: &BTreeSet<PathBuf>,
    known: &BTreeMap<String, Stamp>,
) -> Listing {
    let mut reader = Reader {
        listing: Listing::default(),
        seen: BTreeSet::new(),
        being_written,
        known,
    };
    reader.directory(dir, "", 0);
    reader.listing
}

/// Reads only these files below `dir`. None if that might not be all that has changed: a directory is among them, or
/// something else that is not a file by itself.
#[must_use]
pub fn read_some(
    dir: &Path,
    paths: &BTreeSet<PathBuf>,
    being_written: &BTreeSet<PathBuf>,
) -> Option<Listing> {
    let (known, mut listing) = (BTreeMap::new(), Listing::default());
    let reader = Reader {
        listing: Listing::default(),
        seen: BTreeSet::new(),
        being_written,
        known: &known,
    };
    let mut only = BTreeSet::new();
    for path in paths.union(being_written) {
        let below = path.strip_prefix(dir).ok()?.to_str()?;
        let there = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() && meta.nlink() == 1 => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Ok(_) | Err(_) => return None,
        };
        let mut names = below.split('/');
        let name = below.rsplit('/').next().unwrap_or(below);
        if names.any(|name| name.starts_with('.')) || !is_manifest(name) {
            continue;
        }
        only.insert(below.to_owned());
        if there && let Some(content) = reader.content(path) {
            listing.files.insert(below.to_owned(), content);
        }
    }
    listing.only = Some(only);
    Some(listing)
}

struct Reader<'a> {
    listing: Listing,
    seen: BTreeSet<(u64, u64)>,
    being_written: &'a BTreeSet<PathBuf>,
    known: &'a BTreeMap<String, Stamp>,
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
                Ok(meta) if meta.is_dir() => {
                    self.listing.linked |= is_link(&full);
                    self.directory(&full, &below, depth + 1);
                }
                Ok(meta) if meta.is_file() && is_manifest(&name) => {
                    self.listing.linked |= meta.nlink() > 1 || is_link(&full);
                    if self.seen.insert((meta.dev(), meta.ino())) {
                        self.file(&full, below, Stamp::of(&meta));
                    }
                }
                Err(error) if is_manifest(&name) && error.kind() != io::ErrorKind::NotFound => {
                    self.listing.linked |= is_link(&full);
                    let content = Content::Unreadable(phrase(&error));
                    self.listing.files.insert(below, content);
                }
                // Something else, or removed since the directory was listed: as if it had never been there.
                Ok(_) => {}
                // A link to what may come into being.
                Err(_) => self.listing.linked |= is_link(&full),
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

    fn file(&mut self, full: &Path, below: String, stamp: Stamp) {
        let content = if self.known.get(&below) == Some(&stamp) {
            Some(Content::Unchanged)
        } else {
            self.content(full)
        };
        let Some(content) = content else { return };
        if matches!(content, Content::Text(_) | Content::Unchanged) && stamp.is_settled() {
            self.listing.stamps.insert(below.clone(), stamp);
        }
        self.listing.files.insert(below, content);
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

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink())
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
    fn what_has_its_last_stamp_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old.yaml"), dir.path().join("new.yaml"));
        fs::write(&old, "old").unwrap();
        fs::write(&new, "new").unwrap();
        let none = BTreeSet::new();
        // Both have changed just now: another change might not show.
        assert!(read(dir.path(), &none).stamps.is_empty());
        let stamp = |path| Stamp::of(&fs::metadata(path).unwrap());
        let known = BTreeMap::from([
            ("old.yaml".to_owned(), stamp(&old)),
            ("new.yaml".to_owned(), stamp(&old)),
        ]);
        let listing = read_changed(dir.path(), &none, &known);
        assert_eq!(listing.files["old.yaml"], Content::Unchanged);
        assert_eq!(listing.files["new.yaml"], Content::Text("new".into()));
        let mut settled = stamp(&old);
        settled.changed.0 -= 10;
        assert!(settled.is_settled() && !stamp(&old).is_settled());
    }

    #[test]
    fn some_files_are_read_alone_if_nothing_else_can_have_changed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        for name in ["a.yaml", "sub/b.yaml", "c.txt", ".d.yaml", "e.yaml"] {
            fs::write(at(name), name).unwrap();
        }
        symlink("a.yaml", at("link.yaml")).unwrap();
        fs::hard_link(at("e.yaml"), at("f.yaml")).unwrap();
        for (names, want) in [
            (
                &["a.yaml", "sub/b.yaml"][..],
                Some(&["a.yaml", "sub/b.yaml"][..]),
            ),
            (&["c.txt", ".d.yaml", "a.yaml.tmp"], Some(&[])),
            (&["gone.yaml"], Some(&["gone.yaml"])),
            (&["a.yaml", "sub"], None),
            (&["link.yaml"], None),
            (&["e.yaml"], None),
            (&["../elsewhere.yaml"], None),
        ] {
            let mut paths: BTreeSet<PathBuf> = names.iter().map(|name| at(name)).collect();
            if names[0].starts_with("..") {
                paths = [dir.path().with_extension("yaml")].into();
            }
            let got = read_some(dir.path(), &paths, &BTreeSet::new());
            let only = got.as_ref().map(|listing| {
                let only = listing.only.as_ref().unwrap();
                only.iter().map(String::as_str).collect::<Vec<_>>()
            });
            assert_eq!(only.as_deref(), want, "{names:?}");
            let gone = got.is_some_and(|listing| listing.files.contains_key("gone.yaml"));
            assert!(!gone);
        }
        let listing = read(dir.path(), &BTreeSet::new());
        assert!(listing.linked);
        assert!(!read(&at("sub"), &BTreeSet::new()).linked);
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
