//! The manifests that Forebay is installed by, held to the program that they start: its flags, and what it asks the API server for.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

use clap::Parser;
use gateway_user::args::{Cli, Command};
use gateway_user::settings;
use gateway_user::translate::Kind;
use serde_json::Value;

fn objects(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(file);
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What a container starts, with the flags of its environment.
fn command(container: &Value) -> Command {
    let mut words = vec!["forebay".to_owned()];
    words.extend(
        list(&container["args"])
            .iter()
            .map(|word| word.as_str().unwrap().to_owned()),
    );
    for variable in list(&container["env"]) {
        let name = variable["name"].as_str().unwrap().strip_prefix("FOREBAY_");
        let flag = name.unwrap().to_lowercase().replace('_', "-");
        let value = variable["value"].as_str().unwrap_or("node1");
        words.push(format!("--{flag}={value}"));
    }
    match Cli::try_parse_from(&words) {
        Ok(cli) => cli.command,
        Err(error) => panic!("{words:?}: {error}"),
    }
}

#[test]
fn the_program_takes_its_flags() {
    let objects = objects("forebay.yaml");
    let [set] = of_kind(&objects, "DaemonSet")[..] else {
        panic!("one DaemonSet");
    };
    let pod = &set["spec"]["template"]["spec"];
    let [agent] = list(&pod["initContainers"]) else {
        panic!("one sidecar");
    };
    assert_eq!(agent["restartPolicy"], "Always");
    let Command::Agent(args) = command(agent) else {
        panic!("the agent");
    };
    let agent = settings::agent::Settings::new(args).unwrap();
    let [proxy] = list(&pod["containers"]) else {
        panic!("one container");
    };
    let user = proxy["securityContext"]["runAsUser"].as_u64().unwrap();
    assert_eq!(agent.allow_uid, [u32::try_from(user).unwrap()]);
    assert_eq!(
        proxy["securityContext"]["capabilities"],
        serde_json::json!({"drop": ["ALL"]})
    );
    let Command::Run(args) = command(proxy) else {
        panic!("the proxy");
    };
    let run = settings::Settings::new(args).unwrap();
    assert_eq!(run.agent.as_ref(), Some(&agent.socket));
    // Time for the drain, and for the agent to end after it.
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > run.drain_timeout.as_secs() + 10);
}

#[test]
fn detaching_is_a_command_of_its_own() {
    let objects = objects("detach.yaml");
    let [container] = list(&objects[0]["spec"]["containers"]) else {
        panic!("one container");
    };
    assert!(matches!(command(container), Command::Detach(_)));
    let installed = self::objects("forebay.yaml");
    let set = of_kind(&installed, "DaemonSet")[0];
    let images = &set["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(&container["image"], images);
}

/// What the rules of all roles allow: group, resource, verb.
fn allowed(objects: &[Value]) -> BTreeSet<(String, String, String)> {
    let mut allowed = BTreeSet::new();
    let texts = |value: &Value| -> Vec<String> {
        list(value)
            .iter()
            .map(|text| text.as_str().unwrap().to_owned())
            .collect()
    };
    let roles = of_kind(objects, "ClusterRole")
        .into_iter()
        .chain(of_kind(objects, "Role"));
    for rule in roles.flat_map(|role| list(&role["rules"])) {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    allowed.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    allowed
}

#[test]
fn all_that_is_read_may_be_read_and_nothing_may_be_deleted() {
    let allowed = allowed(&objects("forebay.yaml"));
    for kind in Kind::ALL {
        let name = kind.as_str().to_lowercase();
        let plural = match name.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None if name.ends_with("ss") => format!("{name}es"),
            None => format!("{name}s"),
        };
        for verb in ["list", "watch"] {
            let rule = (kind.group().to_owned(), plural.clone(), verb.to_owned());
            assert!(allowed.contains(&rule), "{rule:?}");
        }
    }
    for (group, resource, verb) in allowed {
        let few = ["get", "list", "watch", "create", "update", "patch"];
        assert!(few.contains(&&*verb), "{verb} {resource}");
        assert!(group != "*" && resource != "*");
    }
}
