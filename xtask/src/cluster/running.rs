//! A cluster that this command starts and that ends with it, however that is.

use std::fs::File;

use anyhow::{Result, bail};

use super::{Channel, binaries, checks, layout::Name, lock, remove, start, wait::Interrupt};
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
