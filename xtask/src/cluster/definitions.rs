//! Gateway API's definitions: the newest come with the programs of Kubernetes, older ones have a folder of their own.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::{
    binaries::{Binaries, GATEWAY_API},
    go,
    wait::Interrupt,
};
use crate::{cmd, paths};

/// Older versions, each with Go's sum of the module.
const OLDER: [(&str, &str); 1] = [("1.6.3", "h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc=")];
/// Space that fetching one takes at most.
const GIB: u64 = 1;

/// All versions, newest first.
pub(crate) const VERSIONS: [&str; 2] = [GATEWAY_API, OLDER[0].0];

/// The folder of one version's definitions in one channel; programs of Kubernetes are there already.
pub(super) fn provide(
    interrupt: &Interrupt,
    binaries: &Binaries,
    version: &str,
    channel: &str,
) -> Result<PathBuf> {
    if version == GATEWAY_API {
        return Ok(binaries.definitions(channel));
    }
    let (_, sum) = OLDER
        .iter()
        .find(|(older, _)| *older == version)
        .with_context(|| format!("there is no Gateway API {version}"))?;
    let place = paths::cache()?.join(format!("gateway-api-{version}"));
    let wanted = go::Wanted {
        place: &place,
        what: "fetching Gateway API",
        gib: GIB,
        toolchain: "local",
    };
    go::provide(interrupt, &wanted, |go, out| {
        let zip = go.zip(&format!("sigs.k8s.io/gateway-api@v{version}"), sum)?;
        let mut unpack = Command::new(binaries.path("crds"));
        cmd::output(unpack.arg(&zip).arg(out)).map(drop)
    })?;
    Ok(place.join(channel))
}
