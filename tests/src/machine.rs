//! What a virtual machine of `cargo xtask vm` has that is nobody else's: cards of virtio, memory, and a calendar.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};

use crate::eventually::eventually;

/// The driver of the cards.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";
/// Where memory is filled.
const FILL: &str = "/fill";
/// A card comes back to the first namespace some time after the one that it was given to has ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether this is one: its first process has a plan.
#[must_use]
pub fn is_here() -> bool {
    Path::new("/plan.json").is_file()
}

/// Longest time for what takes so long elsewhere: machines are emulated, and run everything on one processor.
#[must_use]
pub fn patience(elsewhere: Duration) -> Duration {
    if is_here() { elsewhere * 5 } else { elsewhere }
}

/// The MAC of a card, as the machine is started with it.
#[must_use]
pub fn mac(number: u8) -> String {
    format!("52:54:00:00:00:{number:02x}")
}

/// A card that is now in the machine's first namespace.
///
/// # Errors
/// If interfaces cannot be listed.
pub fn find_card(number: u8) -> Result<Option<String>> {
    for entry in fs::read_dir("/sys/class/net").context("interfaces")? {
        let entry = entry.context("an interface")?;
        // It may have gone meanwhile.
        let address = fs::read_to_string(entry.path().join("address")).unwrap_or_default();
        if address.trim() == mac(number) {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// The same, waited for.
///
/// # Errors
/// If the machine has none by then.
pub fn card(number: u8) -> Result<String> {
    eventually(&format!("card {number}"), PATIENCE, || {
        find_card(number)?
            .ok_or_else(|| anyhow!("this machine has none: call `cargo xtask vm test`"))
    })
}

/// What a card is to the bus; asked while it is in the first namespace.
///
/// # Errors
/// If it is not.
pub fn device_of(card: &str) -> Result<String> {
    let path = fs::canonicalize(format!("/sys/class/net/{card}/device"))
        .with_context(|| format!("the device of {card}"))?;
    let name = path.file_name().context("a device without a name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Takes the driver off a card: its interface goes.
///
/// # Errors
/// If the kernel refuses.
pub fn unbind(device: &str) -> Result<()> {
    fs::write(format!("{DRIVER}/unbind"), device).with_context(|| format!("unbind {device}"))
}

/// Gives the card its driver again: an interface comes to the first namespace.
///
/// # Errors
/// If the kernel refuses.
pub fn bind(device: &str) -> Result<()> {
    fs::write(format!("{DRIVER}/bind"), device).with_context(|| format!("bind {device}"))
}

/// Megabytes that the kernel says could still be had.
///
/// # Errors
/// If it does not say.
pub fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("memory")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    let number = number.context("no MemAvailable")?;
    Ok(number.parse::<u64>().context("MemAvailable")? >> 10)
}

/// Memory that is taken from everybody while this lives: files in memory, without swap.
#[derive(Debug)]
pub struct Filled(());

impl Filled {
    /// Takes all but so many megabytes.
    ///
    /// # Errors
    /// If files in memory cannot be made.
    pub fn all_but(megabytes: u64) -> Result<Self> {
        fs::create_dir_all(FILL).context("a place for files in memory")?;
        let size = c"size=100%";
        mount("tmpfs", FILL, "tmpfs", MountFlags::empty(), Some(size)).context("tmpfs")?;
        let filled = Self(());
        let mut file = File::create(format!("{FILL}/it")).context("a file in memory")?;
        let chunk = vec![1; 1 << 20];
        while available()? > megabytes {
            match file.write_all(&chunk) {
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                written => written.context("a file in memory")?,
            }
        }
        Ok(filled)
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        // What cannot be given back goes with the machine.
        drop(fs::remove_file(format!("{FILL}/it")));
        let _gone = unmount(FILL, UnmountFlags::DETACH);
    }
}

/// Sets the machine's calendar forward, or back, by seconds.
///
/// # Errors
/// If the kernel refuses.
pub fn calendar_jumps(by: i64) -> Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let then = Timespec {
        tv_sec: now.tv_sec + by,
        ..now
    };
    clock_settime(ClockId::Realtime, then).context("the calendar")
}
