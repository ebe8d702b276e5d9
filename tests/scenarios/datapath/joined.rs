//! Beside programs of others in libxdp's dispatcher: its own tool puts them there and takes them away.

mod pod;

use gateway_tests::machine::{bind, card, device_of, unbind};
use gateway_user::datapath::AttachState;

use super::attach::refresh;
use super::harm::*;
use super::machine::{attachment, give, served, wired};
use super::*;

const VIP: &str = "10.77.9.1:80";

/// `xdp-loader`, and where its programs for the kernel lie.
#[derive(Clone, Copy)]
struct Tool(&'static str, &'static str);

/// The one of the host's.
const USUAL: Tool = Tool("xdp-loader", "/usr/lib/*/bpf");
/// One whose dispatchers take programs that change packets on any kernel.
const NEWER: Tool = Tool("xdp-loader-newer", "/newer/lib/*/bpf");

/// One that can take ours over: the newer one, where there is one.
fn able() -> Tool {
    let newer = Path::new("/bin").join(NEWER.0);
    if newer.exists() {
        return NEWER;
    }
    assert!(
        USUAL.is_able(),
        "this kernel wants libxdp 1.5.5, which `cargo xtask vm setup` fetches"
    );
    USUAL
}

impl Tool {
    /// Whether the kernel lets it put programs that change packets into its dispatchers: that was mended in xdp-tools 1.5.5 for
    /// kernels that look.
    fn is_able(self) -> bool {
        let said = run(&format!("{} status --version 2>&1; true", self.0));
        let version = said.split_whitespace().find_map(|word| {
            let mut numbers = word.split('.').map(|number| number.parse().ok());
            Some([numbers.next()??, numbers.next()??, numbers.next()??])
        });
        !at_least(6, 12) || version.unwrap_or([0, 0, 0]) >= [1, 5, 5]
    }

    /// Puts a program of xdp-tools on the uplink, and takes all off again when that is dropped: a card keeps XDP from one namespace to
    /// the next.
    fn load<'a>(self, at: impl Into<At<'a>>, mode: &str, object: &str) -> Clean {
        let Self(tool, objects) = self;
        let At(namespace, uplink) = at.into();
        exec(
            namespace,
            &format!("sh -c '{tool} load -m {mode} {uplink} {objects}/{object}.o'"),
        );
        Clean(namespace.to_owned(), uplink.to_owned(), tool)
    }

    fn unload<'a>(self, at: impl Into<At<'a>>, name: &str) {
        let at = at.into();
        let listed = listed(at);
        let (_, _, number) = listed.iter().find(|(_, is, _)| is == name).unwrap();
        let At(namespace, uplink) = at;
        exec(
            namespace,
            &format!("{} unload {uplink} -i {number}", self.0),
        );
    }
}

/// A namespace and the uplink in it.
#[derive(Clone, Copy)]
struct At<'a>(&'a str, &'a str);

impl<'a> From<&'a Namespace> for At<'a> {
    fn from(namespace: &'a Namespace) -> Self {
        Self(&namespace.0, "up0")
    }
}

fn exec(namespace: &str, command: &str) -> String {
    run(&format!("nsenter --net=/run/netns/{namespace} {command}"))
}

/// To be dropped before the namespace.
struct Clean(String, String, &'static str);

impl Drop for Clean {
    fn drop(&mut self) {
        let Self(namespace, uplink, tool) = self;
        let unload = format!("nsenter --net=/run/netns/{namespace} {tool} unload -a {uplink}");
        let _gone = Command::new("sh").args(["-c", &unload]).output();
    }
}

/// The dispatcher's programs as the tool lists them, first the one that is asked first: priority, name, number.
fn listed<'a>(at: impl Into<At<'a>>) -> Vec<(u32, String, u32)> {
    let At(namespace, uplink) = at.into();
    let status = exec(namespace, &format!("{} status {uplink}", able().0));
    let component = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "=>");
        let priority = words.nth(1)?.parse().ok()?;
        let name = words.next()?.to_owned();
        Some((priority, name, words.next()?.parse().ok()?))
    };
    status.lines().filter_map(component).collect()
}

fn names<'a>(at: impl Into<At<'a>>) -> Vec<String> {
    listed(at).into_iter().map(|(_, name, _)| name).collect()
}

