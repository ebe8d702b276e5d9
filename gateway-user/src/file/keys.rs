//! Secrets that the nodes share: the Secret `forebay-system/forebay-keys`, or for a single node a file of its own.
//!
//! Invariant: several nodes never run with keys of their own: they would hash flows differently and break each
//! other's connections.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::read::phrase;
use crate::snapshot::ObjectKey;
use crate::translate::Inputs;

/// Namespace of the Secret.
pub const NAMESPACE: &str = "forebay-system";

/// Name of the Secret.
pub const NAME: &str = "forebay-keys";

/// Name of the file below the state directory.
const FILE: &str = "hash-seed";

/// The shared secrets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    /// Key of the flow hash; never changes in the life of a set of nodes.
    pub hash_seed: [u8; 16],
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
    #[error("Secret forebay-system/forebay-keys: hash-seed {0}; give 16 random bytes in base64")]
    Bad(&'static str),
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
    let seed = if let Some(text) = secret.string_data.get("hash-seed") {
        text.as_bytes().to_vec()
    } else {
        let text = secret
            .data
            .get("hash-seed")
            .ok_or(KeyError::Bad("is missing"))?;
        STANDARD
            .decode(text.trim())
            .map_err(|_| KeyError::Bad("is not base64"))?
    };
    let hash_seed = seed
        .try_into()
        .map_err(|_| KeyError::Bad("is not 16 bytes long"))?;
    Ok(Some(Keys { hash_seed }))
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
            .map(|hash_seed| Keys { hash_seed })
            .ok_or_else(|| KeyError::BadFile(path.clone())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut hash_seed = [0; 16];
            fs::File::open("/dev/urandom")
                .and_then(|mut random| random.read_exact(&mut hash_seed))
                .map_err(failed)?;
            super::state::write(
                &path,
                format!("{}\n", STANDARD.encode(hash_seed)).as_bytes(),
            )
            .map_err(failed)?;
            Ok(Keys { hash_seed })
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
            assert_eq!(load(&inputs(&data), 1, dir.path()), Err(KeyError::Bad(why)));
        }
    }
}
