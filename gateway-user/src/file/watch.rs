//! Follows a directory of manifests: says when to read it again and reads it.
//!
//! A file that somebody writes in place is read when it is closed, not half-way: between truncation and close
//! what was last read from it stays. Every directory is watched by itself. Another directory put in the place of the
//! whole one (a symbolic link that leads elsewhere now, a mount) changes nothing in what is watched: it is looked for every
//! [`LOOK`]. File systems without change events are followed by a full reading every [`RESYNC`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::debounce::Debounce;
use super::read::{self, Listing, Stamp};

/// Longest time between two readings.
pub const RESYNC: Duration = Duration::from_secs(10);

/// How often the directory is looked at by its path, in case that leads to another one now.
pub const LOOK: Duration = Duration::from_secs(1);

/// A file that is written to counts as complete after this long, also when nobody closes it.
const WRITE_LIMIT: Duration = Duration::from_secs(1);

/// Readings in a row that look for directories made meanwhile.
const MAX_ROUNDS: usize = 8;

/// A watched directory.
#[derive(Debug)]
pub struct Watch {
    dir: PathBuf,
    watcher: Option<RecommendedWatcher>,
    events: mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
    watched: BTreeMap<PathBuf, (u64, u64)>,
    being_written: BTreeMap<PathBuf, Instant>,
    /// Paths at which something has changed since the last reading. None: it may be anywhere.
    touched: Option<BTreeSet<PathBuf>>,
    /// Stamps of the last full reading.
    stamps: BTreeMap<String, Stamp>,
    /// Some file is reached by a link, so that a change of one path may be one of others.
    linked: bool,
    debounce: Debounce,
    /// Device and inode of the directory when it was last read; none: it could not be.
    root: Option<(u64, u64)>,
    next_look: Instant,
    next_resync: Instant,
}

