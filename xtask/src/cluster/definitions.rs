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
const OLDER: [(&str, &str); 4] = [
    ("1.6.3", "h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc="),
    ("1.5.1", "h1:RqVRIlkhLhUO8wOHKTLnTJA6o/1un4po4/6M1nRzdd0="),
    ("1.4.1", "h1:NPxFutNkKNa8UfLd2CMlEuhIPMQgDQ6DXNKG9sHbJU8="),
    ("1.3.0", "h1:q6okN+/UKDATola4JY7zXzx40WO4VISk7i9DIfOvr9M="),
];
/// Space that fetching one takes at most.
const GIB: u64 = 1;

/// All versions, newest first.
pub(crate) const VERSIONS: [&str; 5] =
    [GATEWAY_API, OLDER[0].0, OLDER[1].0, OLDER[2].0, OLDER[3].0];

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
