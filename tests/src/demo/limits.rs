//! Act 2: the limits of the DestinationRule are exact.

use std::time::Duration;

use anyhow::Result;

use super::{Table, must};
use crate::{
    backend::Behaviour,
    client::{Finished, Load, Outcome, Tally},
    fixture::HOST_V1,
    rig::Rig,
};

/// Requests at the same time.
pub const REQUESTS: usize = 300;

/// 100 connections and 50 pending requests.
pub const ADMITTED: usize = 150;

/// Sends 300 overlapping requests through the first node to backend-v1 alone, whose backends hold each for
/// `hold`: exactly 150 are answered 200, the others 503 with `x-envoy-overloaded: true`, unseen by a backend.
///
/// # Errors
/// If the counts differ.
pub fn limits(rig: &mut Rig, hold: Duration) -> Result<Table> {
    rig.fixture.route_to_v1()?;
    rig.wait_served(0, HOST_V1)?;
    rig.backends.forget_all();
    rig.backends.set_all(Behaviour { hold, fail: false });
    let timeout = hold * 3 + Duration::from_secs(10);
    let load = Load {
        overlap: REQUESTS,
        timeout,
        ..rig.load_through(0, HOST_V1, REQUESTS)?
    };
    let finished = rig.client.send(load);
    rig.backends.set_all(Behaviour::default());
    let finished = finished?;
    let tally = Tally::of(&finished);
    must!(
        tally.status(200) == ADMITTED && tally.status(503) == REQUESTS - ADMITTED,
        "{REQUESTS} requests gave {tally}, not {ADMITTED} x 200 and {} x 503",
        REQUESTS - ADMITTED
    );
    let overloaded = finished
        .iter()
        .filter(|request| is_overloaded(request))
        .count();
    must!(
        overloaded == REQUESTS - ADMITTED,
        "{overloaded} of the 503 carry x-envoy-overloaded: true"
    );
    let seen = rig.backends.count();
    must!(
        seen == ADMITTED,
        "the backends saw {seen} requests, not {ADMITTED}"
    );
    let slowest = |status: u16| {
        finished
            .iter()
            .filter(|request| has(request, status))
            .map(|request| request.took)
            .max()
    };
    let mut table = Table::new(["answer", "requests", "slowest"]);
    for (status, what) in [(200, "200"), (503, "503 x-envoy-overloaded: true")] {
        let slowest = slowest(status).unwrap_or_default();
        table.row([
            what.to_owned(),
            tally.status(status).to_string(),
            format!("{:.1} s", slowest.as_secs_f32()),
        ]);
    }
    Ok(table)
}

fn has(request: &Finished, status: u16) -> bool {
    matches!(&request.outcome, Outcome::Answer(answer) if answer.status == status)
}

fn is_overloaded(request: &Finished) -> bool {
    let Outcome::Answer(answer) = &request.outcome else {
        return false;
    };
    answer.status == 503
        && answer
            .headers
            .get("x-envoy-overloaded")
            .is_some_and(|value| value == "true")
}
