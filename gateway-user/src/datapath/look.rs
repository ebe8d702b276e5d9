//! A look into the pinned maps from outside of the daemon, which may be gone: nothing is written.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Map, MapData};
use gateway_common::abi::{
    self, Config, MAX_NODES, NodeEntry, NodeIndex, ROWS, Row, SOURCE_DENIED, TraceFilter,
    VIP_SLOTS, VipEntry, map, node_flag, vip_flag,
};
use gateway_common::probe::view;

use super::counts::Counts;
use super::mmap::MappedArray;
use super::{Error, counts, pins, sys};

/// The pins of this version.
#[derive(Debug)]
pub struct Look {
    directory: PathBuf,
}

/// What the tables say: the live halves.
#[derive(Debug)]
pub struct Seen {
    /// The configuration. It holds secrets: nothing prints it.
    pub config: Config,
    /// Listed nodes by their indices.
    pub nodes: BTreeMap<NodeIndex, NodeEntry>,
    /// Listed nodes that are suspected of being dead.
    pub suspects: Vec<NodeIndex>,
    /// VIPs and their addresses in the order of their keys.
    pub vips: Vec<VipEntry>,
    /// All rows.
    pub rows: Box<[Row]>,
}

/// Prefixes in one list of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListSize {
    /// Those that may send.
    pub allowed: u32,
    /// Those that are refused.
    pub denied: u32,
}

