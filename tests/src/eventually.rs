//! Bounded polling: the only place of the kit that waits by the clock.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until `look` succeeds, at most for `bound`.
///
/// # Errors
/// `what` and the last look's error, when the bound has passed.
pub fn eventually<T>(
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if started.elapsed() >= bound => {
                return Err(anyhow!(
                    "{what}: not within {} s: {error:#}",
                    bound.as_secs_f32()
                ));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Waits between two looks of a loop that is bounded otherwise. Not by parking: a scope of threads that has ended leaves its thread a
/// wake-up, and the loop would not wait at all.
pub fn rest(time: Duration) {
    thread::sleep(time);
}

/// Looks for the whole of `span`; fails at the first look that fails.
///
/// # Errors
/// `what` and that look's error.
pub fn throughout(what: &str, span: Duration, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < span {
        look().map_err(|error| anyhow!("{what}: {error:#}"))?;
        thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_look_is_what_a_failure_tells() {
        let mut looks = 0;
        let error = eventually("three", Duration::ZERO, || -> Result<()> {
            looks += 1;
            Err(anyhow!("saw {looks}"))
        });
        assert_eq!(
            error.unwrap_err().to_string(),
            "three: not within 0 s: saw 1"
        );
    }

    #[test]
    fn a_look_that_succeeds_ends_it() {
        let mut looks = 0;
        let found = eventually("third", Duration::from_secs(5), || {
            looks += 1;
            if looks == 3 {
                Ok(looks)
            } else {
                Err(anyhow!("saw {looks}"))
            }
        });
        assert_eq!(found.unwrap(), 3);
    }
}
