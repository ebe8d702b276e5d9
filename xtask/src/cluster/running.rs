//! A cluster that this command starts and that ends with it, however that is.

use std::{fs::File, path::Path, process::Command};

use anyhow::{Result, bail};
use serde_json::Value;

use super::{
    Channel, binaries, checks, control, layout::Name, lock, network, node, remove, start,
    wait::Interrupt,
};
use crate::progress::Steps;

/// What a cluster is to be.
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a Name,
    pub(crate) nodes: u8,
    pub(crate) channel: Channel,
    /// Version of Gateway API.
    pub(crate) gateway_api: &'a str,
}

/// A started cluster; dropped, it is removed.
pub(crate) struct Running<'a> {
    pub(crate) name: &'a Name,
    pub(crate) steps: &'a Steps,
    pub(crate) interrupt: &'a Interrupt,
    kept: bool,
    /// Nobody else removes it meanwhile.
    _lock: File,
}

impl<'a> Running<'a> {
    /// Starts it and waits until its nodes are ready; of one that does not start nothing is left but logs.
    pub(crate) fn start(
        steps: &'a Steps,
        interrupt: &'a Interrupt,
        wanted: &Wanted<'a>,
    ) -> Result<Self> {
        let name = wanted.name;
        steps.run("this machine", |_| checks::machine())?;
        let lock = lock(name)?;
        if remove::is_there(name) {
            bail!(
                "there is a cluster {name}, or what is left of one: see `cargo xtask cluster status`, \
                 remove it by `cargo xtask cluster down --name {name}`"
            );
        }
        steps.run("system packages", checks::packages)?;
        steps.run("kubernetes", |step| binaries::provide(step, interrupt))?;
        let running = Self {
            name,
            steps,
            interrupt,
            kept: false,
            _lock: lock,
        };
        match start(&running, wanted) {
            Ok(()) => Ok(running),
            Err(error) => Err(match remove::keep_logs(name) {
                Ok(kept) => {
                    error.context(format!("the cluster did not start; its logs are in {kept}"))
                }
                Err(_) => error,
            }),
        }
    }

    /// Leaves it running.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }

    /// Runs `kubectl` in the hub.
    pub(crate) fn kubectl(&self, words: &[&str]) -> Result<String> {
        control::kubectl(self.name, words)
    }

    /// The objects of a kind in all namespaces.
    pub(crate) fn objects(&self, kind: &str) -> Result<Vec<Value>> {
        control::objects(self.name, kind)
    }

    /// Creates or changes an object.
    pub(crate) fn apply(&self, object: &Value) -> Result<()> {
        let path = self.name.state().join("object.json");
        control::write(&path, object.to_string())?;
        let path = path.display().to_string();
        self.kubectl(&["apply", "--server-side", "-f", &path])
            .map(drop)
    }

    /// A command in the hub with the administrator's rights; it ends with this process.
    pub(crate) fn client(&self) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter"])
            .args(network::enter(&self.name.hub()))
            .env("KUBECONFIG", self.name.kubeconfig());
        command
    }

    /// Imports OCI archives on every node.
    pub(crate) fn load(&self, archives: &[impl AsRef<Path>]) -> Result<()> {
        for node in node::of_cluster(self.name) {
            for archive in archives {
                self.interrupt.check()?;
                node::load(self.name, node, archive.as_ref())?;
            }
        }
        Ok(())
    }

    /// Fails when a daemon of the cluster has ended.
    pub(crate) fn alive(&self) -> Result<()> {
        control::alive(self.name)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // A failure is shown by the step; the command that would remove the rest says it again.
        let removed = self.steps.run("removal", |_| remove::all(self.name));
        if let Err(left) = removed {
            eprintln!(
                "error: cluster {} could not be removed: {left:#}\n\
                 `cargo xtask cluster down --name {0}` tries again",
                self.name
            );
        }
    }
}
