//! Act 3: a failing backend is out after exactly its fifth error, and comes back.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::{Table, must};
use crate::{
    backend::Behaviour,
    client::{Outcome, Tally},
    eventually::eventually,
    fixture::HOST_V1,
    rig::Rig,
    topology::BACKENDS_V1,
};

/// `consecutive5xxErrors`.
pub const ERRORS: usize = 5;

/// Requests that must all be answered by others while the backend is out.
const WHILE_OUT: usize = 30;

/// Sends one request after another through the first node while one backend answers 500; `waiting` hears how
/// long the backend has still to stay out. `base` is the base ejection time of the fixture.
///
/// # Errors
/// If the backend sees another number of requests, or comes back early or not at all.
pub fn ejection(rig: &mut Rig, base: Duration, mut waiting: impl FnMut(Duration)) -> Result<Table> {
    rig.fixture.route_to_v1()?;
    rig.wait_served(0, HOST_V1)?;
    rig.backends.forget_all();
    let failing = BACKENDS_V1[0];
    rig.backends.at(failing)?.set(Behaviour {
        fail: true,
        ..Behaviour::default()
    });
    // Three endpoints in turn: five turns of the failing one.
    let mut sent = 0;
    while rig.backends.at(failing)?.count() < ERRORS {
        must!(
            sent < 10 * ERRORS,
            "{failing} saw {} of {sent} requests",
            rig.backends.at(failing)?.count()
        );
        one(rig)?;
        sent += 1;
    }
    let out_since = Instant::now();
    let load = rig.load_through(0, HOST_V1, WHILE_OUT)?;
    let tally = Tally::of(&rig.client.send(load)?);
    let errors = rig.backends.at(failing)?.count();
    must!(
        errors == ERRORS,
        "{failing} saw {errors} requests before it was out, not {ERRORS}"
    );
    must!(
        tally.status(200) == WHILE_OUT,
        "{WHILE_OUT} requests while {failing} was out gave {tally}"
    );
    rig.backends.at(failing)?.set(Behaviour::default());
    let back_after = wait_back(rig, out_since, base, &mut waiting)?;
    must!(
        back_after >= base,
        "{failing} was back after {back_after:.1?}, earlier than {base:?}"
    );
    let mut table = Table::new([
        "backend",
        "errors until out",
        "requests while out",
        "back after",
    ]);
    table.row([
        failing.to_string(),
        errors.to_string(),
        "0".to_owned(),
        format!("{:.1} s", back_after.as_secs_f32()),
    ]);
    Ok(table)
}

fn one(rig: &mut Rig) -> Result<Outcome> {
    let load = rig.load_through(0, HOST_V1, 1)?;
    let finished = rig.client.send(load)?;
    finished
        .into_iter()
        .next()
        .map(|request| request.outcome)
        .ok_or_else(|| anyhow!("no request was sent"))
}

/// Sends requests until the backend sees one again. It comes back at the end of an interval, which is as long
/// as the base time in every fixture.
fn wait_back(
    rig: &mut Rig,
    since: Instant,
    base: Duration,
    waiting: &mut impl FnMut(Duration),
) -> Result<Duration> {
    let failing = BACKENDS_V1[0];
    let bound = base * 2 + Duration::from_secs(5);
    let mut last_sent = Instant::now();
    eventually(&format!("{failing} back"), bound, || {
        waiting(base.saturating_sub(since.elapsed()));
        // A few requests a second are enough to see it, and leave ports for the other acts.
        if last_sent.elapsed() >= Duration::from_millis(100) {
            last_sent = Instant::now();
            one(rig)?;
        }
        let seen = rig.backends.at(failing)?.count();
        if seen > ERRORS {
            Ok(since.elapsed())
        } else {
            Err(anyhow!("it saw no request"))
        }
    })
}
