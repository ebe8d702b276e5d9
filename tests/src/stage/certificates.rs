//! Certificates by `openssl`: a root, an intermediate below it, and leaves of the intermediate.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// What `openssl req` needs of a configuration; the system's would make every certificate an authority.
const CONFIGURATION: &str = "[req]\ndistinguished_name = name\n[name]\n";

/// An authority and where its files lie.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
}

/// A leaf with what a Secret needs of it.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// File with the leaf and the intermediate, PEM.
    pub chain_file: PathBuf,
    /// File with the key, PEM.
    pub key_file: PathBuf,
    /// The leaf and the intermediate, PEM.
    pub chain: String,
    /// The key, PEM.
    pub key: String,
}

impl Authority {
    /// Makes root and intermediate in `directory`, which exists.
    ///
    /// # Errors
    /// What `openssl` said.
    pub fn new(directory: &Path) -> Result<Self> {
        let authority = Self {
            directory: directory.to_path_buf(),
        };
        fs::write(authority.file("req.cnf"), CONFIGURATION).context("cannot write req.cnf")?;
        let ca = "basicConstraints=critical,CA:TRUE";
        authority.make("root", None, 1, &[ca])?;
        authority.make("intermediate", Some("root"), 2, &[ca])?;
        Ok(authority)
    }

    /// File with the root, PEM.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.file("root.pem")
    }

    /// Issues a certificate for these DNS names, with a new key; `name` names its files.
    ///
    /// # Errors
    /// What `openssl` said.
    pub fn issue(&self, name: &str, dns: &[&str], serial: u32) -> Result<Leaf> {
        let names: Vec<String> = dns.iter().map(|name| format!("DNS:{name}")).collect();
        let names = format!("subjectAltName={}", names.join(","));
        let no_ca = "basicConstraints=critical,CA:FALSE";
        self.make(name, Some("intermediate"), serial, &[no_ca, &names])?;
        let read = |file: &str| {
            let path = self.file(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let chain = read(&format!("{name}.pem"))? + &read("intermediate.pem")?;
        let chain_file = self.file(&format!("{name}.chain.pem"));
        fs::write(&chain_file, &chain).context("cannot write a chain")?;
        let key_file = format!("{name}.key");
        Ok(Leaf {
            chain_file,
            key: read(&key_file)?,
            key_file: self.file(&key_file),
            chain,
        })
    }

    /// SHA-256 of a leaf's public key in base64, as Chromium takes it.
    ///
    /// # Errors
    /// What `openssl` said.
    pub fn key_hash(&self, leaf: &Leaf) -> Result<String> {
        let pipe = "openssl pkey -in \"$1\" -pubout -outform der | openssl dgst -sha256 -binary | openssl base64";
        let mut sh = Command::new("sh");
        sh.args(["-c", pipe, "sh"]).arg(&leaf.key_file);
        said(&mut sh)
    }

    fn make(&self, name: &str, by: Option<&str>, serial: u32, extensions: &[&str]) -> Result<()> {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "30"])
            .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-config"])
            .arg(self.file("req.cnf"))
            .args(["-subj", &format!("/CN={name}"), "-set_serial"])
            .arg(serial.to_string())
            .arg("-keyout")
            .arg(self.file(&format!("{name}.key")))
            .arg("-out")
            .arg(self.file(&format!("{name}.pem")));
        if let Some(by) = by {
            openssl.arg("-CA").arg(self.file(&format!("{by}.pem")));
            openssl.arg("-CAkey").arg(self.file(&format!("{by}.key")));
        }
        for extension in extensions {
            openssl.args(["-addext", extension]);
        }
        for extension in ["subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid"] {
            openssl.args(["-addext", extension]);
        }
        said(&mut openssl).map(drop)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn said(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("cannot run openssl: is it installed?")?;
    ensure!(
        output.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
