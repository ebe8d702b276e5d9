//! The objects as they were last read completely, in a file on the node: what is served when a start finds no API server.
//!
//! No private key is in it unless that is asked for: of Secrets only the one that the nodes share is kept, without the keys
//! of session tickets. The file can be read by its owner alone all the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::store::Store;
use super::watcher::Change;
use crate::file::keys::{self, HASH_SEED, ROTATED};
use crate::file::read::phrase;
use crate::file::state;
use crate::snapshot::ObjectKey;
use crate::translate::{Inputs, Object};

/// Name of the file below the state directory.
const NAME: &str = "kubernetes-objects.jsonl";
/// Format of the file. One of another number is not read.
const FORMAT: u32 = 1;
/// Between two writes, at least; and that many times as long as a write took.
const GAP: Duration = Duration::from_secs(10);
const SHARE: u32 = 200;
/// Largest file that is read.
const LARGEST: u64 = 1 << 30;

/// First line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    saved: Timestamp,
    objects: usize,
    /// Addresses by the status of Gateways.
    addresses: Vec<(String, String, Vec<IpAddr>)>,
}

/// Where it is kept.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    /// Secrets are kept whole.
    secrets: bool,
    /// When it may be written next; none: nothing has changed.
    due: Option<Instant>,
    not_before: Option<Instant>,
    writing: Arc<AtomicBool>,
}

/// What a cache held.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) store: Store,
    pub(super) saved: Timestamp,
    pub(super) objects: usize,
}

impl Cache {
    /// Below `state_dir`. With `secrets` private keys are kept too.
    pub(super) fn new(state_dir: &Path, secrets: bool) -> Self {
        Self {
            path: state_dir.join(NAME),
            secrets,
            due: None,
            not_before: None,
            writing: Arc::default(),
        }
    }

    /// Reads it. A cache that is damaged is not used at all: half a configuration would look like a whole one.
    pub(super) fn load(&self) -> Option<Cached> {
        match self.read() {
            Ok(cached) => Some(cached),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::InvalidData => error.to_string(),
                    _ => phrase(&error),
                };
                tracing::warn!("{} is not used: {why}", self.path.display());
                None
            }
        }
    }

    fn read(&self) -> io::Result<Cached> {
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let file = File::open(&self.path)?;
        if file.metadata()?.len() > LARGEST {
            return Err(bad(format!("it has more than {LARGEST} bytes")));
        }
        let mut lines = BufReader::new(file).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let header: Header = serde_json::from_str(&first)
            .map_err(|error| bad(format!("its first line cannot be read: {error}")))?;
        if header.format != FORMAT {
            return Err(bad(format!("its format is {}", header.format)));
        }
        let mut store = Store::default();
        let mut changes = Vec::new();
        for (line, number) in lines.zip(2..) {
            let line = line?;
            let object = serde_json::from_str::<Value>(&line)
                .map_err(|error| error.to_string())
                .and_then(|value| Object::parse(&value).map_err(|error| error.to_string()))
                .map_err(|error| bad(format!("line {number}: {error}")))?;
            let object = object.ok_or_else(|| bad(format!("line {number}: an unknown kind")))?;
            changes.push(Change::Is(Box::new(object)));
        }
        if changes.len() != header.objects {
            return Err(bad(format!(
                "it has {} objects of {}",
                changes.len(),
                header.objects
            )));
        }
        for (namespace, name, addresses) in header.addresses {
            changes.push(Change::Addresses(
                ObjectKey::new(namespace, name),
                addresses,
            ));
        }
        store.apply(changes);
        Ok(Cached {
            store,
            saved: header.saved,
            objects: header.objects,
        })
    }

    /// What is to be kept has changed.
    pub(super) fn changed(&mut self, now: Instant) {
        let at = self.not_before.filter(|at| *at > now).unwrap_or(now);
        self.due.get_or_insert(at);
    }

    /// When [`Self::save`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes it if it is time, on a thread of its own: changes do not wait for a disk.
    pub(super) fn save(&mut self, store: &Store, now: Instant) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.not_before = Some(now + GAP);
        if self.writing.swap(true, Ordering::AcqRel) {
            self.due = self.not_before;
            return;
        }
        self.due = None;
        let (inputs, addresses) = (store.inputs().clone(), store.addresses().clone());
        let (path, secrets) = (self.path.clone(), self.secrets);
        let writing = Arc::clone(&self.writing);
        let write = move || {
            let start = Instant::now();
            if let Err(error) = write(&path, &inputs, &addresses, secrets) {
                tracing::warn!(
                    "a start without an API server will have nothing to serve: {} cannot be written: {}; give a directory that can be written with --state-dir",
                    path.display(),
                    phrase(&error)
                );
            }
            drop((inputs, addresses));
            // Many objects are written more rarely.
            std::thread::sleep((start.elapsed() * SHARE).saturating_sub(GAP));
            writing.store(false, Ordering::Release);
        };
        let thread = std::thread::Builder::new().name("cache".into());
        if let Err(error) = thread.spawn(write) {
            self.writing.store(false, Ordering::Release);
            tracing::warn!("the objects cannot be kept for a start without an API server: {error}");
        }
    }

    /// Writes what has not been written yet, before the process ends.
    pub(super) fn finish(&self, store: &Store) {
        if self.due.is_some() && !self.writing.load(Ordering::Acquire) {
            let written = write(&self.path, store.inputs(), store.addresses(), self.secrets);
            if let Err(error) = written {
                tracing::warn!(
                    "{} cannot be written: {}",
                    self.path.display(),
                    phrase(&error)
                );
            }
        }
    }
}

fn write(
    path: &Path,
    inputs: &Inputs,
    addresses: &BTreeMap<ObjectKey, Vec<IpAddr>>,
    secrets: bool,
) -> io::Result<()> {
    let kept = || inputs.iter().filter_map(|object| keep(object, secrets));
    let header = Header {
        format: FORMAT,
        saved: Timestamp::now(),
        objects: kept().count(),
        addresses: addresses
            .iter()
            .map(|(key, addresses)| {
                let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
                (namespace, name, addresses.clone())
            })
            .collect(),
    };
    state::write_by(path, |file| {
        serde_json::to_writer(&mut *file, &header)?;
        for value in kept() {
            file.write_all(b"\n")?;
            serde_json::to_writer(&mut *file, &value())?;
        }
        file.write_all(b"\n")
    })
}

/// The object as it is kept, if it is.
fn keep(object: Object, secrets: bool) -> Option<impl FnOnce() -> Value> {
    let shared = ObjectKey::new(keys::NAMESPACE, keys::NAME);
    let is_secret = matches!(object, Object::Secret(_));
    let cut = is_secret && !secrets;
    if cut && object.id().key != shared {
        return None;
    }
    Some(move || {
        let mut value = object.to_value();
        if cut {
            let (probe, before) = ROTATED[0];
            for field in ["data", "stringData"] {
                if let Some(data) = value[field].as_object_mut() {
                    data.retain(|name, _| [HASH_SEED, probe, before].contains(&&**name));
                }
            }
        }
        value
    })
}