impl Watch {
    /// Starts to watch `dir`; the first [`Watch::next`] returns at once.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event| {
            // Fails only when the watch is gone, and with it whoever wants to know.
            drop(sender.send(event));
        });
        if let Err(error) = &watcher {
            tracing::warn!(
                %error,
                "the directory is read every {} s only: changes cannot be watched",
                RESYNC.as_secs()
            );
        }
        let mut debounce = Debounce::default();
        debounce.changed(now());
        Self {
            dir: dir.to_owned(),
            watcher: watcher.ok(),
            events,
            watched: BTreeMap::new(),
            being_written: BTreeMap::new(),
            touched: None,
            stamps: BTreeMap::new(),
            linked: false,
            debounce,
            root: None,
            next_look: now() + LOOK,
            next_resync: now() + RESYNC,
        }
    }

    /// Waits for a change and reads the directory, or what of it has changed if that is clear. Safe to cancel.
    pub async fn next(&mut self) -> Listing {
        loop {
            // All that is told by now, before anything is read: a file may be half-way written.
            while let Ok(event) = self.events.try_recv() {
                self.take(event, now());
            }
            if let Some(listing) = self.act(now()) {
                return listing;
            }
            let due = self.debounce.due();
            let written = self.being_written.values().min().copied();
            let wake = [due, written, Some(self.next_look)]
                .into_iter()
                .flatten()
                .fold(self.next_resync, Instant::min);
            tokio::select! {
                biased;
                Some(event) = self.events.recv(), if self.watcher.is_some() => self.take(event, now()),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    /// Reads what there is to read by now. Not left to the timer, which is a millisecond late.
    fn act(&mut self, now: Instant) -> Option<Listing> {
        self.give_up_waiting(now);
        self.look(now);
        let resync = self.next_resync <= now;
        if !resync && self.debounce.due().is_none_or(|due| due > now) {
            return None;
        }
        if !resync && let Some(listing) = self.read_touched() {
            if listing.only.as_ref().is_some_and(BTreeSet::is_empty) {
                // Only what is no manifest: the copy beside it that an editor is about to rename, for one.
                self.debounce.dismiss();
                return None;
            }
            self.debounce.acted(now);
            return Some(listing);
        }
        self.debounce.acted(now);
        self.next_resync = now + RESYNC;
        Some(self.read())
    }

    /// Notes one event of the file system.
    fn take(&mut self, event: notify::Result<notify::Event>, now: Instant) {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            Ok(_) | Err(_) => {
                // Events were lost: read everything.
                self.touched = None;
                return self.debounce.changed(now);
            }
        };
        let touches = !matches!(
            event.kind,
            EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)
        );
        if touches && let Some(touched) = &mut self.touched {
            touched.extend(event.paths.iter().cloned());
        }
        match event.kind {
            EventKind::Create(CreateKind::File)
                if event.paths.iter().all(|path| is_begun(path)) =>
            {
                for path in event.paths {
                    self.being_written.insert(path, now + WRITE_LIMIT);
                }
            }
            EventKind::Modify(ModifyKind::Data(_)) => {
                for path in event.paths {
                    self.being_written.insert(path, now + WRITE_LIMIT);
                }
            }
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in &event.paths {
                    self.being_written.remove(path);
                }
                self.debounce.changed(now);
            }
            EventKind::Access(_) => {}
            _ => {
                for path in &event.paths {
                    self.being_written.remove(path);
                }
                self.debounce.changed(now);
            }
        }
    }

    /// Notes if the directory's path leads to another directory than the one that was read.
    fn look(&mut self, now: Instant) {
        if now < self.next_look {
            return;
        }
        self.next_look = now + LOOK;
        let there = std::fs::metadata(&self.dir).ok();
        if there.map(|meta| (meta.dev(), meta.ino())) != self.root {
            self.touched = None;
            self.debounce.changed(now);
        }
    }

    fn give_up_waiting(&mut self, now: Instant) {
        for (path, _) in self.being_written.extract_if(.., |_, until| *until <= now) {
            if let Some(touched) = &mut self.touched {
                touched.insert(path);
            }
            self.debounce.changed(now);
        }
    }

    /// Reads only what has changed; none if that is not clear.
    fn read_touched(&mut self) -> Option<Listing> {
        let touched = self.touched.take()?;
        let directory = touched.iter().any(|path| self.watched.contains_key(path));
        if directory || self.linked || self.watcher.is_none() {
            return None;
        }
        let being_written: BTreeSet<PathBuf> = self.being_written.keys().cloned().collect();
        let listing = read::read_some(&self.dir, &touched, &being_written)?;
        for path in listing.only.iter().flatten() {
            self.stamps.remove(path);
        }
        self.touched = Some(BTreeSet::new());
        Some(listing)
    }

    /// Reads, watches directories that are new, and reads again if there were any: what happened in them
    /// before they were watched is not missed.
    fn read(&mut self) -> Listing {
        let being_written: BTreeSet<PathBuf> = self.being_written.keys().cloned().collect();
        let mut listing = read::read_changed(&self.dir, &being_written, &self.stamps);
        for _ in 1..MAX_ROUNDS {
            if !self.watch(&listing) {
                break;
            }
            listing = read::read_changed(&self.dir, &being_written, &self.stamps);
        }
        self.root = listing.directories.get(&self.dir).copied();
        self.stamps = std::mem::take(&mut listing.stamps);
        self.linked = listing.linked;
        // What happens from here on is told, where the system tells it.
        let told = listing
            .directories
            .keys()
            .all(|dir| self.watched.contains_key(dir));
        self.touched = (told && listing.unreadable.is_empty()).then(BTreeSet::new);
        listing
    }

    /// Watches exactly the listed directories; true if one was new.
    fn watch(&mut self, listing: &Listing) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        let mut new = false;
        for (path, id) in &listing.directories {
            if self.watched.get(path) == Some(id) {
                continue;
            }
            match watcher.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path.clone(), *id);
                    new = true;
                }
                Err(error) => tracing::warn!(
                    path = %path.display(),
                    %error,
                    "a directory cannot be watched; it is read every {} s",
                    RESYNC.as_secs()
                ),
            }
        }
        self.watched.retain(|path, _| {
            let listed = listing.directories.contains_key(path);
            if !listed {
                // Already gone with the directory in most cases.
                drop(watcher.unwatch(path));
            }
            listed
        });
        new
    }
}

/// Whether nothing is in a new file yet, as far as can be told: its writer has still to close it.
fn is_begun(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == 0)
}

