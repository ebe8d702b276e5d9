//! What is written and read, by the byte. The root scenario `netfilter` has a kernel take the same batch.

use super::message::{elements_in, generation_in, right_rules, rule_in};
use super::*;
use crate::datapath::netlink::{Body, attributes, batch, word};

/// A batch that a kernel took (6.18); nft 1.0.6 lists a set for each family and eight rules.
const WHOLE: &[u8] = include_bytes!("fixtures/whole.bin");
/// The same kernel's answers about that table: the first rule, both sets' elements, the ruleset's generation.
const RULE: &[u8] = include_bytes!("fixtures/rule.bin");
const ELEMENTS: [&[u8]; 2] = [
    include_bytes!("fixtures/elements4.bin"),
    include_bytes!("fixtures/elements6.bin"),
];
const GENERATION: &[u8] = include_bytes!("fixtures/generation.bin");

fn addresses(all: &[&str]) -> BTreeSet<IpAddr> {
    all.iter().map(|text| text.parse().unwrap()).collect()
}

fn three() -> BTreeSet<IpAddr> {
    addresses(&["192.0.2.100", "192.0.2.101", "2001:db8::100"])
}

/// Kinds, numbers and bodies of the messages in a batch.
fn messages(mut bytes: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (message, rest) = bytes.split_at(word(bytes, 0) as usize);
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        all.push((kind & 0xff, word(message, 8), &message[16..]));
        bytes = rest;
    }
    all
}

#[test]
fn the_whole_table_is_the_batch_that_a_kernel_took() {
    assert_eq!(batch(SUBSYSTEM, 7, &whole(&three())), WHOLE);
    let messages = messages(WHOLE);
    let kinds: Vec<u16> = messages.iter().map(|(kind, ..)| *kind).collect();
    // Begin; table, no table, table; sets and what is in them; chains; rules; end.
    let wanted = [16, 0, 2, 0, 9, 9, 12, 12, 3, 3, 6, 6, 6, 6, 6, 6, 6, 6, 17];
    assert_eq!(kinds, wanted);
    let numbers: Vec<u32> = messages.iter().map(|(_, number, _)| *number).collect();
    assert_eq!(numbers, (7..26).collect::<Vec<_>>());
}

#[test]
fn a_change_names_what_comes_and_what_goes() {
    let wanted = addresses(&["192.0.2.101", "192.0.2.102", "2001:db8::100"]);
    let bytes = batch(SUBSYSTEM, 1, &difference(&three(), &wanted));
    let said: Vec<(u16, Vec<IpAddr>)> = messages(&bytes)
        .into_iter()
        .map(|(kind, _, body)| (kind, elements_in(body)))
        .collect();
    let one = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
    let wanted = [
        (16, vec![]),
        (12, one("192.0.2.102")),
        (14, one("192.0.2.100")),
        (17, vec![]),
    ];
    assert_eq!(said, wanted);
    assert!(difference(&three(), &three()).is_empty());
}

#[test]
fn as_many_addresses_as_there_may_be_fit_in_messages() {
    let all: BTreeSet<IpAddr> = (0..4_096_u128)
        .map(|n| IpAddr::from((u128::MAX - n).to_be_bytes()))
        .collect();
    let bytes = batch(SUBSYSTEM, 1, &whole(&all));
    let sets = messages(&bytes);
    let sets = sets.iter().filter(|(kind, ..)| *kind == 12);
    let parts: Vec<usize> = sets.map(|(.., body)| elements_in(body).len()).collect();
    assert_eq!(parts, [1_024; 4]);
    // The kernel's usual room for what is sent at once is 212,992 bytes.
    assert!(bytes.len() < 150_000, "{}", bytes.len());
}

#[test]
fn what_a_kernel_answers_is_read() {
    let rule = rule_in(RULE).unwrap();
    assert_eq!(right_rules().len(), 8);
    assert_eq!(rule, right_rules()[0]);
    let read: BTreeSet<IpAddr> = ELEMENTS.into_iter().flat_map(elements_in).collect();
    assert_eq!(read, three());
    assert_eq!(generation_in(GENERATION), Some(2));
    // Any beginning of them is read without a panic, and says nothing that is not so.
    for whole in [RULE, ELEMENTS[0], ELEMENTS[1], GENERATION] {
        for end in 0..whole.len() {
            let part = &whole[..end];
            assert!(elements_in(part).iter().all(|a| three().contains(a)));
            assert!([None, Some(2)].contains(&generation_in(part)));
            let read = rule_in(part);
            assert!(read.is_none_or(|rule| rule.1.is_empty() || rule == right_rules()[0]));
        }
    }
}

#[test]
fn rules_of_others_are_not_ours() {
    let named = |family: u8, table: &str| {
        let text = [table.as_bytes(), &[0]].concat();
        let body = Body::new(&[family, 0, 0, 0]).attribute(1, &text);
        let bytes = batch(SUBSYSTEM, 1, &[(0, 0, body)]);
        messages(&bytes)[1].2.to_vec()
    };
    assert!(rule_in(&named(1, TABLE)).is_some());
    assert!(rule_in(&named(2, TABLE)).is_none(), "of family ip");
    assert!(rule_in(&named(1, "forebay_check")).is_none());
    assert_eq!(attributes(&named(1, TABLE)[4..]).count(), 1);
}

#[test]
fn a_failure_says_what_it_means_and_what_to_do() {
    let said = |code| sentence(&io::Error::from_raw_os_error(code));
    for code in [
        libc::EOPNOTSUPP,
        libc::EPROTONOSUPPORT,
        libc::ENOENT,
        libc::EINVAL,
    ] {
        assert!(is_unable(&io::Error::from_raw_os_error(code)));
        assert!(said(code).contains("CONFIG_NF_TABLES"), "{}", said(code));
    }
    assert!(said(libc::EPERM).ends_with("give this process CAP_NET_ADMIN"));
    let busy = io::Error::from_raw_os_error(libc::EBUSY);
    assert!(is_passing(&busy) && !is_unable(&busy));
    assert!(said(libc::EBUSY).ends_with("it is tried again every second"));
}
