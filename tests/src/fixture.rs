//! A directory of manifests: the quick start, the replicas and the keys; edited while daemons follow it.
//!
//! Every write is a new file that is renamed over the old one, so that no reader sees half of it.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Read,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The host that the quick start's route answers to.
pub const HOST: &str = "test.devopscube.com";

/// A host whose route (see [`Fixture::route_to_v1`]) leads to backend-v1 alone.
pub const HOST_V1: &str = "v1.devopscube.com";

/// A Forebay replica in its EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Node name.
    pub name: String,
    /// Node address.
    pub address: Ipv4Addr,
    /// Where it is in its life.
    pub state: ReplicaState,
}

/// What the conditions of a replica say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// Listed, not yet ready.
    Joining,
    /// Ready.
    Ready,
    /// `terminating`: not ready and still serving.
    Draining,
}

/// The directory and what of it changes.
#[derive(Debug)]
pub struct Fixture {
    directory: PathBuf,
    seed: [u8; 16],
    replicas: Vec<Replica>,
}

impl Fixture {
    /// Copies the quick start into `directory`, which is made, and adds replicas and keys.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn new(directory: &Path, replicas: Vec<Replica>) -> Result<Self> {
        let mut seed = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut seed))
            .context("cannot read /dev/urandom")?;
        Self::with_seed(directory, replicas, seed)
    }

    /// The same with keys that machines which share no directory agree on.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn with_seed(directory: &Path, replicas: Vec<Replica>, seed: [u8; 16]) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let quickstart = &crate::checkout().join("examples/quickstart");
        let entries = fs::read_dir(quickstart)
            .with_context(|| format!("cannot read {}", quickstart.display()))?;
        for entry in entries {
            let from = entry.context("cannot read examples/quickstart")?.path();
            if from
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                let to = directory.join(from.file_name().unwrap_or_default());
                fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            }
        }
        let fixture = Self {
            directory: directory.to_path_buf(),
            seed,
            replicas,
        };
        fixture.write("keys.yaml", &keys(seed))?;
        fixture.write_replicas()?;
        Ok(fixture)
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `hash-seed` of the Secret.
    #[must_use]
    pub fn seed(&self) -> [u8; 16] {
        self.seed
    }

    /// The replicas as written.
    #[must_use]
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// Changes the list of replicas.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_replicas(&mut self, change: impl FnOnce(&mut Vec<Replica>)) -> Result<()> {
        change(&mut self.replicas);
        self.write_replicas()
    }

    /// Adds a route from [`HOST_V1`] to backend-v1 alone.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn route_to_v1(&self) -> Result<()> {
        self.write("route-v1.yaml", ROUTE_TO_V1)
    }

    /// Replaces a text wherever it stands in a file.
    ///
    /// # Errors
    /// If the text does not stand there.
    pub fn replace(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let path = self.directory.join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !text.contains(from) {
            bail!("{} does not contain `{from}`", path.display());
        }
        self.write(file, &text.replace(from, to))
    }

    /// Writes a file at once.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        write_whole(&self.directory, file, text)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// If there is none.
    pub fn remove(&self, file: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    fn write_replicas(&self) -> Result<()> {
        self.write("replicas.yaml", &slice(&self.replicas))
    }
}

/// Writes a file of a directory at once: no reader sees half of it.
pub(crate) fn write_whole(directory: &Path, file: &str, text: &str) -> Result<()> {
    let (path, fresh) = (directory.join(file), directory.join(format!(".{file}.new")));
    fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, &path).with_context(|| format!("cannot write {}", path.display()))
}

fn slice(replicas: &[Replica]) -> String {
    let mut text = SLICE.to_owned();
    for Replica {
        name,
        address,
        state,
    } in replicas
    {
        let (ready, serving, terminating) = match state {
            ReplicaState::Joining => (false, false, false),
            ReplicaState::Ready => (true, true, false),
            ReplicaState::Draining => (false, true, true),
        };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "  - addresses: [{address}]\n    nodeName: {name}\n    \
             conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}\n"
        );
    }
    text
}

fn keys(seed: [u8; 16]) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: forebay-keys\n  namespace: forebay-system\ndata:\n  hash-seed: {}\n",
        base64(&seed)
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

const SLICE: &str = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: forebay-1
  namespace: forebay-system
  labels:
    kubernetes.io/service-name: forebay
addressType: IPv4
ports: []
endpoints:
";

const ROUTE_TO_V1: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: backend-v1-route
  namespace: istio-test
spec:
  parentRefs:
    - name: istio-gateway
      namespace: istio-test
  hostnames:
    - v1.devopscube.com
  rules:
    - backendRefs:
        - name: backend-v1
          port: 80
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_golden_vectors() {
        // RFC 4648, section 10.
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_terminating_replica_serves_and_is_not_ready() {
        let replica = |state| Replica {
            name: "node1".into(),
            address: Ipv4Addr::new(192, 0, 2, 11),
            state,
        };
        let text = slice(&[replica(ReplicaState::Draining)]);
        assert!(text.ends_with(
            "  - addresses: [192.0.2.11]\n    nodeName: node1\n    conditions: {ready: false, serving: true, terminating: true}\n"
        ));
        assert!(
            slice(&[replica(ReplicaState::Ready)])
                .contains("{ready: true, serving: true, terminating: false}")
        );
    }
}
