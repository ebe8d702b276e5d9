//! Waiting with a bound; Ctrl-C ends every wait, so that what has been started is removed again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether somebody wants this command to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on signals no longer end this process by themselves.
    pub(crate) fn listen() -> Result<Self> {
        let flag = Arc::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .context("cannot listen to signals")?;
        }
        Ok(Self(flag))
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Looks until `look` finds something, at most for `bound`; an error of a look ends it at once.
pub(crate) fn until<T>(
    interrupt: &Interrupt,
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        interrupt.check()?;
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() >= bound {
            bail!("{what}: not within {} s", bound.as_secs());
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_ends_a_wait() {
        let interrupt = Interrupt::default();
        let mut looks = 0;
        let error = until(&interrupt, "never", Duration::from_secs(60), || {
            looks += 1;
            interrupt.0.store(true, Ordering::Relaxed);
            Ok(None::<()>)
        });
        assert_eq!(error.unwrap_err().to_string(), "interrupted");
        assert_eq!(looks, 1);
    }

    #[test]
    fn a_bound_ends_a_wait() {
        let error = until(&Interrupt::default(), "it", Duration::ZERO, || {
            Ok(None::<()>)
        });
        assert_eq!(error.unwrap_err().to_string(), "it: not within 0 s");
    }
}
