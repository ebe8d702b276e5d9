//! Whether KVM runs machines here.

use std::time::Duration;

use anyhow::Result;

use super::{
    image::{self, Guest, Image},
    qemu::{self, Accel, Clock, Folder, Machine},
    results::Results,
};
use crate::{cluster::wait::Interrupt, paths, progress::Steps};

/// Longest time of a machine that only has to start.
const BOUND: Duration = Duration::from_secs(10);

/// What `auto` comes to: KVM if a machine without tests comes to its end with it.
pub(super) fn accel(
    steps: &Steps,
    interrupt: &Interrupt,
    wanted: Accel,
    image: &Image,
    guest: &Guest,
) -> Result<Accel> {
    if wanted != Accel::Auto || !qemu::kvm_is_likely() {
        return Ok(if wanted == Accel::Kvm {
            Accel::Kvm
        } else {
            Accel::Tcg
        });
    }
    steps.run_for("KVM", |_| {
        let folder = Folder::new(paths::target().join("vm/probe"), false)?;
        let made = image.make(folder.path(), &image::nothing(), guest)?;
        let machine = Machine {
            kernel: &made.kernel,
            initramfs: &made.initramfs,
            folder: folder.path(),
            accel: Accel::Kvm,
            words: "",
            clock: Clock::Time,
            bound: BOUND,
        };
        let ran = machine.run(interrupt, |_| {});
        interrupt.check()?;
        let said = std::fs::read_to_string(folder.path().join("results.jsonl"));
        let works = ran.is_ok()
            && Results::read(&said.unwrap_or_default(), "")
                .faults
                .is_empty();
        Ok(if works {
            (Accel::Kvm, "runs machines here".to_owned())
        } else {
            (
                Accel::Tcg,
                "runs no machine here: emulation instead".to_owned(),
            )
        })
    })
}
