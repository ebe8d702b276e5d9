//! The manifests that Forebay is installed by, held to the program that they start: its flags, and what it asks the API server for.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

use clap::{CommandFactory, Parser};
use gateway_user::args::{Cli, Command};
use gateway_user::datapath::attach::LIBXDP_BPFFS;
use gateway_user::k8s::What;
use gateway_user::k8s::rights::{Place, RIGHTS};
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
    fn is_flag(of: &clap::Command, variable: &str) -> bool {
        let own = |flag: &clap::Arg| flag.get_env().is_some_and(|env| env == variable);
        of.get_arguments().any(own) || of.get_subcommands().any(|of| is_flag(of, variable))
    }
    let cli = Cli::command();
    for variable in list(&container["env"]) {
        let name = variable["name"].as_str().unwrap();
        if name == LIBXDP_BPFFS {
            continue;
        }
        // What a command that is run in the container looks at.
        if !is_flag(cli.find_subcommand(&words[1]).unwrap(), name) {
            let run_by_hand = ["check", "bpf"].map(|name| cli.find_subcommand(name).unwrap());
            assert!(run_by_hand.iter().any(|of| is_flag(of, name)), "{name}");
            continue;
        }
        let flag = name.strip_prefix("FOREBAY_").unwrap();
        let flag = flag.to_lowercase().replace('_', "-");
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
    let agent = settings::agent::Settings::new(*args).unwrap();
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
    let run = settings::Settings::new(*args, None, 1).unwrap();
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

/// Group, resource and verbs of what is written.
fn written(what: What) -> (&'static str, &'static str, &'static [&'static str]) {
    let gateway = "gateway.networking.k8s.io";
    match what {
        What::GatewayClass => (gateway, "gatewayclasses/status", &["patch"]),
        What::Gateway => (gateway, "gateways/status", &["patch"]),
        What::HttpRoute => (gateway, "httproutes/status", &["patch"]),
        What::GrpcRoute => (gateway, "grpcroutes/status", &["patch"]),
        What::UdpRoute => (gateway, "udproutes/status", &["patch"]),
        What::DestinationRule => ("networking.istio.io", "destinationrules/status", &["patch"]),
        What::AddressPool => ("forebay.dev", "addresspools/status", &["patch"]),
        What::TrafficPolicy => ("forebay.dev", "trafficpolicies/status", &["patch"]),
        // An apply creates too.
        What::Service => ("", "services", &["create", "patch"]),
        What::EndpointSlice => ("discovery.k8s.io", "endpointslices", &["create", "patch"]),
        What::Lease => (
            "coordination.k8s.io",
            "leases",
            &["create", "patch", "update"],
        ),
        What::Event => ("events.k8s.io", "events", &["create", "patch"]),
        What::Secret => ("", "secrets", &["create", "update"]),
    }
}

#[test]
fn all_that_is_written_may_be_written_and_nothing_else() {
    let reads = ["get", "list", "watch"];
    let allowed = allowed(&objects("forebay.yaml")).into_iter();
    let allowed: BTreeSet<_> = allowed.filter(|rule| !reads.contains(&&*rule.2)).collect();
    let mut wanted = BTreeSet::new();
    let status = ("", "services/status", &["patch"][..]);
    let all = What::ALL.iter().map(|what| written(*what));
    for (group, resource, verbs) in all.chain([status]) {
        for verb in verbs {
            wanted.insert((group.to_owned(), resource.to_owned(), (*verb).to_owned()));
        }
    }
    assert_eq!(allowed, wanted);
}

/// What each role allows, and where.
fn rules(objects: &[Value]) -> BTreeSet<(Place, String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut rules = BTreeSet::new();
    for kind in ["ClusterRole", "Role"] {
        for role in of_kind(objects, kind) {
            let namespace = role["metadata"]["namespace"].as_str().map(str::to_owned);
            assert_eq!(namespace.is_some(), kind == "Role");
            // Whoever is bound to it there.
            let bound = of_kind(objects, &format!("{kind}Binding")).into_iter();
            let mut bound = bound.filter(|binding| {
                binding["roleRef"]["name"] == role["metadata"]["name"]
                    && binding["metadata"]["namespace"] == role["metadata"]["namespace"]
            });
            let subject = &bound.next().unwrap()["subjects"][0];
            assert_eq!(subject["namespace"], "forebay-system");
            for rule in list(&role["rules"]) {
                let names = list(&rule["resourceNames"])
                    .iter()
                    .map(|name| Some(text(name)));
                let mut names: Vec<Option<String>> = names.collect();
                if names.is_empty() {
                    names.push(None);
                }
                for name in names {
                    for (resource, verb) in list(&rule["resources"])
                        .iter()
                        .flat_map(|of| list(&rule["verbs"]).iter().map(move |verb| (of, verb)))
                    {
                        let place = Place {
                            namespace: namespace.clone(),
                            name: name.clone(),
                        };
                        let group = text(&rule["apiGroups"][0]);
                        rules.insert((place, group, text(resource), text(verb)));
                    }
                }
            }
        }
    }
    rules
}

/// What `forebay check` asks about, and what tests allow to be asked.
#[test]
fn the_rights_that_are_needed_are_those_that_are_given() {
    let two = ["a".to_owned(), "b".to_owned()];
    for (objects, namespaces) in [
        (objects("forebay.yaml"), &[][..]),
        (
            objects("../gateway-user/tests/manifests/namespaces.yaml"),
            &two,
        ),
    ] {
        let mut needed = BTreeSet::new();
        for right in RIGHTS {
            for place in right.places(namespaces) {
                for resource in right.resources {
                    for verb in right.verbs {
                        let [group, resource, verb] =
                            [right.group, resource, verb].map(str::to_owned);
                        needed.insert((place.clone(), group, resource, verb));
                    }
                }
            }
        }
        assert_eq!(rules(&objects), needed);
    }
}

/// A command that somebody runs in a container looks at the same namespaces as the proxy, and finds it.
#[test]
fn both_containers_have_the_same_view() {
    let objects = objects("../gateway-user/tests/manifests/namespaces.yaml");
    let pod = &of_kind(&objects, "DaemonSet")[0]["spec"]["template"]["spec"];
    let value = |container: &Value, name: &str| {
        let variables = list(&container["env"]).iter();
        let mut found = variables.filter(|variable| variable["name"] == name);
        found.next().map(|variable| variable["value"].clone())
    };
    let [agent, proxy] = [&pod["initContainers"][0], &pod["containers"][0]];
    for (name, want) in [
        ("FOREBAY_NAMESPACES", "a,b"),
        ("FOREBAY_ADMIN", "127.0.0.1:15000"),
    ] {
        for container in [agent, proxy] {
            assert_eq!(value(container, name), Some(want.into()), "{name}");
        }
    }
    let Command::Run(args) = command(proxy) else {
        panic!("the proxy");
    };
    assert_eq!(args.namespaces, ["a", "b"]);
    assert!(matches!(command(agent), Command::Agent(_)));
}

#[test]
fn all_that_is_read_may_be_read() {
    let allowed = allowed(&objects("forebay.yaml"));
    for kind in Kind::ALL {
        let name = kind.as_str().to_lowercase();
        let plural = match name.strip_suffix("cy") {
            Some(stem) => format!("{stem}cies"),
            None if name.ends_with("ss") => format!("{name}es"),
            None => format!("{name}s"),
        };
        for verb in ["list", "watch"] {
            let rule = (kind.group().to_owned(), plural.clone(), verb.to_owned());
            assert!(allowed.contains(&rule), "{rule:?}");
        }
    }
}
