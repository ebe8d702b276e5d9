//! mmapped BPF arrays: plain words shared with the kernel.
//!
//! Each access is one aligned atomic load or store of one word, so neither side ever sees half a word. What
//! must change together is not this module's concern. A map is only ever accessed by one word size.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gateway_common::abi::{MAX_NODES, NodeIndex, ROWS, Row, TAG_SETS, TagSet, map};
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
        let bytes = entries as usize * value_size.next_multiple_of(8);
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing of ours is there.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
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
            heartbeat: Arc::new(MappedArray::new(map::HEARTBEAT, heartbeat, 1, word)?),
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

    /// Marks a node as suspect (does not answer) or not.
    pub fn set_suspect(&self, node: NodeIndex, suspect: bool) {
        if u32::from(node) < MAX_NODES {
            self.alive.words()[usize::from(node)].store(u64::from(suspect), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use gateway_common::abi::{NodeEntry, fact};

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
        shared.set_suspect(1023, true);
        shared.set_suspect(1024, true);
        assert_eq!(shared.last_beat(), 3);
        assert_eq!(shared.alive.words()[1023].load(Ordering::Relaxed), 1);
    }
}
