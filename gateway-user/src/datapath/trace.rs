//! The tracer's side of the kernel: says which packets it wants to be told of, and reads what it is told.
//!
//! The programs tell nothing after the time in the filter, which a tracer that lives puts off again and again: one that was killed is
//! forgotten within [`LEASE`]. The word that makes the programs look at the filter at all is cleared by the tracer, else by the daemon.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use gateway_common::abi::{Config, MAX_CPUS, TRACE_BYTES, TraceEvent, TraceFilter, cpu_state, map};
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};

use super::Error;
use super::look::Look;
use super::mmap::MappedArray;

/// How long the programs go on telling a tracer that does not ask for more.
pub const LEASE: Duration = Duration::from_secs(1);

/// Half-word of [`Config::trace`].
pub(super) const TRACE_WORD: usize = std::mem::offset_of!(Config, trace) / 4;

const PROCESS_WORD: usize = std::mem::offset_of!(TraceFilter, process) / 4;

/// The one tracer of a node. What it asked for ends when it is dropped.
pub struct Tracer {
    config: MappedArray,
    filter: MappedArray,
    cpu_state: MappedArray,
    events: RingBuf<MapData>,
    session: u32,
    lost_before: u64,
    /// Held while it lives, and by the kernel no longer than its process does.
    _lock: File,
}

impl Tracer {
    /// Begins to trace; process and session of the filter are this one's.
    ///
    /// # Errors
    /// Another one traces, or the maps cannot be opened.
    pub fn start(look: &Look, filter: TraceFilter) -> Result<Self, Error> {
        let directory = look.directory().to_owned();
        let lock = File::open(&directory).map_err(|source| Error::Pin {
            path: directory.clone(),
            source,
        })?;
        let config = look.array_to_write(map::CONFIG, 1, size_of::<Config>())?;
        let place = look.array_to_write(map::TRACE, 1, size_of::<TraceFilter>())?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let process = place.half_words()[PROCESS_WORD].load(Ordering::Relaxed);
            return Err(Error::TracerBusy { process });
        }
        look.check(map::TRACE_EVENTS, TRACE_BYTES, 0)?;
        let path = directory.join(map::TRACE_EVENTS);
        let unfit = |difference: String| Error::PinnedMapDiffers {
            path: path.clone(),
            difference,
        };
        let data = MapData::from_pin(&path).map_err(|error| unfit(error.to_string()))?;
        let mut events =
            RingBuf::try_from(Map::RingBuf(data)).map_err(|error| unfit(error.to_string()))?;
        // What an earlier tracer did not read any more.
        while events.next().is_some() {}
        let before: TraceFilter = place.read(0);
        let mut tracer = Self {
            config,
            filter: place,
            cpu_state: look.array(
                map::CPU_STATE,
                MAX_CPUS * cpu_state::WORDS,
                size_of::<u64>(),
            )?,
            events,
            session: before.session.wrapping_add(1),
            lost_before: 0,
            _lock: lock,
        };
        tracer.lost_before = tracer.lost_in_all();
        let filter = TraceFilter {
            until: 0,
            process: std::process::id(),
            session: tracer.session,
            ..filter
        };
        tracer.filter.write(0, &filter);
        tracer.renew();
        Ok(tracer)
    }

    /// Asks for more, for [`LEASE`] from now on.
    pub fn renew(&self) {
        let until = now().saturating_add(LEASE.as_nanos() as u64);
        // The first word of the filter, alone in its 64 bits.
        self.filter.words()[0].store(until, Ordering::Release);
        self.config.half_words()[TRACE_WORD].store(1, Ordering::Release);
    }

    /// The next packet that it was told of, if there is one by now.
    pub fn next_event(&mut self) -> Option<TraceEvent> {
        while let Some(item) = self.events.next() {
            let event = bytemuck::try_pod_read_unaligned::<TraceEvent>(&item).ok();
            if let Some(event) = event.filter(|event| event.session == self.session) {
                return Some(event);
            }
        }
        None
    }

    /// Packets that it was not told of, since the ring buffer was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost_in_all().wrapping_sub(self.lost_before)
    }

    fn lost_in_all(&self) -> u64 {
        let words = self.cpu_state.words().iter();
        let words = words.skip(cpu_state::TRACE_LOST as usize);
        words
            .step_by(cpu_state::WORDS as usize)
            .map(|word| word.load(Ordering::Relaxed))
            .sum()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        end(&self.config, &self.filter);
    }
}

fn end(config: &MappedArray, filter: &MappedArray) {
    config.half_words()[TRACE_WORD].store(0, Ordering::Release);
    filter.words()[0].store(0, Ordering::Release);
}

/// Lets packets go without a look at the filter again, if a tracer went without having done so.
pub(super) fn end_if_over(config: &MappedArray, filter: &MappedArray) {
    let on = config.half_words()[TRACE_WORD].load(Ordering::Acquire) != 0;
    if on && filter.words()[0].load(Ordering::Acquire) < now() {
        end(config, filter);
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, as the programs read it.
#[must_use]
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(value_size: usize) -> MappedArray {
        let file = tempfile::tempfile().unwrap();
        file.set_len(value_size as u64).unwrap();
        MappedArray::new("TEST", &file, 1, value_size).unwrap()
    }

    #[test]
    fn a_tracer_that_went_is_cleaned_up_after_and_one_that_lives_is_not() {
        let (config, filter) = (array(size_of::<Config>()), array(size_of::<TraceFilter>()));
        let on = || config.half_words()[TRACE_WORD].load(Ordering::Relaxed);
        config.half_words()[TRACE_WORD].store(1, Ordering::Relaxed);
        filter.words()[0].store(now() + 60_000_000_000, Ordering::Relaxed);
        end_if_over(&config, &filter);
        assert_eq!(on(), 1);
        filter.words()[0].store(now() - 1, Ordering::Relaxed);
        end_if_over(&config, &filter);
        assert_eq!(on(), 0);
        let is: Config = config.read(0);
        assert_eq!(is, Config::default(), "no other word is touched");
    }
}
