//! The messages of nf_tables that make our table and read it (`linux/netfilter/nf_tables.h`). Numbers in them are in
//! network order.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::datapath::netlink::{Body, Message, attributes};
use crate::datapath::routes::{address, octets};
use crate::l4::vips::MAX_VIPS;

/// `NFNL_SUBSYS_NFTABLES`.
pub const SUBSYSTEM: u8 = 10;

/// Name of the table, of the family `inet`.
pub const TABLE: &str = "forebay";

/// A comment on each rule. Rules with another one were made by another version, and are replaced.
const COMMENT: &str = "packets of VIPs are not tracked, so nobody's NAT rewrites them (1)";

/// Just before `raw`: whoever wants packets tracked in a zone of his, or with a template, does it there, and what comes
/// first counts.
const PRIORITY: i32 = -301;

/// Elements in one message: its lengths have 16 bits.
const ELEMENTS_AT_ONCE: usize = 1_024;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NESTED: u16 = 0x8000;

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const GETGEN: u16 = 16;

/// One of our sets, for one family.
#[derive(Clone, Copy, Debug)]
struct Set {
    name: &'static str,
    family: u8,
    /// `TYPE_IPADDR` or `TYPE_IP6ADDR` of nft: only its listings look at it.
    key_type: u32,
    key_length: u32,
    /// Where an IP header has its source and its destination.
    offsets: [u32; 2],
    id: u32,
}

const SETS: [Set; 2] = [
    Set {
        name: "vips4",
        family: NFPROTO_IPV4,
        key_type: 7,
        key_length: 4,
        offsets: [12, 16],
        id: 1,
    },
    Set {
        name: "vips6",
        family: NFPROTO_IPV6,
        key_type: 8,
        key_length: 16,
        offsets: [8, 24],
        id: 2,
    },
];

impl Set {
    fn holds(&self, address: IpAddr) -> bool {
        address.is_ipv4() == (self.family == NFPROTO_IPV4)
    }
}

/// Our chains by the hook that they are at: whatever comes in, and whatever this machine sends.
const CHAINS: [(&str, u32); 2] = [("prerouting", 0), ("output", 3)];

/// A rule as far as it is looked at: its chain, and the comment with which it was made.
pub(super) type Rule = (Vec<u8>, Vec<u8>);

const fn kind(message: u16) -> u16 {
    (SUBSYSTEM as u16) << 8 | message
}

