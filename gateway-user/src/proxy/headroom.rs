//! What is left of file descriptors and memory, and what the proxy does without before either is used up.
//!
//! A process that reaches its limit of memory is ended by the kernel, with all its connections; one that reaches its limit of
//! descriptors can neither accept nor reach an endpoint. So that neither happens, in this order: answers close their
//! connections and the longest idle ones are closed; no connection is accepted, and new ones wait in the kernel's queues;
//! requests are answered with 503 (Envoy's overload manager, from which the thresholds of memory are: 92 and 95 %).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};

/// Where control groups of version 2 are.
const GROUPS: &str = "/sys/fs/cgroup";
/// The group of this process in them.
const OWN_GROUP: &str = "/proc/self/cgroup";

/// How little is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scarcity {
    /// Enough.
    #[default]
    None,
    /// Connections are not kept beyond their answer, and the longest idle ones are closed.
    Tight,
    /// No connection is accepted besides.
    Full,
    /// Requests are answered with 503 besides.
    Exhausted,
}

impl Scarcity {
    const ALL: [Self; 4] = [Self::None, Self::Tight, Self::Full, Self::Exhausted];

    /// What is done without, for a log.
    const fn consequence(self) -> &'static str {
        match self {
            Self::None => "all is served as usual",
            Self::Tight => "connections are closed after their answer, and the longest idle ones",
            Self::Full => "no connection is accepted until there is room",
            Self::Exhausted => "no connection is accepted, and requests are answered with 503",
        }
    }
}

/// What a connection may take, in the process and in the kernel, before it is looked again: as many are accepted meanwhile as that
/// leaves room for.
const CONNECTION: u64 = 64 << 10;

/// A limit on memory and what is taken of it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    limit: u64,
    taken: u64,
}

impl Memory {
    fn scarcity(self) -> Scarcity {
        match self.taken.saturating_mul(1000) / self.limit.max(1) {
            950.. => Scarcity::Exhausted,
            FULL.. => Scarcity::Full,
            880.. => Scarcity::Tight,
            _ => Scarcity::None,
        }
    }

    /// Connections for which there is room.
    fn connections(self) -> i64 {
        let most = self.limit.saturating_mul(FULL) / 1000;
        let room = most.saturating_sub(self.taken) / CONNECTION;
        i64::try_from(room).unwrap_or(i64::MAX)
    }
}

/// Thousandths of the memory with which no connection is accepted.
const FULL: u64 = 920;

/// Limits on descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptors {
    /// Client connections: half of what the process may open, as each may need one to an endpoint (Envoy's advice for edge
    /// proxies).
    clients: usize,
    /// Of the process.
    all: usize,
}

impl Descriptors {
    fn new(all: usize) -> Self {
        Self {
            clients: (all / 2).max(1),
            all,
        }
    }

    /// With so many client connections, and every number below `next` taken.
    fn scarcity(self, clients: usize, next: usize) -> Scarcity {
        let beyond = |is: usize, of: usize, part: usize| is.saturating_mul(100) >= of * part;
        if clients >= self.clients || beyond(next, self.all, 90) {
            Scarcity::Full
        } else if beyond(clients, self.clients, 90) || beyond(next, self.all, 80) {
            Scarcity::Tight
        } else {
            Scarcity::None
        }
    }
}

/// Shortest time between two warnings, and between two times that all is said to be well: memory may come and go ten times a second.
const TOLD: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct Headroom {
    level: AtomicU8,
    /// When it was told last that something is scarce, and that it is no more.
    told: Mutex<[Option<Instant>; 2]>,
    /// Connections that may be accepted before it is looked again.
    credit: AtomicI64,
    descriptors: Option<Descriptors>,
    /// Control groups whose memory may be limited: the process's own and those above it.
    groups: Vec<PathBuf>,
}

impl Default for Headroom {
    /// As if there were no limits.
    fn default() -> Self {
        Self {
            level: AtomicU8::new(0),
            told: Mutex::default(),
            credit: AtomicI64::new(i64::MAX),
            descriptors: None,
            groups: Vec::new(),
        }
    }
}

