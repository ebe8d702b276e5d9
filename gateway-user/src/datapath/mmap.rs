//! mmapped BPF arrays: plain words shared with the kernel.
//!
//! Each access is one aligned atomic load or store of one word, so neither side ever sees half a word. What
//! must change together is not this module's concern. A map is only ever accessed by one word size.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gateway_common::abi::{MAX_NODES, NodeIndex, ROWS, Row, TAG_SETS, TagSet, fact, map};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::Error;

/// A whole array map in our address space. Elements have a stride of 8 bytes; all our values are multiples.
#[derive(Debug)]
pub struct MappedArray {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain shared memory, accessed by atomics only, and lives until drop.
unsafe impl Send for MappedArray {}
// SAFETY: as above.
unsafe impl Sync for MappedArray {}

impl MappedArray {
    /// Maps `entries` values of `value_size` bytes of the map `fd`, readable and writable.
    ///
    /// # Errors
    /// The map is not mmapable or not ours to write.
    pub fn new(
        map: &'static str,
        fd: impl AsFd,
        entries: u32,
        value_size: usize,
    ) -> Result<Self, Error> {
        Self::with(map, fd, entries, value_size, true)
    }

    /// As [`Self::new`], to be read only: a store to it ends this process.
    ///
    /// # Errors
    /// The map is not mmapable.
    pub fn to_read(
        map: &'static str,
        fd: impl AsFd,
        entries: u32,
        value_size: usize,
    ) -> Result<Self, Error> {
        Self::with(map, fd, entries, value_size, false)
    }

