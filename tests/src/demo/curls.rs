//! The tutorial's ten curls, with the real curl.

use std::fs;

use anyhow::{Context, Result};

use super::must;
use crate::{
    fixture::HOST,
    rig::{Rig, VIP},
};

/// What the reader of the tutorial types.
pub const LINE: &str = "for i in {1..10}; do curl test.devopscube.com; done";

/// Runs [`LINE`] on the client and returns the ten lines: five and five through one node, four to six over more.
///
/// # Errors
/// If curl fails or the split is another one.
pub fn curls(rig: &mut Rig) -> Result<Vec<String>> {
    rig.deliver_to(0)?;
    // The client's hosts file, so to say: curl reads it from CURL_HOME.
    let home = &rig.settings.directory;
    let names = format!(
        "resolve = {HOST}:{}:{}\nsilent\nshow-error\nmax-time = 10\n",
        VIP.port(),
        VIP.ip()
    );
    fs::write(home.join(".curlrc"), names).context("cannot write curl's configuration")?;
    let said = rig
        .client
        .shell(LINE, &[("CURL_HOME", &home.to_string_lossy())])?;
    let lines: Vec<String> = said.lines().map(str::to_owned).collect();
    let of = |version: &str| {
        lines
            .iter()
            .filter(|line| **line == format!("hello from backend {version}"))
            .count()
    };
    let (v1, v2) = (of("v1"), of("v2"));
    must!(
        v1 + v2 == 10 && lines.len() == 10,
        "ten curls gave {lines:?}"
    );
    let fair = if rig.daemons.len() == 1 { 5..=5 } else { 4..=6 };
    must!(
        fair.contains(&v1),
        "ten curls gave {v1} lines of v1 and {v2} of v2, not {fair:?} of each"
    );
    Ok(lines)
}