impl Headroom {
    /// The limits that the system sets to this process.
    #[must_use]
    pub fn of_process() -> Self {
        let limit = getrlimit(Resource::Nofile).current;
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let own = fs::read_to_string(OWN_GROUP).unwrap_or_default();
        Self {
            descriptors: limit.map(Descriptors::new),
            groups: groups(Path::new(GROUPS), &own)
                .into_iter()
                .filter(|group| group.join("memory.max").exists())
                .collect(),
            ..Self::default()
        }
    }

    /// Limits on the memory of these control groups alone, by their directories.
    #[must_use]
    pub fn of_groups(groups: Vec<PathBuf>) -> Self {
        Self {
            groups,
            ..Self::default()
        }
    }

    /// How little was left when it was looked last.
    #[must_use]
    pub fn scarcity(&self) -> Scarcity {
        Scarcity::ALL[usize::from(self.level.load(Relaxed)).min(3)]
    }

    /// Whether another client connection may be accepted beside `clients`.
    #[must_use]
    pub(super) fn has_room(&self, clients: impl FnOnce() -> usize) -> bool {
        let fits = |limits: Descriptors| clients() < limits.clients;
        self.scarcity() < Scarcity::Full
            && self.credit.load(Relaxed) > 0
            && self.descriptors.is_none_or(fits)
    }

    /// A client connection was accepted.
    pub(super) fn accepted(&self) {
        if !self.groups.is_empty() {
            self.credit.fetch_sub(1, Relaxed);
        }
    }

    /// Looks anew, with so many client connections; says so if that changed something. For one thread.
    pub(super) fn look(&self, clients: usize) -> Scarcity {
        let descriptors = self.descriptors.map_or(Scarcity::None, |limits| {
            let next = next_descriptor().unwrap_or(limits.all);
            limits.scarcity(clients, next)
        });
        let groups = self.groups.iter().filter_map(|group| memory(group));
        let (mut memory, mut credit) = (Scarcity::None, i64::MAX);
        for group in groups {
            memory = memory.max(group.scarcity());
            credit = credit.min(group.connections());
        }
        self.credit.store(credit, Relaxed);
        let now = descriptors.max(memory);
        let before = self.scarcity();
        if now != before {
            self.level.store(now as u8, Relaxed);
            let what = if memory > descriptors {
                "memory"
            } else {
                "file descriptors"
            };
            self.tell(before, now, what);
        }
        now
    }

    /// Not each time: it may change with every look.
    fn tell(&self, before: Scarcity, now: Scarcity, what: &'static str) {
        let is_more = now > before;
        if !is_more && now > Scarcity::None {
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let last = &mut told[usize::from(!is_more)];
        if last.is_some_and(|at| at.elapsed() < TOLD) {
            return;
        }
        *last = Some(Instant::now());
        let consequence = now.consequence();
        if is_more {
            tracing::warn!("{what} get scarce: {consequence}");
        } else {
            tracing::info!("descriptors and memory are there again: {consequence}");
        }
    }
}

/// The lowest number that no descriptor of the process has: so many are open at least.
fn next_descriptor() -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    let next = fcntl_dupfd_cloexec(io::stderr(), 0)?;
    Ok(usize::try_from(next.as_raw_fd()).unwrap_or(0))
}

/// The directories of the group that `own` (`/proc/self/cgroup`) names and of those above it, but for the root, which knows no
/// limits; none where control groups are of version 1.
fn groups(root: &Path, own: &str) -> Vec<PathBuf> {
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let path = root.join(path);
    // In a container with a namespace of its own the root is its group, and has the files of one.
    let all = path.ancestors().take_while(|path| path.starts_with(root));
    all.map(Path::to_owned).collect()
}

