//! Each permission missing in turn.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use super::rights::{Rights, needed};
use super::scope::{All, server};
use crate::k8s::rights::{Place, Right};

const READ: [&str; 1] = ["a"];

/// What is said, line by line.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Said {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Said {
    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

/// What is said of a missing right, with its resources, verbs and place.
fn is_about(line: &str, (right, place): &(Right, Place)) -> bool {
    let role = match &place.namespace {
        Some(namespace) => format!("add to a Role in namespace {namespace} of"),
        None => "add to the ClusterRole of".to_owned(),
    };
    let list = |words: &[&str]| format!("[\"{}\"]", words.join("\", \""));
    let resources = format!("resources: {}", list(right.resources));
    let verbs = format!("verbs: {}}}", list(right.verbs));
    let names = match &place.name {
        Some(name) => format!("resourceNames: {}", list(&[name])),
        None => String::new(),
    };
    [&*role, &resources, &verbs, &names]
        .iter()
        .all(|part| line.contains(part))
}

/// One line says what is missing; what does not need it goes on, and all does once it is granted.
#[tokio::test(start_paused = true)]
async fn each_missing_permission_is_named_in_one_line() {
    let fake = server();
    let mut all = All::start(&fake, &READ);
    all.pass(5).await;
    all.publish(&READ, "the second one");
    all.pass(240).await;
    let complete = all.done(&fake);
    drop(all);
    for missing in needed(&READ) {
        let said = Said::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(said.clone())
            .with_ansi(false)
            .with_max_level(Level::WARN)
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        let fake = server();
        fake.state().rights = Some(Rights::of(&READ, Some(&missing)));
        let mut all = All::start(&fake, &READ);
        all.pass(5).await;
        all.publish(&READ, "the first");
        all.pass(30).await;
        let lines = said.lines();
        assert!(
            lines.len() == 1 && is_about(&lines[0], &missing),
            "{missing:?}: {lines:#?}"
        );
        // All else is read; what Forebay makes may be missing for want of a leader.
        let done = all.done(&fake);
        let others = complete.iter().filter(|what| {
            let kind = what.split(' ').next().unwrap_or_default().to_lowercase();
            let needs = missing
                .0
                .resources
                .iter()
                .any(|plural| plural.starts_with(&kind[..kind.len() - 1]));
            what.ends_with("was read") && !what.contains("forebay") && !needs
        });
        let lost: Vec<&String> = others.filter(|what| !done.contains(*what)).collect();
        assert!(lost.is_empty(), "{missing:?}: {lost:#?}");
        fake.state().rights = Some(Rights::of(&READ, None));
        // Events are not tried for five minutes; one about a Node needs its uid.
        let events = [&["events"][..], &["nodes"]].contains(&missing.0.resources);
        all.pass(if events { 300 } else { 40 }).await;
        all.publish(&READ, "the second one");
        all.pass(75).await;
        assert_eq!(all.done(&fake), complete, "{missing:?}");
        assert_eq!(said.lines().len(), 1, "{missing:?}");
        drop(guard);
    }
}
