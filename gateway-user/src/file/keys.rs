//! Secrets that the nodes share: the Secret `forebay-system/forebay-keys`, or for a single node a file of its own.
//!
//! Invariant: several nodes never run with keys of their own: they would hash flows differently and break each
//! other's connections.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use gateway_common::hash::{Key, sip13};

use super::read::phrase;
use crate::snapshot::ObjectKey;
use crate::translate::Inputs;
use crate::translate::objects::Secret;

/// Namespace of the Secret.
pub const NAMESPACE: &str = "forebay-system";

/// Name of the Secret.
pub const NAME: &str = "forebay-keys";

/// Bytes of every key.
pub const LENGTH: usize = 16;

/// Name of the key of the flow hash in the Secret.
pub const HASH_SEED: &str = "hash-seed";

/// Names of the keys that are replaced now and then, each with that of the one before it.
pub const ROTATED: [(&str, &str); 2] = [
    ("probe-key", "probe-key-previous"),
    ("ticket-key", "ticket-key-previous"),
];

/// Name of the file below the state directory.
const FILE: &str = "hash-seed";

/// The shared secrets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    /// Key of the flow hash; never changes in the life of a set of nodes.
    pub hash_seed: [u8; LENGTH],
    /// Key of the probes between nodes; without one of its own it follows from the hash seed.
    pub probe: Option<[u8; LENGTH]>,
    /// The key of the probes before that one, while it is being replaced.
    pub probe_previous: Option<[u8; LENGTH]>,
    /// From which the keys of session tickets follow; without it tickets are good on one node.
    pub ticket: Option<[u8; LENGTH]>,
    /// The one before it, while it is being replaced.
    pub ticket_previous: Option<[u8; LENGTH]>,
}

impl Keys {
    fn of_seed(hash_seed: [u8; LENGTH]) -> Self {
        Self {
            hash_seed,
            probe: None,
            probe_previous: None,
            ticket: None,
            ticket_previous: None,
        }
    }

    /// The key of the flow hash as its two words.
    #[must_use]
    pub fn hash_key(&self) -> Key {
        words(self.hash_seed)
    }

    /// The key of the probes, then the one before it; zero if there is none.
    #[must_use]
    pub fn probe_keys(&self) -> [Key; 2] {
        let derived = |half: &[u8]| sip13(self.hash_key(), half);
        let own = || {
            [
                derived(b"probe key, low half"),
                derived(b"probe key, high half"),
            ]
        };
        [
            self.probe.map_or_else(own, words),
            self.probe_previous.map_or([0, 0], words),
        ]
    }
}

/// SipHash takes its key as two words, lowest byte first.
fn words(key: [u8; LENGTH]) -> Key {
    let word = |from: usize| u64::from_le_bytes(std::array::from_fn(|i| key[from + i]));
    [word(0), word(8)]
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// Why there are no keys.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Several nodes, no Secret.
    #[error(
        "{0} nodes are listed but there is no Secret forebay-system/forebay-keys; add it with 16 random bytes as hash-seed, the same on every node"
    )]
    Missing(usize),
    /// The Secret is there but bad.
    #[error("Secret forebay-system/forebay-keys: {0} {1}; give 16 random bytes in base64")]
    Bad(&'static str, &'static str),
    /// The local file is bad.
    #[error("{path} does not hold a key of 16 bytes in base64; remove it to have a new one made", path = .0.display())]
    BadFile(PathBuf),
    /// The local file cannot be read or made.
    #[error("{path} cannot be used: {why}; give a directory that can be written with --state-dir", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
}

/// The keys: from the Secret; without it and with at most one listed node, from the file below `state_dir`, which
/// is made at the first start.
///
/// # Errors
/// See [`KeyError`].
pub fn load(inputs: &Inputs, listed_nodes: usize, state_dir: &Path) -> Result<Keys, KeyError> {
    if let Some(keys) = from_secret(inputs)? {
        return Ok(keys);
    }
    if listed_nodes > 1 {
        return Err(KeyError::Missing(listed_nodes));
    }
    from_file(state_dir)
}

/// The keys of the Secret, if it is there.
///
/// # Errors
/// [`KeyError::Bad`].
pub fn from_secret(inputs: &Inputs) -> Result<Option<Keys>, KeyError> {
    let Some(secret) = inputs.secrets.get(&ObjectKey::new(NAMESPACE, NAME)) else {
        return Ok(None);
    };
    let key = |name| key_of(secret, name);
    Ok(Some(Keys {
        hash_seed: key(HASH_SEED)?.ok_or(KeyError::Bad(HASH_SEED, "is missing"))?,
        probe: key(ROTATED[0].0)?,
        probe_previous: key(ROTATED[0].1)?,
        ticket: key(ROTATED[1].0)?,
        ticket_previous: key(ROTATED[1].1)?,
    }))
}