/// A group's limit on memory and what is taken, without what the kernel can take back at any time; nothing if there is no limit.
fn memory(group: &Path) -> Option<Memory> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let current: u64 = read("memory.current")?.trim().parse().ok()?;
    if current < limit / 2 {
        // Enough, whatever it is: adding up what can be taken back is work for the kernel.
        let taken = current;
        return Some(Memory { limit, taken });
    }
    let stat = read("memory.stat")?;
    let of = |name: &str| -> u64 {
        let mut pairs = stat.lines().filter_map(|line| line.split_once(' '));
        let found = pairs.find(|(is, _)| *is == name);
        found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    };
    // Pages of files, but for files in memory, which nothing else holds.
    let files = of("file").saturating_sub(of("shmem"));
    let taken = current.saturating_sub(files + of("slab_reclaimable"));
    Some(Memory { limit, taken })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_have_half_of_the_descriptors_and_a_tenth_of_all_stays_free() {
        let limits = Descriptors::new(1_000);
        for (clients, next, scarcity) in [
            (0, 20, Scarcity::None),
            (449, 799, Scarcity::None),
            (450, 470, Scarcity::Tight),
            (10, 800, Scarcity::Tight),
            (499, 899, Scarcity::Tight),
            (500, 520, Scarcity::Full),
            (10, 900, Scarcity::Full),
        ] {
            assert_eq!(limits.scarcity(clients, next), scarcity, "{clients} {next}");
        }
        assert_eq!(Descriptors::new(0).clients, 1);
    }

    #[test]
    fn between_two_looks_the_count_of_clients_alone_decides() {
        let headroom = Headroom {
            descriptors: Some(Descriptors::new(100)),
            ..Headroom::default()
        };
        assert!(headroom.has_room(|| 49));
        assert!(!headroom.has_room(|| 50));
        assert!(Headroom::default().has_room(|| usize::MAX));
        headroom.level.store(Scarcity::Full as u8, Relaxed);
        assert!(!headroom.has_room(|| 0));
    }

    #[test]
    fn the_own_group_and_those_above_it_are_looked_at() {
        let root = Path::new("/groups");
        let found = groups(root, "12:cpu:/x\n0::/kubepods/pod1/c1\n");
        let expected = ["kubepods/pod1/c1", "kubepods/pod1", "kubepods", ""];
        assert_eq!(found, expected.map(|path| root.join(path)));
        assert_eq!(groups(root, "0::/\n"), [root.join("")]);
        assert!(groups(root, "4:memory:/docker/1\n").is_empty());
    }

    #[test]
    fn memory_that_the_kernel_can_take_back_is_not_taken() {
        let folder = std::env::temp_dir().join(format!("forebay-headroom-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write("memory.current", "100000000\n");
        write(
            "memory.stat",
            "anon 40000000\nfile 30000000\nshmem 5000000\nslab_reclaimable 5000000\n",
        );
        write("memory.max", "max\n");
        assert_eq!(memory(&folder), None);
        for (limit, taken) in [(140_000_000, 70_000_000), (201_000_000, 100_000_000)] {
            write("memory.max", &format!("{limit}\n"));
            assert_eq!(memory(&folder), Some(Memory { limit, taken }));
        }
        let headroom = Headroom {
            groups: vec![folder.clone()],
            ..Headroom::default()
        };
        assert_eq!(headroom.look(0), Scarcity::None);
        for (limit, scarcity) in [
            ("79000000", Scarcity::Tight),
            ("76000000", Scarcity::Full),
            ("73000000", Scarcity::Exhausted),
            ("100000000", Scarcity::None),
        ] {
            write("memory.max", limit);
            assert_eq!(headroom.look(0), scarcity, "{limit}");
            assert_eq!(headroom.scarcity(), scarcity);
        }
        // To 92 MB there is room for 335 connections of 64 KiB.
        for _ in 0..335 {
            assert!(headroom.has_room(|| 0));
            headroom.accepted();
        }
        assert!(!headroom.has_room(|| 0));
        headroom.look(0);
        assert!(headroom.has_room(|| 0));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(
            headroom.look(0),
            Scarcity::None,
            "what cannot be read limits nothing"
        );
    }
}
