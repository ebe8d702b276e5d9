//! Many objects of a class that is not Forebay's.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    scale::{IDLE, SETTLE},
    stage::{self, SPACES, Stage, gateways_in, route, routes_in, space},
    usage::{Memory, idle, shares},
};

/// Where they are.
const NAMESPACE: &str = "foreign";
/// How Forebay's writes are marked.
const MANAGER: &str = "forebay";

/// Gateways of a class that is not Forebay's, and routes to them, in numbers: no word in their status, and what does it
/// cost?
pub(super) fn foreign(stage: &Stage<'_>) -> Result<String> {
    stage.api.create(SPACES, &space(NAMESPACE))?;
    let done = flood(stage);
    let paths = [
        routes_in(NAMESPACE),
        gateways_in(NAMESPACE),
        format!("{SPACES}/{NAMESPACE}"),
    ];
    let emptied: Vec<_> = paths.iter().map(|path| stage.api.delete(path)).collect();
    let said = done?;
    emptied.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(said)
}

fn flood(stage: &Stage<'_>) -> Result<String> {
    let half = stage.foreign / 2;
    let (bare, before) = (Memory::of(stage)?, idle(stage, IDLE)?);
    let began = Instant::now();
    let meanwhile = shares(stage, "run", || {
        for number in 0..half {
            stage.running.interrupt.check()?;
            let name = format!("foreign-{number}");
            stage.api.create(&gateways_in(NAMESPACE), &gateway(&name))?;
            stage.api.create(&routes_in(NAMESPACE), &route_of(&name))?;
        }
        Ok(())
    })?;
    let took = began.elapsed().as_secs_f64();
    stage.pause(SETTLE)?;
    let (after, full) = (idle(stage, IDLE)?, Memory::of(stage)?);
    for path in [gateways_in(NAMESPACE), routes_in(NAMESPACE)] {
        untouched(&stage.api.get(&path)?, half).context(path)?;
    }
    let objects = u32::try_from(2 * half.max(1))?;
    Ok(format!(
        "{half} Gateways and {half} routes of another class: `forebay run` idle {before} before and {after} with them, \
         {:.0} µs for each while they came, {bare} before and {full} with them",
        meanwhile.worst() * took / f64::from(objects) * 1e6
    ))
}

fn gateway(name: &str) -> Value {
    let mut gateway = stage::gateway(name);
    gateway["metadata"]["namespace"] = json!(NAMESPACE);
    gateway["spec"]["gatewayClassName"] = json!("of-somebody-else");
    gateway
}

fn route_of(name: &str) -> Value {
    let mut route = route(name, &format!("{name}.test"), "v1");
    route["metadata"]["namespace"] = json!(NAMESPACE);
    route["spec"]["parentRefs"] = json!([{"name": name}]);
    route
}

/// Fails if one is missing, or if Forebay wrote into one.
fn untouched(list: &Value, number: usize) -> Result<()> {
    let all = list["items"].as_array().context("no list")?;
    ensure!(all.len() == number, "{} of {number}", all.len());
    for object in all {
        let managers = object["metadata"]["managedFields"].as_array();
        let mut managers = managers.context("no managers")?.iter();
        let ours = |manager: &Value| {
            let name = manager["manager"].as_str().unwrap_or_default();
            name.starts_with(MANAGER)
        };
        ensure!(
            !managers.any(ours),
            "{} was written to",
            object["metadata"]["name"]
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_noticed() {
        let list = |managers: &[&str]| {
            let managers: Vec<Value> = managers
                .iter()
                .map(|name| json!({"manager": name}))
                .collect();
            json!({"items": [{"metadata": {"name": "a", "managedFields": managers}}]})
        };
        untouched(&list(&["kubectl", "other"]), 1).unwrap();
        let said = untouched(&list(&["kubectl", "forebay-status"]), 1).unwrap_err();
        assert_eq!(said.to_string(), "\"a\" was written to");
        assert!(untouched(&list(&["kubectl"]), 2).is_err());
    }
}
