//! Container images as OCI archives, made without any container tool: the same files give the same bytes.

mod archive;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) use archive::Entry;

/// What a container of an image starts.
#[derive(Debug, Default)]
pub(crate) struct Start {
    /// Program and arguments.
    pub(crate) entrypoint: Vec<String>,
    /// `UID:GID`; empty for root.
    pub(crate) user: String,
}

/// An image under one or several names.
#[derive(Debug, Default)]
pub(crate) struct Image {
    /// Full names with host and tag.
    pub(crate) names: Vec<String>,
    /// The files, lowest layer first.
    pub(crate) layers: Vec<Vec<Entry>>,
    pub(crate) start: Start,
    /// What the image says about itself.
    pub(crate) labels: BTreeMap<&'static str, String>,
}

/// What was written.
#[derive(Debug)]
pub(crate) struct Written {
    /// `sha256:…` of the manifest, by which a registry names the image too.
    pub(crate) digest: String,
    /// Bytes of the archive.
    pub(crate) size: usize,
}

/// A content-addressed part of the archive.
struct Blob {
    kind: &'static str,
    digest: String,
    bytes: Vec<u8>,
}

impl Image {
    /// Writes the image as an archive that containerd and others import.
    pub(crate) fn write(&self, path: &Path) -> Result<Written> {
        let context = || format!("cannot write {}", path.display());
        let mut file = BufWriter::new(File::create(path).with_context(context)?);
        let (digest, bytes) = self.to_bytes()?;
        file.write_all(&bytes).with_context(context)?;
        file.flush().with_context(context)?;
        let size = bytes.len();
        Ok(Written { digest, size })
    }

    /// The digest of the manifest, and the archive.
    fn to_bytes(&self) -> Result<(String, Vec<u8>)> {
        let layers = self
            .layers
            .iter()
            .map(|entries| {
                let bytes = archive::to_bytes(entries)?;
                Ok(Blob::new("application/vnd.oci.image.layer.v1.tar", bytes))
            })
            .collect::<Result<Vec<_>>>()?;
        let config = Blob::json(
            "application/vnd.oci.image.config.v1+json",
            &self.config(&layers),
        );
        let manifest = Blob::json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.descriptor(),
                "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
            }),
        );
        let digest = manifest.name();
        let mut entries = vec![
            Entry::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
            Entry::file("index.json", self.index(&manifest).to_string()),
            Entry::folder("blobs"),
            Entry::folder("blobs/sha256"),
        ];
        let mut blobs: Vec<Blob> = layers.into_iter().chain([config, manifest]).collect();
        blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        // Two layers may be the same.
        blobs.dedup_by(|a, b| a.digest == b.digest);
        for blob in blobs {
            let path = format!("blobs/sha256/{}", blob.digest);
            entries.push(Entry::file(&path, blob.bytes));
        }
        Ok((digest, archive::to_bytes(&entries)?))
    }

    fn config(&self, layers: &[Blob]) -> Value {
        let diffs: Vec<String> = layers.iter().map(Blob::name).collect();
        let mut start = json!({"Entrypoint": self.start.entrypoint, "User": self.start.user});
        if !self.labels.is_empty() {
            start["Labels"] = json!(self.labels);
        }
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": start,
            "rootfs": {"type": "layers", "diff_ids": diffs},
        })
    }

    fn index(&self, manifest: &Blob) -> Value {
        let named = |name: &String| {
            let mut descriptor = manifest.descriptor();
            descriptor["annotations"] = json!({
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name.rsplit(':').next(),
            });
            descriptor
        };
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.names.iter().map(named).collect::<Vec<_>>(),
        })
    }
}

impl Blob {
    fn new(kind: &'static str, bytes: Vec<u8>) -> Self {
        let digest = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            kind,
            digest,
            bytes,
        }
    }

    /// The members of a `serde_json` object are in the order of their names.
    fn json(kind: &'static str, value: &Value) -> Self {
        Self::new(kind, value.to_string().into_bytes())
    }

    fn name(&self) -> String {
        format!("sha256:{}", self.digest)
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.kind, "digest": self.name(), "size": self.bytes.len()})
    }
}

/// The architecture of this machine in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn image() -> Image {
        Image {
            names: vec!["forebay.dev/a:1".into(), "forebay.dev/b:2".into()],
            layers: vec![vec![
                Entry::folder("bin"),
                Entry::program("bin/a", vec![7; 1000]),
            ]],
            start: Start {
                entrypoint: vec!["/bin/a".into()],
                user: "65532:65532".into(),
            },
            labels: BTreeMap::new(),
        }
    }

    fn unpacked() -> (std::path::PathBuf, Value) {
        let folder = std::env::temp_dir().join(format!("forebay-oci-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("image.tar");
        let mut image = image();
        image.labels.insert("org.example.a", "b".to_owned());
        let written = image.write(&path).unwrap();
        let tar = Command::new("tar")
            .arg("-xf")
            .args([&path, Path::new("-C"), &folder])
            .status();
        assert!(tar.unwrap().success());
        let index = std::fs::read(folder.join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["manifests"][1]["digest"], written.digest.as_str());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), written.size as u64);
        (folder, index)
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        assert_eq!(image().to_bytes().unwrap(), image().to_bytes().unwrap());
        let digest = Blob::new("", image().to_bytes().unwrap().1).digest;
        if architecture() == "amd64" {
            assert_eq!(
                digest,
                "576dbf9341fdd389874c57c1143450716bc6ca25795b23afb3f9f1a6922d4f71"
            );
        }
    }

    #[test]
    fn every_digest_is_that_of_the_blob_it_names() {
        let (folder, index) = unpacked();
        let blob = |name: &Value| {
            let digest = name.as_str().unwrap().strip_prefix("sha256:").unwrap();
            let bytes = std::fs::read(folder.join("blobs/sha256").join(digest)).unwrap();
            assert_eq!(Blob::new("", bytes.clone()).digest, digest);
            bytes
        };
        let manifests = index["manifests"].as_array().unwrap();
        let names = manifests
            .iter()
            .map(|entry| &entry["annotations"]["io.containerd.image.name"]);
        assert_eq!(
            names.collect::<Vec<_>>(),
            ["forebay.dev/a:1", "forebay.dev/b:2"]
        );
        let manifest: Value = serde_json::from_slice(&blob(&manifests[0]["digest"])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"]["digest"])).unwrap();
        let layer = &manifest["layers"][0];
        assert_eq!(blob(&layer["digest"]).len(), layer["size"]);
        assert_eq!(config["rootfs"]["diff_ids"][0], layer["digest"]);
        assert_eq!(config["config"]["Entrypoint"][0], "/bin/a");
        assert_eq!(config["config"]["Labels"]["org.example.a"], "b");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