/// Asserts that ours is in the dispatcher and serves.
fn serves_joined(node: &mut Node, client: &Namespace) {
    let found = attachment(node);
    assert_eq!(found.mode, AttachMode::Joined, "{:?}", found.note);
    let before = node.counter("own_syn");
    assert_eq!(client.hello(VIP), "hello from one");
    assert_eq!(node.counter("own_syn"), before + 1);
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn a_dispatcher_is_joined_and_left_as_it_was() {
    let (client, namespace) = wired("joined", 1500);
    let clean = able().load(&namespace, "native", "xdpfilt_alw_all");
    let mut node = Node::start_as(namespace, "one", AttachMode::Auto, ForwardMode::Auto);
    let _clean = clean;
    let found = attachment(&mut node);
    assert_eq!(found.mode, AttachMode::Joined, "{:?}", found.note);
    let note = "one of the programs of the libxdp dispatcher on up0: xdpfilt_alw_all, forebay_xdp";
    assert_eq!(found.note.as_deref(), Some(note));
    assert!(!found.adopted);
    assert_eq!(served(&mut node, &client), AttachMode::Joined);
    println!(
        "fact: the newer libxdp's dispatcher = {}",
        found.mode.name()
    );
    let before = listed(&node.namespace);
    let told: Vec<_> = before
        .iter()
        .map(|(priority, name, _)| (*priority, &**name))
        .collect();
    assert_eq!(told, [(10, "xdpfilt_alw_all"), (50, "forebay_xdp")]);

    // A newer program takes the older one's place, and nobody else's.
    node.open();
    node.snapshot(&snapshot(&[VIP], &[]));
    serves_joined(&mut node, &client);
    assert!(attachment(&mut node).adopted);
    let after = listed(&node.namespace);
    assert_eq!(names(&node.namespace), ["xdpfilt_alw_all", "forebay_xdp"]);
    assert_eq!(after[0], before[0]);
    assert_ne!(after[1].2, before[1].2);
    assert_eq!(pins(Path::new("/sys/fs/bpf/xdp")).len(), 1);

    // The others' tool takes the others' program away: ours goes on, and nobody had to do anything.
    able().unload(&node.namespace, "xdpfilt_alw_all");
    serves_joined(&mut node, &client);
    refresh(&mut node);
    serves_joined(&mut node, &client);
    assert_eq!(listed(&node.namespace), after[1..]);

    // Ours leaves, the last one: as if there had been nothing.
    node.driver = None;
    let bpffs = node.bpffs.clone();
    node.namespace.enter(|| detach(&bpffs).unwrap());
    assert!(!node.namespace.ip("-d link show up0").contains("prog/xdp"));
    assert_eq!(pins(Path::new("/sys/fs/bpf/xdp")), BTreeSet::new());
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn others_come_to_its_dispatcher_and_go() {
    let (client, namespace) = wired("beside", 1500);
    let clean = able().load(&namespace, "native", "xdpfilt_alw_all");
    let mut node = Node::start_as(namespace, "one", AttachMode::Native, ForwardMode::Auto);
    let _clean = clean;
    assert_eq!(served(&mut node, &client), AttachMode::Joined);

    // One that drops everything comes, and is asked first.
    let _also = able().load(&node.namespace, "native", "xdpfilt_dny_all");
    let all = ["xdpfilt_alw_all", "xdpfilt_dny_all", "forebay_xdp"];
    assert_eq!(names(&node.namespace), all);
    let error = client.connect(VIP).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    able().unload(&node.namespace, "xdpfilt_dny_all");
    assert_eq!(names(&node.namespace), ["xdpfilt_alw_all", "forebay_xdp"]);
    refresh(&mut node);
    serves_joined(&mut node, &client);

    // Ours leaves: the others stay as they are.
    let before = listed(&node.namespace);
    node.driver = None;
    let bpffs = node.bpffs.clone();
    node.namespace.enter(|| detach(&bpffs).unwrap());
    assert_eq!(listed(&node.namespace), before[..1]);
    node.open();
    node.snapshot(&snapshot(&[VIP], &[]));
    serves_joined(&mut node, &client);
    assert_eq!(names(&node.namespace), ["xdpfilt_alw_all", "forebay_xdp"]);

    // Somebody takes all away: ours comes back, alone.
    node.namespace.exec(&format!("{} unload -a up0", able().0));
    refresh(&mut node);
    assert_eq!(attachment(&mut node).mode, AttachMode::Native);
    assert_eq!(client.hello(VIP), "hello from one");
    assert!(!pins(&node.bpffs.join(format!("v{ABI_VERSION}"))).contains("joined-up0"));
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn a_dispatcher_behind_the_driver_is_left_alone() {
    let (client, namespace) = wired("behind", 1500);
    let clean = able().load(&namespace, "skb", "xdpfilt_alw_all");
    let before = listed(&namespace);
    let mut node = Node::start_as(namespace, "one", AttachMode::Auto, ForwardMode::Auto);
    let _clean = clean;
    assert_eq!(served(&mut node, &client), in_traffic_control());
    let note = attachment(&mut node).note.unwrap();
    assert!(
        note.starts_with("a libxdp dispatcher has the XDP of up0 ("),
        "{note}"
    );
    assert!(note.contains("), which is not in the driver"), "{note}");
    assert_eq!(listed(&node.namespace), before);
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn a_dispatcher_whose_maker_could_not_take_it_over_is_left_alone() {
    let (client, namespace) = wired("maker", 1500);
    let clean = USUAL.load(&namespace, "native", "xdpfilt_alw_all");
    let mut node = Node::start_as(namespace, "one", AttachMode::Auto, ForwardMode::Auto);
    let _clean = clean;
    let mode = served(&mut node, &client);
    println!("fact: the usual libxdp's dispatcher = {}", mode.name());
    if USUAL.is_able() {
        assert_eq!(mode, AttachMode::Joined);
    } else {
        assert_eq!(mode, in_traffic_control());
        let note = attachment(&mut node).note.unwrap();
        let begin = "a libxdp dispatcher has the XDP of up0 (program xdp_dispatcher, id ";
        assert!(note.starts_with(begin), "{note}");
        assert!(
            note.contains("changes packet data, while original does not"),
            "{note}"
        );
    }
    // Its maker goes on as if nothing had come.
    let _also = USUAL.load(&node.namespace, "native", "xdpfilt_alw_tcp");
    USUAL.unload(&node.namespace, "xdpfilt_alw_tcp");
    assert_eq!(client.hello(VIP), "hello from one");
}

#[test]
#[ignore = "needs the machine's cards: cargo xtask vm test"]
fn a_driver_that_is_reloaded_takes_the_dispatcher_along_and_not_the_service() {
    let device = device_of(&card(1).unwrap()).unwrap();
    let (client, namespace) = wired("reloaded", 1500);
    let clean = able().load(&namespace, "native", "xdpfilt_alw_all");
    let mut node = Node::start_as(namespace, "one", AttachMode::Auto, ForwardMode::Auto);
    let _clean = clean;
    assert_eq!(served(&mut node, &client), AttachMode::Joined);
    let pinned = node.bpffs.join(format!("v{ABI_VERSION}"));
    assert!(pins(&pinned).contains("joined-up0"));
    let live = Live::new(node);
    live.run(|| {
        let mut talk = Talk::open(&client, VIP);
        unbind(&device).unwrap();
        talk.say();
        let gone = live.until("waiting", |uplink| uplink.state == AttachState::Waiting);
        assert_eq!(gone.note.as_deref(), Some("waiting for interface up0"));
        bind(&device).unwrap();
        give(1, &live.node().namespace, "up0", "10.77.0.1/24", 1500);
        // Whoever had a dispatcher there may make one again, and finds ours alone on the card.
        let again = live.until("attached", |uplink| uplink.state == AttachState::Attached);
        assert_eq!((again.mode, again.note), (AttachMode::Native, None));
        served_again(&client, VIP);
        talk.hear();
    });
    let mut node = live.node();
    let before = node.counter("own_syn");
    assert_eq!(client.hello(VIP), "hello from one");
    assert_eq!(node.counter("own_syn"), before + 1);
    let left = pins(&pinned);
    assert!(!left.contains("joined-up0"), "{left:?}");
}