impl Look {
    /// Finds the tables of this version below `bpffs`.
    ///
    /// # Errors
    /// There are none, or none that this user may open.
    pub fn open(bpffs: &Path) -> Result<Self, Error> {
        let directory = pins::directory(bpffs);
        let look = Self { directory };
        match fs::metadata(look.directory.join(map::CONFIG)) {
            Ok(_) => Ok(look),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(Error::NotReadable(look.directory))
            }
            Err(_) => {
                let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
                let others = pins::other_versions(&look.directory);
                let others: Vec<String> = others.iter().filter_map(name).collect();
                if others.is_empty() {
                    return Err(Error::NoTables(bpffs.to_owned()));
                }
                Err(Error::OtherTables {
                    path: bpffs.to_owned(),
                    versions: others.join(", "),
                    own: name(&look.directory).unwrap_or_default(),
                })
            }
        }
    }

    /// Where the pins are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Opens a pinned map.
    pub(super) fn pin(&self, name: &str) -> Result<OwnedFd, Error> {
        let path = self.directory.join(name);
        sys::open_pin(&path).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => Error::NotReadable(path),
            _ => Error::Pin { path, source },
        })
    }

    /// Maps an array to be read, after a look at its sizes.
    pub(super) fn array(
        &self,
        name: &'static str,
        entries: u32,
        size: usize,
    ) -> Result<MappedArray, Error> {
        let fd = self.pin(name)?;
        self.check(name, entries, size)?;
        MappedArray::to_read(name, &fd, entries, size)
    }

    /// As [`Self::array`], to be written too.
    pub(super) fn array_to_write(
        &self,
        name: &'static str,
        entries: u32,
        size: usize,
    ) -> Result<MappedArray, Error> {
        let fd = self.pin(name)?;
        self.check(name, entries, size)?;
        MappedArray::new(name, &fd, entries, size)
    }

    /// Refuses a map that does not have this many values of this size.
    pub(super) fn check(&self, name: &str, entries: u32, size: usize) -> Result<(), Error> {
        let path = self.directory.join(name);
        let differs = |difference| Error::PinnedMapDiffers {
            path: path.clone(),
            difference,
        };
        let info = MapInfo::from_pin(&path).map_err(|error| differs(error.to_string()))?;
        if info.max_entries() == entries && info.value_size() as usize == size {
            return Ok(());
        }
        Err(differs(format!(
            "{} values of {} bytes instead of {entries} of {size}",
            info.max_entries(),
            info.value_size()
        )))
    }

    /// What the tables say.
    ///
    /// # Errors
    /// A map that cannot be opened or has another layout.
    pub fn tables(&self) -> Result<Seen, Error> {
        let config: Config = self.array(map::CONFIG, 1, size_of::<Config>())?.read(0);
        let nodes = self.array(map::NODES, 2 * MAX_NODES, size_of::<NodeEntry>())?;
        let first = (config.node_half & 1) * MAX_NODES;
        let nodes: BTreeMap<NodeIndex, NodeEntry> = (1..MAX_NODES)
            .map(|index| {
                let at = (first + index) as usize * size_of::<NodeEntry>() / 4;
                (index as NodeIndex, nodes.read::<NodeEntry>(at))
            })
            .filter(|(_, entry)| entry.flags & node_flag::LISTED != 0)
            .collect();
        let alive = self.array(map::ALIVE, MAX_NODES, size_of::<u64>())?;
        let suspect = |index: &NodeIndex| {
            let word: u64 = alive.read(2 * usize::from(*index));
            word & u64::from(view::SUSPECT) != 0
        };
        let vips = self.array(map::VIPS, 2 * VIP_SLOTS, size_of::<VipEntry>())?;
        let first = (config.vip_half & 1) * VIP_SLOTS;
        let mut vips: Vec<VipEntry> = (first..first + VIP_SLOTS)
            .map(|slot| vips.read(slot as usize * size_of::<VipEntry>() / 4))
            .filter(|entry: &VipEntry| entry.flags & vip_flag::USED != 0)
            .collect();
        vips.sort_by_key(|entry| entry.key);
        let rows = self.array(map::ROWS, ROWS, size_of::<u64>())?;
        Ok(Seen {
            suspects: nodes.keys().copied().filter(suspect).collect(),
            config,
            nodes,
            vips,
            rows: (0..ROWS as usize)
                .map(|row| Row(rows.read(2 * row)))
                .collect(),
        })
    }

    /// What was counted, over all CPUs.
    ///
    /// # Errors
    /// As [`Self::tables`].
    pub fn counters(&self) -> Result<Counts, Error> {
        let path = self.directory.join(map::COUNTERS);
        // As many rows as there were CPUs when they were made.
        let words = MapInfo::from_pin(&path).map_or(0, |info| info.max_entries());
        let words = if counts::is_whole(words) {
            words
        } else {
            counts::words_here()
        };
        let array = self.array(map::COUNTERS, words, size_of::<u64>())?;
        Ok(Counts::of(&counts::sums(array.words())))
    }

    /// Process of the last tracer; 0 if there was none.
    ///
    /// # Errors
    /// As [`Self::tables`].
    pub fn tracer(&self) -> Result<u32, Error> {
        let filter = self.array(map::TRACE, 1, size_of::<TraceFilter>())?;
        Ok(filter.read::<TraceFilter>(0).process)
    }

    /// How many prefixes each list of sources has.
    ///
    /// # Errors
    /// As [`Self::tables`].
    pub fn lists(&self) -> Result<BTreeMap<u16, ListSize>, Error> {
        let path = self.directory.join(map::SOURCES);
        let unfit = |difference: String| Error::PinnedMapDiffers {
            path: path.clone(),
            difference,
        };
        let data = MapData::from_pin(&path).map_err(|error| unfit(error.to_string()))?;
        let trie: LpmTrie<MapData, [u8; 20], u32> =
            LpmTrie::try_from(Map::LpmTrie(data)).map_err(|error| unfit(error.to_string()))?;
        let mut lists: BTreeMap<u16, ListSize> = BTreeMap::new();
        // A prefix that goes away meanwhile is one that is not there.
        for (key, says) in trie.iter().flatten() {
            let key: abi::SourceKey = bytemuck::cast(key.data());
            let [_, _, high, low] = key.list;
            let size = lists.entry(u16::from_be_bytes([high, low])).or_default();
            if says == SOURCE_DENIED {
                size.denied += 1;
            } else {
                size.allowed += 1;
            }
        }
        Ok(lists)
    }

    /// Bytes of kernel memory that each map takes, as the kernel accounts for them.
    ///
    /// # Errors
    /// A pin that cannot be opened.
    pub fn memory(&self) -> Result<BTreeMap<String, u64>, Error> {
        let listed = pins::entries(&self.directory).map_err(|source| Error::Pin {
            path: self.directory.clone(),
            source,
        })?;
        let mut memory = BTreeMap::new();
        for path in listed {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            // Links and programs have prefixes in small letters.
            if name.starts_with(|first: char| first.is_ascii_lowercase()) {
                continue;
            }
            let fd = self.pin(name)?;
            let info = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
            let text = fs::read_to_string(info).unwrap_or_default();
            let bytes = text
                .lines()
                .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
            memory.insert(name.to_owned(), bytes.unwrap_or(0));
        }
        Ok(memory)
    }
}