    fn with(
        map: &'static str,
        fd: impl AsFd,
        entries: u32,
        value_size: usize,
        writable: bool,
    ) -> Result<Self, Error> {
        let bytes = entries as usize * value_size.next_multiple_of(8);
        let protection = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing of ours is there.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED,
                fd,
                0,
            )
        }
        .map_err(|errno| Error::Map {
            map,
            source: errno.into(),
        })?;
        let start = NonNull::new(start.cast()).expect("the kernel never maps page zero for us");
        Ok(Self { start, bytes })
    }

    /// All words of 64 bits.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, `bytes` long, a multiple of 8, mapped as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.cast().as_ptr(), self.bytes / 8) }
    }

    /// All words of 32 bits.
    #[must_use]
    pub fn half_words(&self) -> &[AtomicU32] {
        // SAFETY: page-aligned, `bytes` long, a multiple of 8, mapped as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.cast().as_ptr(), self.bytes / 4) }
    }

    /// Writes a value word by word at 32-bit word `at`.
    pub fn write<T: bytemuck::NoUninit>(&self, at: usize, value: &T) {
        let words = bytemuck::bytes_of(value).chunks_exact(4);
        for (place, word) in self.half_words()[at..].iter().zip(words) {
            let word = word.try_into().expect("chunks of four");
            place.store(u32::from_ne_bytes(word), Ordering::Relaxed);
        }
    }

    /// Reads a value word by word at 32-bit word `at`.
    #[must_use]
    pub fn read<T: bytemuck::Pod>(&self, at: usize) -> T {
        let mut value = T::zeroed();
        let words = bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(4);
        for (place, word) in self.half_words()[at..].iter().zip(words) {
            word.copy_from_slice(&place.load(Ordering::Relaxed).to_ne_bytes());
        }
        value
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: our own mapping of that length; no reference outlives `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// What the unprivileged side writes: rows, alive words, heartbeat, tags of UDP sessions.
#[derive(Clone, Debug)]
pub struct SharedTables {
    pub(super) rows: Arc<MappedArray>,
    pub(super) alive: Arc<MappedArray>,
    pub(super) heartbeat: Arc<MappedArray>,
    pub(super) tags: Arc<MappedArray>,
}

impl SharedTables {
    /// Maps the tables behind descriptors that were handed over.
    ///
    /// # Errors
    /// One of them is no such map, or not ours to write.
    pub fn of(
        rows: impl AsFd,
        alive: impl AsFd,
        heartbeat: impl AsFd,
        tags: impl AsFd,
    ) -> Result<Self, Error> {
        let word = size_of::<u64>();
        Ok(Self {
            rows: Arc::new(MappedArray::new(map::ROWS, rows, ROWS, word)?),
            alive: Arc::new(MappedArray::new(map::ALIVE, alive, MAX_NODES, word)?),
            heartbeat: Arc::new(MappedArray::new(
                map::HEARTBEAT,
                heartbeat,
                fact::WORDS,
                word,
            )?),
            tags: Arc::new(MappedArray::new(
                map::TAGS,
                tags,
                TAG_SETS,
                size_of::<TagSet>(),
            )?),
        })
    }

    /// Says that the proxy is alive: a value that differs from the last one.
    pub fn beat(&self, value: u64) {
        self.heartbeat.words()[0].store(value, Ordering::Release);
    }

    /// The last heartbeat.
    #[must_use]
    pub fn last_beat(&self) -> u64 {
        self.heartbeat.words()[0].load(Ordering::Acquire)
    }

    /// Stores rows, each by one aligned store. Indices beyond the table are not looked at.
    pub fn store_rows(&self, rows: &[(u32, Row)]) {
        let words = self.rows.words();
        for (index, row) in rows {
            if let Some(word) = words.get(*index as usize) {
                word.store(row.0, Ordering::Release);
            }
        }
    }

    /// All rows.
    #[must_use]
    pub fn rows(&self) -> Box<[Row]> {
        let words = self.rows.words().iter().take(ROWS as usize);
        words
            .map(|word| Row(word.load(Ordering::Relaxed)))
            .collect()
    }

    /// What a node is held for: the low bits of `probe::view`.
    pub fn set_alive(&self, node: NodeIndex, bits: u8) {
        if u32::from(node) < MAX_NODES {
            self.alive.words()[usize::from(node)].store(u64::from(bits), Ordering::Release);
        }
    }

    /// What this node says of itself, by the slots of `abi::fact`; slots beyond the array are not looked at.
    pub fn set_fact(&self, slot: u32, word: u64) {
        if let Some(place) = self.heartbeat.words().get(slot as usize) {
            place.store(word, Ordering::Release);
        }
    }

    /// Puts every row that this node owns with others in transition, whoever writes rows at the same time.
    pub fn doubt_rows_of(&self, owner: NodeIndex) {
        let doubt = Row::new(0, true, [(0, false); 3]).0;
        for word in self.rows.words().iter().take(ROWS as usize) {
            let owned = |bits| {
                let row = Row(bits);
                (row.owner() == owner && row.next(0) != 0).then_some(bits | doubt)
            };
            // A row that another node owns stays as it is.
            let _owned = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, owned);
        }
    }

    /// The owner of a row; none beyond the table.
    #[must_use]
    pub fn owner(&self, row: u32) -> NodeIndex {
        let words = self.rows.words();
        words
            .get(row as usize)
            .map_or(0, |word| Row(word.load(Ordering::Relaxed)).owner())
    }
}

#[cfg(test)]
mod tests {
    use gateway_common::abi::NodeEntry;

    use super::*;

    fn array(entries: u32, value_size: usize) -> MappedArray {
        let file = tempfile::tempfile().unwrap();
        file.set_len(u64::from(entries) * value_size as u64)
            .unwrap();
        MappedArray::new("TEST", &file, entries, value_size).unwrap()
    }

    #[test]
    fn values_go_there_and_back_and_touch_nothing_else() {
        let table = array(4, size_of::<NodeEntry>());
        let entry = NodeEntry {
            mac: [1, 2, 3, 4, 5, 6],
            ifindex: 7,
            flags: 9,
            ..NodeEntry::default()
        };
        table.write(2 * size_of::<NodeEntry>() / 4, &entry);
        let read: Vec<NodeEntry> = (0..4)
            .map(|i| table.read(i * size_of::<NodeEntry>() / 4))
            .collect();
        let none = NodeEntry::default();
        assert_eq!(read, [none, none, entry, none]);
    }

    #[test]
    fn rows_are_single_words() {
        let rows = Arc::new(array(ROWS, 8));
        let shared = SharedTables {
            rows: Arc::clone(&rows),
            alive: Arc::new(array(MAX_NODES, 8)),
            heartbeat: Arc::new(array(fact::WORDS, 8)),
            tags: Arc::new(array(1, 16)),
        };
        shared.store_rows(&[(1, Row(5)), (65_535, Row(6)), (65_536, Row(7))]);
        let read = shared.rows();
        assert_eq!(
            (read[0].0, read[1].0, read[65_535].0, read.len()),
            (0, 5, 6, 65_536)
        );
        shared.beat(3);
        shared.set_alive(1023, 5);
        shared.set_alive(1024, 5);
        assert_eq!(shared.last_beat(), 3);
        assert_eq!(shared.alive.words()[1023].load(Ordering::Relaxed), 5);
        shared.set_fact(fact::WORDS - 1, 9);
        shared.set_fact(fact::WORDS, 9);
        assert_eq!(shared.heartbeat.words()[7].load(Ordering::Relaxed), 9);
        assert_eq!((shared.owner(1), shared.owner(65_536)), (5, 0));
        let with = |owner, doubt| Row::new(owner, doubt, [(7, false), (0, false), (0, false)]);
        shared.store_rows(&[(2, with(3, false)), (3, with(4, false))]);
        shared.doubt_rows_of(3);
        let read = shared.rows();
        assert_eq!([read[2], read[3]], [with(3, true), with(4, false)]);
        shared.doubt_rows_of(5);
        assert_eq!(shared.rows()[1].0, 5, "nobody else could hold anything");
    }
}
