//! A kernel that is locked down from its start: run by `cargo xtask vm test --lockdown LEVEL`.

use super::machine::{served, wired};
use super::*;

const VIP: &str = "10.77.9.1:80";

/// The level in force: the word in brackets.
fn level() -> Option<String> {
    let text = std::fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let (_, rest) = text.split_once('[')?;
    let (level, _) = rest.split_once(']')?;
    (level != "none").then(|| level.to_owned())
}

#[test]
#[ignore = "needs a kernel that is locked down: cargo xtask vm test --lockdown integrity"]
fn programs_are_loaded_and_serve_or_the_refusal_is_one_sentence() {
    let Some(level) = level() else {
        println!("skipped: this kernel is not locked down");
        return;
    };
    let (client, namespace) = wired("lockdown", 1500);
    let bpffs = PathBuf::from(format!("/sys/fs/bpf/{}", namespace.0));
    let settings = AgentSettings {
        interfaces: vec!["up0".to_owned()],
        mode: AttachMode::Auto,
        bpffs,
        forward: ForwardMode::Auto,
        probe_port: 17_411,
    };
    let opened = namespace.enter(|| Agent::open(&settings).map(drop));
    if let Err(error) = opened {
        let sentence = error.to_string();
        println!("fact: lockdown {level} = {sentence}");
        assert_ne!(level, "integrity", "{sentence}");
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
        assert!(sentence.len() < 400, "{sentence}");
        return;
    }
    let mut node = Node::start_as(namespace, "one", AttachMode::Auto, ForwardMode::Auto);
    let mode = served(&mut node, &client);
    println!("fact: lockdown {level} = {}", mode.name());
    assert_eq!(mode, AttachMode::Native);
    assert_eq!(client.hello(VIP), "hello from one");
}
