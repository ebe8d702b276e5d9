//! Several XDP programs on one interface, as libxdp has them: a dispatcher calls one function for each, and each program takes the
//! place of its function ("Protocol for atomic loading of multi-prog dispatchers" in xdp-tools, versions 2 and 3).
//!
//! Who changes the set makes a new dispatcher, puts all programs into it (a program can be in two at once), pins them where all who
//! follow the protocol look, and exchanges the dispatchers on the interface in one step: packets meet the old set or the new one.

mod code;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::MapInfo;
use aya::programs::ProgramInfo;
use rustix::fs::{FlockOperation, flock};

use super::super::netlink::{Body, Netlink};
use super::super::sys::{self, freplace};
use super::xdp_on;

/// Programs that one dispatcher takes.
const SLOTS: usize = 10;
/// Of several programs the one with the lowest is asked first; this is what libxdp gives a program that asks for none. Filters have
/// less, and see packets before Forebay sends them on.
const PRIORITY: u32 = 50;
/// For how long another process is waited for that changes a dispatcher.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is begun anew because another process was faster.
const ATTEMPTS: u32 = 5;

const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// What a dispatcher says of one of its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    /// After which results the next program is asked, a bit each.
    actions: u32,
    priority: u32,
    flags: u32,
}

/// What a dispatcher says of itself: the value of its one map.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Configuration {
    version: u8,
    slots: Vec<Slot>,
}

impl Configuration {
    const MAGIC: u8 = 236;
    const HEAD: usize = 4;
    const COLUMN: usize = SLOTS * size_of::<u32>();
    /// Bytes of version 2; version 3 has a word more.
    const LENGTH: usize = Self::HEAD + 3 * Self::COLUMN;

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let [Self::MAGIC, version, count, _frags, rest @ ..] = bytes else {
            return Err("it says no version".to_owned());
        };
        let length = match version {
            2 => Self::LENGTH,
            3 => Self::LENGTH + 4,
            _ => return Err(format!("it is of version {version}, Forebay knows 2 and 3")),
        };
        if bytes.len() != length || usize::from(*count) > SLOTS {
            return Err(format!("its version {version} is none that Forebay knows"));
        }
        if *version == 3 && bytes[Self::LENGTH] != 0 {
            return Err("it is bound to the device".to_owned());
        }
        let word = |column: usize, slot: usize| {
            let at = column * Self::COLUMN + slot * size_of::<u32>();
            bytemuck::pod_read_unaligned(&rest[at..at + size_of::<u32>()])
        };
        let slots = (0..usize::from(*count)).map(|slot| Slot {
            actions: word(0, slot),
            priority: word(1, slot),
            flags: word(2, slot),
        });
        Ok(Self {
            version: *version,
            slots: slots.collect(),
        })
    }

    /// Whether all programs take packets in several buffers.
    fn has_frags(&self) -> bool {
        let all = |slot: &Slot| slot.flags & BPF_F_XDP_HAS_FRAGS != 0;
        self.slots.iter().all(all) && sys::is_linux(5, 18)
    }

    fn bytes(&self) -> Vec<u8> {
        let count = u8::try_from(self.slots.len()).unwrap_or(u8::MAX);
        let mut bytes = vec![Self::MAGIC, self.version, count, self.has_frags().into()];
        let columns: [fn(&Slot) -> u32; 3] =
            [|slot| slot.actions, |slot| slot.priority, |slot| slot.flags];
        for (at, column) in columns.into_iter().enumerate() {
            let words = self.slots.iter().map(column);
            bytes.extend(words.flat_map(u32::to_ne_bytes));
            bytes.resize(Self::HEAD + (at + 1) * Self::COLUMN, 0);
        }
        if self.version == 3 {
            bytes.resize(Self::LENGTH + 4, 0);
        }
        bytes
    }
}

/// A program in a dispatcher, or one that comes to it.
struct Component {
    slot: Slot,
    name: String,
    /// Number and descriptor; none for ours before it is loaded.
    program: Option<(u32, OwnedFd)>,
}

impl Component {
    fn is_one_of(&self, programs: &BTreeSet<u32>) -> bool {
        let number = self.program.as_ref().map(|(number, _)| number);
        number.is_some_and(|number| programs.contains(number))
    }
}

/// A dispatcher on an interface.
struct Dispatcher {
    program: OwnedFd,
    pins: PathBuf,
    version: u8,
    components: Vec<Component>,
}