/// `struct nfgenmsg`.
fn start() -> Body {
    Body::new(&[NFPROTO_INET, 0, 0, 0])
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn number(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

/// Asks for the number of the ruleset's generation.
pub(super) fn generation() -> (u16, Body) {
    (kind(GETGEN), Body::new(&[0; 4]))
}

/// The number in the answer to that.
pub(super) fn generation_in(message: &[u8]) -> Option<u32> {
    const NFTA_GEN_ID: u16 = 1;
    let (_, value) = attributes(message.get(4..)?).find(|(kind, _)| *kind == NFTA_GEN_ID)?;
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// Asks for our table; ENOENT if there is none.
pub(super) fn table() -> (u16, Body) {
    (kind(GETTABLE), named(1))
}

/// Asks for our rules. Kernels that do not know how to choose show all.
pub(super) fn rules() -> (u16, Body) {
    (kind(GETRULE), named(1))
}

/// Asks for the addresses in our sets, one after the other.
pub(super) fn elements() -> impl Iterator<Item = (u16, Body)> {
    SETS.iter()
        .map(|set| (kind(GETSETELEM), named(1).attribute(2, &text(set.name))))
}

/// The table's name as an attribute.
fn named(attribute: u16) -> Body {
    start().attribute(attribute, &text(TABLE))
}

/// The rule in one message of the answer to [`rules`], if it is ours.
pub(super) fn rule_in(message: &[u8]) -> Option<Rule> {
    const NFTA_RULE_TABLE: u16 = 1;
    const NFTA_RULE_CHAIN: u16 = 2;
    const NFTA_RULE_USERDATA: u16 = 7;
    let find = |wanted| {
        let mut all = attributes(message.get(4..).unwrap_or_default());
        all.find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let ours =
        message.first() == Some(&NFPROTO_INET) && find(NFTA_RULE_TABLE) == Some(&text(TABLE)[..]);
    ours.then(|| {
        let value = |wanted| find(wanted).unwrap_or_default().to_vec();
        (value(NFTA_RULE_CHAIN), value(NFTA_RULE_USERDATA))
    })
}

/// The addresses in one message of the answer to [`elements`].
pub(super) fn elements_in(message: &[u8]) -> Vec<IpAddr> {
    const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
    let inside = |bytes, wanted| {
        let found = attributes(bytes).find(move |(kind, _)| *kind == wanted);
        found.map_or(&[][..], |(_, value)| value)
    };
    let list = inside(
        message.get(4..).unwrap_or_default(),
        NFTA_SET_ELEM_LIST_ELEMENTS,
    );
    // An element has its key, the key its value.
    attributes(list)
        .filter_map(|(_, element)| address(inside(inside(element, 1), 1)))
        .collect()
}

/// The rules that our table has, in the order in which the kernel lists them.
pub(super) fn right_rules() -> Vec<Rule> {
    let chains = CHAINS.iter().map(|(chain, _)| text(chain));
    chains
        .flat_map(|chain| vec![(chain, comment()); 2 * SETS.len()])
        .collect()
}

/// The whole table anew, whatever was there: the kernel goes over from one to the other at once.
#[must_use]
pub fn whole(addresses: &BTreeSet<IpAddr>) -> Vec<Message> {
    const NFTA_TABLE_FLAGS: u16 = 2;
    let create = libc::NLM_F_CREATE;
    let table = || named(1).attribute(NFTA_TABLE_FLAGS, &number(0));
    // Deleting what may not be there is an error, making what is there is none.
    let mut all = vec![(kind(NEWTABLE), create, table())];
    all.extend(nothing());
    all.push((kind(NEWTABLE), create, table()));
    all.extend(SETS.iter().map(|set| (kind(NEWSET), create, new_set(set))));
    all.extend(change(NEWSETELEM, addresses));
    let chains = CHAINS.iter();
    all.extend(chains.map(|(name, hook)| (kind(NEWCHAIN), create, new_chain(name, *hook))));
    for (chain, _) in CHAINS {
        for set in &SETS {
            for offset in set.offsets {
                let flags = create | libc::NLM_F_APPEND;
                all.push((kind(NEWRULE), flags, new_rule(chain, set, offset)));
            }
        }
    }
    all
}

/// The table goes.
#[must_use]
pub fn nothing() -> Vec<Message> {
    vec![(kind(DELTABLE), 0, named(1))]
}

/// The addresses of a table that is right otherwise.
#[must_use]
pub fn difference(have: &BTreeSet<IpAddr>, wanted: &BTreeSet<IpAddr>) -> Vec<Message> {
    let more = wanted.difference(have).copied().collect();
    let fewer = have.difference(wanted).copied().collect();
    let mut all = change(NEWSETELEM, &more);
    all.extend(change(DELSETELEM, &fewer));
    all
}

fn change(message: u16, addresses: &BTreeSet<IpAddr>) -> Vec<Message> {
    let flags = match message {
        NEWSETELEM => libc::NLM_F_CREATE,
        _ => 0,
    };
    let mut all = Vec::new();
    for set in &SETS {
        let of_set = addresses.iter().filter(|address| set.holds(**address));
        let of_set: Vec<IpAddr> = of_set.copied().collect();
        for some in of_set.chunks(ELEMENTS_AT_ONCE) {
            let list = some.iter().fold(Body::default(), |list, address| {
                let key = Body::default().attribute(1, &octets(*address));
                list.nested(NESTED | 1, &Body::default().nested(NESTED | 1, &key))
            });
            let body = named(1)
                .attribute(2, &text(set.name))
                .nested(NESTED | 3, &list);
            all.push((kind(message), flags, body));
        }
    }
    all
}

fn new_set(set: &Set) -> Body {
    // Old and new addresses may be in it together.
    let size = Body::default().attribute(1, &number(2 * MAX_VIPS as u32));
    named(1)
        .attribute(2, &text(set.name))
        .attribute(3, &number(0))
        .attribute(4, &number(set.key_type))
        .attribute(5, &number(set.key_length))
        .nested(NESTED | 9, &size)
        .attribute(10, &number(set.id))
}

fn new_chain(name: &str, hook: u32) -> Body {
    const ACCEPT: u32 = 1;
    let at = Body::default()
        .attribute(1, &number(hook))
        .attribute(2, &PRIORITY.to_be_bytes());
    named(1)
        .attribute(3, &text(name))
        .nested(NESTED | 4, &at)
        .attribute(5, &number(ACCEPT))
        .attribute(7, &text("filter"))
}

/// `meta nfproto F @nh,OFFSET,LENGTH @set notrack`.
fn new_rule(chain: &str, set: &Set, offset: u32) -> Body {
    const REGISTER: u32 = 1;
    const META_NFPROTO: u32 = 15;
    const EQUAL: u32 = 0;
    const NETWORK_HEADER: u32 = 1;
    let family = Body::default()
        .attribute(1, &number(REGISTER))
        .attribute(2, &number(META_NFPROTO));
    let is_it = Body::default()
        .attribute(1, &number(REGISTER))
        .attribute(2, &number(EQUAL))
        .nested(NESTED | 3, &Body::default().attribute(1, &[set.family]));
    let address = Body::default()
        .attribute(1, &number(REGISTER))
        .attribute(2, &number(NETWORK_HEADER))
        .attribute(3, &number(offset))
        .attribute(4, &number(set.key_length));
    let in_set = Body::default()
        .attribute(1, &text(set.name))
        .attribute(2, &number(REGISTER))
        .attribute(4, &number(set.id));
    let expressions = [
        ("meta", Some(family)),
        ("cmp", Some(is_it)),
        ("payload", Some(address)),
        ("lookup", Some(in_set)),
        ("notrack", None),
    ];
    let list = expressions
        .into_iter()
        .fold(Body::default(), |list, (name, data)| {
            let one = Body::default().attribute(1, &text(name));
            let one = match data {
                Some(data) => one.nested(NESTED | 2, &data),
                None => one,
            };
            list.nested(NESTED | 1, &one)
        });
    named(1)
        .attribute(2, &text(chain))
        .nested(NESTED | 4, &list)
        .attribute(7, &comment())
}

/// As nft writes and shows comments: kind 0, length, text.
fn comment() -> Vec<u8> {
    let text = text(COMMENT);
    [&[0, text.len() as u8], &text[..]].concat()
}