/// The runtime's clock, so that tests can stop it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;
    use crate::file::read::Content;

    async fn next(watch: &mut Watch) -> Listing {
        tokio::time::timeout(Duration::from_secs(5), watch.next())
            .await
            .expect("a change is seen in time")
    }

    fn text(listing: &Listing, path: &str) -> Option<String> {
        match listing.files.get(path)? {
            Content::Text(text) => Some(text.clone()),
            other => Some(format!("{other:?}")),
        }
    }

    /// Reads until `path` is `want`: one change may be seen as several.
    async fn until(watch: &mut Watch, path: &str, want: Option<&str>) {
        for _ in 0..20 {
            if text(&next(watch).await, path).as_deref() == want {
                return;
            }
        }
        panic!("{path} never became {want:?}");
    }

    #[tokio::test]
    async fn changes_are_seen_wherever_they_happen() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(dir.path());
        assert_eq!(next(&mut watch).await.files.len(), 0);
        fs::write(dir.path().join("a.yaml"), "one").unwrap();
        until(&mut watch, "a.yaml", Some("one")).await;
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/b.yaml"), "two").unwrap();
        until(&mut watch, "sub/b.yaml", Some("two")).await;
        fs::write(dir.path().join("sub/b.yaml"), "three").unwrap();
        until(&mut watch, "sub/b.yaml", Some("three")).await;
        fs::rename(dir.path().join("sub/b.yaml"), dir.path().join("sub/c.txt")).unwrap();
        until(&mut watch, "sub/b.yaml", None).await;
    }

    #[tokio::test]
    async fn a_file_is_read_when_its_writer_closes_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), "old").unwrap();
        let mut watch = Watch::new(dir.path());
        assert_eq!(
            text(&next(&mut watch).await, "a.yaml").as_deref(),
            Some("old")
        );
        let mut file = fs::File::create(dir.path().join("a.yaml")).unwrap();
        file.write_all(b"ne").unwrap();
        fs::write(dir.path().join("b.yaml"), "other").unwrap();
        until(&mut watch, "a.yaml", Some("BeingWritten")).await;
        file.write_all(b"w").unwrap();
        drop(file);
        until(&mut watch, "a.yaml", Some("new")).await;
    }

    #[tokio::test]
    async fn a_copy_beside_a_manifest_does_not_hold_it_up() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a.yaml"), "old").unwrap();
        let mut watch = Watch::new(dir.path());
        next(&mut watch).await;
        fs::write(at("copy"), "new").unwrap();
        fs::rename(at("copy"), at("a.yaml")).unwrap();
        // The copy by itself is no reason to read, so what is read first is the manifest.
        let listing = next(&mut watch).await;
        assert_eq!(text(&listing, "a.yaml").as_deref(), Some("new"));
    }

    #[tokio::test]
    async fn a_new_file_is_not_read_before_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(dir.path());
        next(&mut watch).await;
        let mut file = fs::File::create(dir.path().join("a.yaml")).unwrap();
        fs::write(dir.path().join("b.yaml"), "other").unwrap();
        until(&mut watch, "a.yaml", Some("BeingWritten")).await;
        file.write_all(b"new").unwrap();
        drop(file);
        until(&mut watch, "a.yaml", Some("new")).await;
        // An empty file that nobody writes is read in the end, and a link at once.
        std::os::unix::fs::symlink("b.yaml", dir.path().join("c.yaml")).unwrap();
        assert!(next(&mut watch).await.linked);
    }

    #[tokio::test(start_paused = true)]
    async fn another_directory_in_its_place_is_noticed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for release in ["one", "two"] {
            fs::create_dir(at(release)).unwrap();
            fs::write(at(release).join("a.yaml"), release).unwrap();
        }
        symlink("one", at("current")).unwrap();
        let mut watch = Watch::new(&at("current"));
        assert_eq!(text(&watch.next().await, "a.yaml").as_deref(), Some("one"));
        symlink("two", at("next")).unwrap();
        fs::rename(at("next"), at("current")).unwrap();
        let start = now();
        assert_eq!(text(&watch.next().await, "a.yaml").as_deref(), Some("two"));
        assert_eq!(now() - start, LOOK);
        fs::remove_file(at("current")).unwrap();
        let start = now();
        assert_eq!(watch.next().await.unreadable.len(), 1);
        assert_eq!(now() - start, LOOK);
        // What stays away is no change.
        let start = now();
        watch.next().await;
        assert_eq!(now() - start, RESYNC);
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_event_the_directory_is_read_again_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(dir.path());
        watch.next().await;
        let start = now();
        watch.next().await;
        assert_eq!(now() - start, RESYNC);
    }
}