/// Puts our program into the dispatcher of an interface, in the place of those of `ours` that are there; says whether there was one.
/// `load` has it loaded for the first function of the dispatcher of this number: the one that is there now, so that whoever made it can
/// take it over from us. `keep` is called before it sees a packet.
///
/// # Errors
/// No dispatcher that can be joined, or what the kernel said: nothing has changed then.
pub(super) fn join(
    ifindex: u32,
    ours: &BTreeSet<u32>,
    load: impl Fn(u32) -> io::Result<OwnedFd>,
    keep: impl Fn(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<bool> {
    let change = |components: &mut Vec<Component>| {
        let before = components.len();
        components.retain(|component| !component.is_one_of(ours));
        let adopted = components.len() < before;
        if components.len() == SLOTS {
            let full = format!("it has {SLOTS} programs already");
            return Err(io::Error::other(full));
        }
        // As libxdp has the order.
        let name = super::XDP_PROGRAM;
        let after = |other: &Component| (other.slot.priority, &*other.name) <= (PRIORITY, name);
        let at = components.partition_point(after);
        let slot = Slot {
            actions: 1 << code::PASS | 1 << code::KEEP_GOING,
            priority: PRIORITY,
            flags: 0,
        };
        let ours = Component {
            slot,
            name: name.to_owned(),
            program: None,
        };
        components.insert(at, ours);
        Ok(adopted)
    };
    exchange(ifindex, change, |dispatcher| {
        let program = load(dispatcher)?;
        keep(program.as_fd())?;
        Ok(program)
    })
}

/// Takes `ours` out of the dispatcher of an interface; the last program takes the dispatcher with it. That they are not there is no error.
///
/// # Errors
/// What the kernel said: nothing has changed then.
pub(super) fn leave(ifindex: u32, ours: &BTreeSet<u32>) -> io::Result<()> {
    if !is_in(ifindex, ours)? {
        return Ok(());
    }
    let change = |components: &mut Vec<Component>| {
        components.retain(|component| !component.is_one_of(ours));
        Ok(true)
    };
    let none = |_| Err(io::Error::other("there is nothing to load"));
    exchange(ifindex, change, none).map(drop)
}

/// Whether one of `ours` is in the dispatcher of an interface.
///
/// # Errors
/// What the kernel said of the interface.
pub(super) fn is_in(ifindex: u32, ours: &BTreeSet<u32>) -> io::Result<bool> {
    // A dispatcher that another process exchanges meanwhile has no pins any more.
    for _ in 0..ATTEMPTS {
        let Some(dispatcher) = number(ifindex)? else {
            return Ok(false);
        };
        if let Ok(pinned) = pinned(&pins(ifindex, dispatcher)) {
            return Ok(pinned.iter().any(|(info, _)| ours.contains(&info.id())));
        }
    }
    Ok(false)
}

/// Whether the XDP program of this number on an interface is a dispatcher, as far as its pins tell.
pub(super) fn is_dispatcher(ifindex: u32, program: u32) -> bool {
    pins(ifindex, program).is_dir()
}

/// Names of the programs in the dispatcher of an interface, first the one that is asked first.
pub(super) fn names(ifindex: u32) -> Vec<String> {
    let dispatcher = number(ifindex).ok().flatten();
    let pinned = dispatcher.and_then(|number| pinned(&pins(ifindex, number)).ok());
    let names = pinned.unwrap_or_default().into_iter();
    names.map(|(info, _)| name(&info)).collect()
}

fn name(program: &ProgramInfo) -> String {
    program.name_as_str().unwrap_or_default().to_owned()
}

/// Exchanges the dispatcher of an interface for one with other programs, and begins anew if another process has just done so.
fn exchange(
    ifindex: u32,
    change: impl Fn(&mut Vec<Component>) -> io::Result<bool>,
    load: impl Fn(u32) -> io::Result<OwnedFd>,
) -> io::Result<bool> {
    let _lock = lock()?;
    for _ in 0..ATTEMPTS {
        let mut old = Dispatcher::read(ifindex)?;
        let result = change(&mut old.components)?;
        match old.replace(ifindex, &load) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done.map(|()| result),
        }
    }
    let busy = "others exchange it all the time";
    Err(io::Error::new(io::ErrorKind::ResourceBusy, busy))
}

impl Dispatcher {
    fn read(ifindex: u32) -> io::Result<Self> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "it is gone");
        let number = number(ifindex)?.ok_or_else(none)?;
        let pins = pins(ifindex, number);
        let programs = pinned(&pins)?;
        let info = loaded(number)?;
        let program = info.fd().map_err(whole)?;
        let maps = info.map_ids().map_err(whole)?;
        let [map] = maps.unwrap_or_default()[..] else {
            return Err(io::Error::other("it has not the one map that tells of it"));
        };
        let map = MapInfo::from_id(map).map_err(whole)?;
        let descriptor = map.fd().map_err(whole)?;
        let value = freplace::first_value(descriptor.as_fd(), map.value_size())?;
        let configuration = Configuration::parse(&value).map_err(io::Error::other)?;
        if configuration.slots.len() != programs.len() {
            return Err(io::Error::other("it has other programs than are pinned"));
        }
        let slots = configuration.slots.into_iter().zip(programs);
        let components = slots.map(|(slot, (info, program))| Component {
            slot,
            name: name(&info),
            program: Some((info.id(), program)),
        });
        Ok(Self {
            program: program.as_fd().try_clone_to_owned()?,
            pins,
            version: configuration.version,
            components: components.collect(),
        })
    }

    /// Puts one with the programs that this one has now in its place.
    fn replace(&self, ifindex: u32, load: &impl Fn(u32) -> io::Result<OwnedFd>) -> io::Result<()> {
        if self.components.is_empty() {
            set_xdp(ifindex, None, self.program.as_fd())?;
            forget(&self.pins);
            return Ok(());
        }
        let next = self.build().map_err(said("making another one"))?;
        let number = sys::program_number(next.as_fd())?;
        let pins = pins(ifindex, number);
        let done = self.fill(&pins, next.as_fd(), load).and_then(|()| {
            set_xdp(ifindex, Some(next.as_fd()), self.program.as_fd())
                .map_err(said("exchanging it"))
        });
        forget(if done.is_ok() { &self.pins } else { &pins });
        done
    }

    /// A dispatcher with as many functions as there are programs, attached to nothing.
    fn build(&self) -> io::Result<OwnedFd> {
        let slots: Vec<Slot> = self
            .components
            .iter()
            .map(|component| component.slot)
            .collect();
        let actions: Vec<u32> = slots.iter().map(|slot| slot.actions).collect();
        let configuration = Configuration {
            version: self.version,
            slots,
        };
        let map = freplace::constant(c"xdp_dispatcher", &configuration.bytes())?;
        let (instructions, starts) = code::instructions(&actions, map.as_raw_fd());
        let numbers = code::FIRST_FUNCTION - 1..;
        let functions: Vec<[u32; 2]> = starts.into_iter().zip(numbers).map(Into::into).collect();
        freplace::load_xdp(&freplace::Image {
            name: c"xdp_dispatcher",
            instructions: &instructions,
            functions: &functions,
            types: &code::types(actions.len()),
            flags: match configuration.has_frags() {
                true => BPF_F_XDP_HAS_FRAGS,
                false => 0,
            },
        })
    }

    /// Puts the programs into their functions and pins what keeps them there.
    fn fill(
        &self,
        pins: &Path,
        dispatcher: BorrowedFd<'_>,
        load: &impl Fn(u32) -> io::Result<OwnedFd>,
    ) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(pins)?;
        for ((at, component), function) in self
            .components
            .iter()
            .enumerate()
            .zip(code::FIRST_FUNCTION..)
        {
            let loaded;
            let program = match &component.program {
                Some((_, program)) => program.as_fd(),
                None => {
                    let old = sys::program_number(self.program.as_fd())?;
                    loaded = load(old).map_err(said("the program does not fit"))?;
                    loaded.as_fd()
                }
            };
            let link = freplace::link_function(program, dispatcher, function)
                .map_err(said(&format!("{} cannot be put into it", component.name)))?;
            sys::pin(&link, &pins.join(format!("prog{at}-link")))?;
            sys::pin(program, &pins.join(format!("prog{at}-prog")))?;
        }
        Ok(())
    }
}