/// A key of the Secret, if it is there.
fn key_of(secret: &Secret, name: &'static str) -> Result<Option<[u8; LENGTH]>, KeyError> {
    let bytes = if let Some(text) = secret.string_data.get(name) {
        text.as_bytes().to_vec()
    } else if let Some(text) = secret.data.get(name) {
        let decoded = STANDARD.decode(text.trim());
        decoded.map_err(|_| KeyError::Bad(name, "is not base64"))?
    } else {
        return Ok(None);
    };
    let key = bytes.try_into();
    key.map(Some)
        .map_err(|_| KeyError::Bad(name, "is not 16 bytes long"))
}

/// A new key.
///
/// # Errors
/// The system gives no random bytes.
pub fn random() -> std::io::Result<[u8; LENGTH]> {
    let mut key = [0; LENGTH];
    fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
    Ok(key)
}

fn from_file(state_dir: &Path) -> Result<Keys, KeyError> {
    let path = state_dir.join(FILE);
    let failed = |error: std::io::Error| KeyError::File {
        path: path.clone(),
        why: phrase(&error),
    };
    match fs::read_to_string(&path) {
        Ok(text) => STANDARD
            .decode(text.trim())
            .ok()
            .and_then(|seed| seed.try_into().ok())
            .map(Keys::of_seed)
            .ok_or_else(|| KeyError::BadFile(path.clone())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let hash_seed = random().map_err(failed)?;
            super::state::write(
                &path,
                format!("{}\n", STANDARD.encode(hash_seed)).as_bytes(),
            )
            .map_err(failed)?;
            Ok(Keys::of_seed(hash_seed))
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;
    use crate::translate::Object;

    fn inputs(data: &serde_json::Value) -> Inputs {
        let secret = json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"namespace": "forebay-system", "name": "forebay-keys"}, "data": data});
        let mut inputs = Inputs::default();
        inputs.insert(Object::parse(&secret).unwrap().unwrap());
        inputs
    }

    #[test]
    fn a_single_node_keeps_a_key_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("made/below");
        let first = load(&Inputs::default(), 1, &state).unwrap();
        assert_ne!(first.hash_seed, [0; 16]);
        assert_eq!(load(&Inputs::default(), 0, &state), Ok(first));
        let path = state.join("hash-seed");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::write(&path, "short").unwrap();
        assert_eq!(
            load(&Inputs::default(), 1, &state),
            Err(KeyError::BadFile(path))
        );
    }

    #[test]
    fn several_nodes_need_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            load(&Inputs::default(), 2, dir.path()),
            Err(KeyError::Missing(2))
        );
        let good = inputs(&json!({"hash-seed": "AAECAwQFBgcICQoLDA0ODw=="}));
        let keys = load(&good, 2, dir.path()).unwrap();
        assert_eq!(keys.hash_seed, std::array::from_fn(|i| i as u8));
        for (data, why) in [
            (json!({}), "is missing"),
            (json!({"hash-seed": "?"}), "is not base64"),
            (json!({"hash-seed": "AAEC"}), "is not 16 bytes long"),
        ] {
            assert_eq!(
                load(&inputs(&data), 1, dir.path()),
                Err(KeyError::Bad("hash-seed", why))
            );
        }
    }

    #[test]
    fn probe_keys_are_their_own_or_follow_from_the_seed() {
        let seed = "AAECAwQFBgcICQoLDA0ODw==";
        let keys = |data| from_secret(&inputs(&data)).map(|keys| keys.unwrap().probe_keys());
        let alone = keys(json!({"hash-seed": seed})).unwrap();
        assert_eq!(alone[1], [0, 0]);
        assert!(alone[0] != [0, 0] && alone[0] != words(std::array::from_fn(|i| i as u8)));
        let own = json!({"hash-seed": seed, "probe-key": "AQAAAAAAAAACAAAAAAAAAA==",
            "probe-key-previous": "AwAAAAAAAAAEAAAAAAAAAA=="});
        assert_eq!(keys(own), Ok([[1, 2], [3, 4]]));
        assert_eq!(
            keys(json!({"hash-seed": seed, "probe-key": "AAEC"})),
            Err(KeyError::Bad("probe-key", "is not 16 bytes long"))
        );
    }
}
