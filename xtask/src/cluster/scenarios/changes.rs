//! Routes that change and routes that come, watched from outside.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    applied::Applied,
    http::{ask, get, watch},
    stage::{GATEWAYS, HELLO, HOST, PATIENCE, Stage, gateway_path, route, route_path, routes_path},
    usage::{Memory, idle},
};

/// Changes of a backend, and the time between two.
const CHANGES: usize = 20;
const PACE: Duration = Duration::from_millis(200);
/// Longest wait until one is seen.
const SEEN: Duration = Duration::from_secs(2);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(5);
const BOUND: Duration = Duration::from_secs(5);
/// Longest time after its first answer at which a route may be unknown to another node.
const SKEW: Duration = Duration::from_millis(500);
/// Looks after the first answer.
const AFTER: usize = 6;
/// For how long the idle daemon is watched.
const IDLE: Duration = Duration::from_secs(5);

/// A route's backend changes again and again.
pub(super) fn backends(stage: &Stage<'_>) -> Result<String> {
    let load = stage.load();
    let (mut delays, mut olds) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let began = Instant::now();
        let backend = ["v2", "v1"][number % 2];
        let rules = json!([{"backendRefs": [{"name": backend, "port": 80}]}]);
        let fields = json!({"spec": {"rules": rules}});
        stage.api.change(&route_path("load"), &fields)?;
        let expected = format!("{HELLO} {backend}");
        let seen = watch(stage.vip(), HOST, &expected, SEEN)
            .with_context(|| format!("change {number} was not seen within 2 s"))?;
        delays.push(seen.first);
        olds.push(seen.last_old);
        stage.pause(PACE.saturating_sub(began.elapsed()))?;
    }
    stage.live(HOST, &format!("{HELLO} v1"))?;
    let tally = load.stop();
    tally.none_failed()?;
    Ok(format!(
        "{tally}; {CHANGES} changes, seen after {}, the last answer by the old one after {}",
        Figures::of(delays),
        Figures::of(olds)
    ))
}

/// Routes come one by one: when does each answer, and what does the daemon need with all of them?
pub(super) fn routes(stage: &Stage<'_>) -> Result<String> {
    let had = attached(stage)?;
    let (bare, applied) = (Memory::of(stage)?, Applied::of(stage)?);
    let (mut delays, mut skews) = (Vec::new(), Vec::new());
    let added = (0..stage.routes).try_for_each(|number| {
        stage.running.interrupt.check()?;
        let (delay, skew) = add(stage, number)?;
        delays.push(delay);
        skews.push(skew);
        Ok(())
    });
    let counted = added.and_then(|()| count(stage, had + stage.routes as u64));
    let applied = applied.since(stage);
    let (idle, full) = (idle(stage, IDLE), Memory::of(stage));
    let removed = remove(stage, had);
    let counted = counted?;
    let (removed, idle, full, applied) = (removed?, idle?, full?, applied?);
    let late = skews.iter().filter(|skew| !skew.is_zero()).count();
    Ok(format!(
        "{} routes one by one, the first 200 after {}; {late} times another node answered 404 after it, for {}; \
         live after their reading: {applied}; attachedRoutes right {} ms after the last, {} ms after the removal of all; \
         `forebay run` idle: {idle}, {bare} before and {full} with them",
        stage.routes,
        Figures::of(delays),
        Figures::of(skews),
        counted.as_millis(),
        removed.as_millis(),
    ))
}

/// Adds one and looks until it answers: the time until then, and for how long another node did not know it yet.
fn add(stage: &Stage<'_>, number: usize) -> Result<(Duration, Duration)> {
    let (name, host) = (format!("many-{number}"), format!("r{number}.many.test"));
    let request = get(&host, "/");
    let look = || {
        ask(stage.vip(), &request, BOUND)
            .map(|came| came.status)
            .map_err(|fault| anyhow::anyhow!("{host}: {fault:?}"))
    };
    let before = look()?;
    ensure!(before == 404, "{host}: {before} before there is a route");
    let mut object = route(&name, &host, "v1");
    object["metadata"]["labels"] = json!({"scenario": "many"});
    stage.api.create(&routes_path(), &object)?;
    let accepted = Instant::now();
    loop {
        match look()? {
            200 => break,
            404 => ensure!(accepted.elapsed() < PATIENCE, "{host}: still 404"),
            other => anyhow::bail!("{host}: {other}"),
        }
        std::thread::sleep(LOOK);
    }
    let (delay, first) = (accepted.elapsed(), Instant::now());
    let mut skew = Duration::ZERO;
    let mut fine = 0;
    while fine < AFTER {
        match look()? {
            200 => fine += 1,
            404 => {
                (fine, skew) = (0, first.elapsed());
                ensure!(skew < SKEW, "{host}: 404 after 200");
            }
            other => anyhow::bail!("{host}: {other} after 200"),
        }
    }
    Ok((delay, skew))
}

fn attached(stage: &Stage<'_>) -> Result<u64> {
    let gateway = stage.api.get(&gateway_path(GATEWAYS[0]))?;
    gateway["status"]["listeners"][0]["attachedRoutes"]
        .as_u64()
        .context("the Gateway does not say how many routes it has")
}

/// How long the number of routes takes to be right.
fn count(stage: &Stage<'_>, right: u64) -> Result<Duration> {
    let began = Instant::now();
    stage.until(&format!("{right} attached routes"), SEEN, || {
        Ok((attached(stage)? == right).then_some(()))
    })?;
    Ok(began.elapsed())
}

fn remove(stage: &Stage<'_>, right: u64) -> Result<Duration> {
    let all = format!("{}?labelSelector=scenario%3Dmany", routes_path());
    stage.api.delete(&all)?;
    count(stage, right)
}

/// Mean, 99th percentile and worst of some times.
pub(super) struct Figures {
    mean: Duration,
    p99: Duration,
    worst: Duration,
}

impl Figures {
    pub(super) fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let at = |share: usize| {
            let index = (all.len() * share).div_ceil(100).saturating_sub(1);
            all.get(index).copied().unwrap_or_default()
        };
        let number = u32::try_from(all.len().max(1)).unwrap_or(u32::MAX);
        Self {
            mean: all.iter().sum::<Duration>() / number,
            p99: at(99),
            worst: at(100),
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        write!(
            f,
            "{:.1} ms (p99 {:.1}, worst {:.1})",
            ms(self.mean),
            ms(self.p99),
            ms(self.worst)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_all_times() {
        let all = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(
            Figures::of(all).to_string(),
            "100.5 ms (p99 198.0, worst 200.0)"
        );
        assert_eq!(
            Figures::of(Vec::new()).to_string(),
            "0.0 ms (p99 0.0, worst 0.0)"
        );
    }
}