/// Takes away what kept the programs of a dispatcher that no interface has.
fn forget(pins: &Path) {
    if let Err(error) = fs::remove_dir_all(pins) {
        tracing::warn!(pins = %pins.display(), %error, "a dispatcher that is not used any more stays in memory");
    }
}

/// An error with what was done.
fn said(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The variable by which libxdp is told of a BPF file system that is mounted elsewhere than at `/sys/fs/bpf`.
pub const LIBXDP_BPFFS: &str = "LIBXDP_BPFFS";

/// Where all who follow the protocol pin.
fn directory() -> PathBuf {
    let below = std::env::var_os(LIBXDP_BPFFS).unwrap_or_else(|| "/sys/fs/bpf".into());
    Path::new(&below).join("xdp")
}

fn pins(ifindex: u32, dispatcher: u32) -> PathBuf {
    directory().join(format!("dispatch-{ifindex}-{dispatcher}"))
}

/// The programs of a dispatcher by its pins.
fn pinned(pins: &Path) -> io::Result<Vec<(ProgramInfo, OwnedFd)>> {
    let count = fs::read_dir(pins)?.count() / 2;
    let programs = (0..count).map(|at| {
        let pin = pins.join(format!("prog{at}-prog"));
        let program = sys::open_pin(&pin)?;
        let info = ProgramInfo::from_pin(&pin).map_err(whole)?;
        Ok((info, program))
    });
    programs.collect()
}

/// An error with all that it comes from: its own text names the call alone.
fn whole(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(format!("{:#}", anyhow::Error::new(error)))
}

/// A program by its number, which takes CAP_SYS_ADMIN.
pub(super) fn loaded(number: u32) -> io::Result<ProgramInfo> {
    let mut refusal = None;
    for found in aya::programs::loaded_programs() {
        match found {
            Ok(info) if info.id() == number => return Ok(info),
            Ok(_) => {}
            // Others may go while this looks.
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.map_or_else(|| io::ErrorKind::NotFound.into(), whole))
}

/// The number of the dispatcher that an interface has in its driver.
fn number(ifindex: u32) -> io::Result<Option<u32>> {
    let on = xdp_on(ifindex)?;
    let program = on.programs.first().copied();
    Ok(program.filter(|program| on.in_driver && is_dispatcher(ifindex, *program)))
}

/// Held by one process at a time that changes dispatchers.
fn lock() -> io::Result<fs::File> {
    let directory = fs::File::open(directory())?;
    let begun = Instant::now();
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Puts a program, or none, into the driver of an interface if the one that is there is `old` (Linux 5.7).
fn set_xdp(ifindex: u32, program: Option<BorrowedFd<'_>>, old: BorrowedFd<'_>) -> io::Result<()> {
    const IFLA_XDP: u16 = 43;
    const NLA_F_NESTED: u16 = 1 << 15;
    const IFLA_XDP_FD: u16 = 1;
    const IFLA_XDP_FLAGS: u16 = 3;
    const IFLA_XDP_EXPECTED_FD: u16 = 8;
    const IN_DRIVER: u32 = 1 << 2;
    const REPLACE: u32 = 1 << 4;
    let program = program.map_or(-1, |program| program.as_raw_fd());
    let xdp = Body::default()
        .attribute(IFLA_XDP_FD, &program.to_ne_bytes())
        .attribute(IFLA_XDP_FLAGS, &(IN_DRIVER | REPLACE).to_ne_bytes())
        .attribute(IFLA_XDP_EXPECTED_FD, &old.as_raw_fd().to_ne_bytes());
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let body = Body::new(&fixed).nested(IFLA_XDP | NLA_F_NESTED, &xdp);
    Netlink::open()?
        .request(libc::RTM_SETLINK, 0, &body)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(version: u8) -> Configuration {
        let slot = |priority| Slot {
            actions: 1 << 31 | 4,
            priority,
            flags: 0,
        };
        Configuration {
            version,
            slots: vec![slot(10), slot(50)],
        }
    }

    #[test]
    fn what_a_dispatcher_says_is_read_as_it_is_written() {
        for (version, length) in [(2, 124), (3, 128)] {
            let bytes = configuration(version).bytes();
            assert_eq!(bytes.len(), length);
            assert_eq!(bytes[..4], [236, version, 2, 0]);
            assert_eq!(bytes[4..8], (1_u32 << 31 | 4).to_ne_bytes());
            assert_eq!(
                bytes[44..52],
                [10_u32.to_ne_bytes(), 50_u32.to_ne_bytes()].concat()
            );
            assert_eq!(
                Configuration::parse(&bytes).unwrap(),
                configuration(version)
            );
        }
    }

    #[test]
    fn a_dispatcher_that_is_not_understood_is_left_alone() {
        let mut good = configuration(2).bytes();
        let refused = |bytes: &[u8]| Configuration::parse(bytes).unwrap_err();
        assert_eq!(refused(&[]), "it says no version");
        assert_eq!(
            refused(&good[..123]),
            "its version 2 is none that Forebay knows"
        );
        good[1] = 4;
        assert_eq!(refused(&good), "it is of version 4, Forebay knows 2 and 3");
        good[1] = 2;
        good[2] = 11;
        assert_eq!(refused(&good), "its version 2 is none that Forebay knows");
        let mut bound = configuration(3).bytes();
        bound[124] = 1;
        assert_eq!(refused(&bound), "it is bound to the device");
        // Of version 1 there is no mark.
        good[0] = 2;
        assert_eq!(refused(&good), "it says no version");
    }
}
