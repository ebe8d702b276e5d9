//! Probes: the small authenticated UDP messages by which nodes see each other alive.
//!
//! A request is answered by the addressee's XDP program, so an answer says "the machine forwards" and, beside it, what
//! the machine's proxy said last. Sixty-four bytes, integers in network order:
//!
//! ```text
//!  0      version 1
//!  1      kind: 1 request, 2 answer, 3 question by way of a MAC rewrite, 4 its answer
//!  2      flags of the answering node, see [`flag`]
//!  3      what the answering node holds the asking node for (low four bits) and the subject for (high four bits),
//!         see [`view`]
//!  4- 7   membership fingerprint under which the sockets were counted
//!  8-15   sequence, chosen by the asking node, the same in the answer
//! 16-23   sender: `rendezvous::name_hash` of its name
//! 24-31   addressee, likewise
//! 32-47   subject: address of a third node about which the asking node wants to know; zero if it asks nothing
//! 48-51   foreign sockets: VIP sockets of rows that the answering node does not own
//! 52-55   rounds of probing that the answering node has finished, modulo 2^32: stands still if nobody probes there
//! 56-63   SipHash-1-3 of the 56 bytes before it, under the probe key
//! ```
//!
//! Sender and addressee are named, so no answer can be taken for another node's; the sequence is never used twice, so
//! none can be taken for a later one. A request and its answer have equal size: nobody's traffic is amplified.
//!
//! A question of kind 3 goes the way of a packet whose MACs were rewritten: for a VIP, from an address that is no node's.
//! Its subject is the address of the asking node, to which the answer goes; nothing else is said in either.

use bytemuck::{Pod, Zeroable};

use crate::hash::{Key, SipHasher};
use crate::packet::Header;

/// Version of the message.
pub const VERSION: u8 = 1;

/// Kind of a message: a question to the addressee.
pub const REQUEST: u8 = 1;
/// Kind of a message: its answer.
pub const ANSWER: u8 = 2;
/// Kind of a message: a question whether a packet for a VIP reaches the addressee by a MAC rewrite.
pub const PATH: u8 = 3;
/// Kind of a message: its answer.
pub const PATH_ANSWER: u8 = 4;

/// Bytes of a message.
pub const SIZE: usize = size_of::<Message>();

/// Words that the code covers.
const SIGNED_WORDS: u32 = SIZE as u32 / 8 - 1;

/// Bits of byte 2.
pub mod flag {
    /// The node's proxy beats.
    pub const PROXY_ALIVE: u8 = 1 << 0;
    /// The node drains by its own decision.
    pub const DRAINING: u8 = 1 << 1;
    /// The node holds itself for ready.
    pub const READY: u8 = 1 << 2;
    /// The fingerprint and the sockets were told by the node's proxy since its tables were made.
    pub const COUNTED: u8 = 1 << 3;
}

/// What a node holds another one for, in four bits: the bits of its alive word and one for "listed".
pub mod view {
    /// It has not answered for a short while: new connections go elsewhere.
    pub const SUSPECT: u8 = 1 << 0;
    /// It has not answered for so long that it may be dead.
    pub const SILENT: u8 = 1 << 1;
    /// Others took new connections in its place, and may hold them still.
    pub const EPISODE: u8 = 1 << 2;
    /// It is listed.
    pub const LISTED: u8 = 1 << 3;
}

/// A message, read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// [`REQUEST`], [`ANSWER`], [`PATH`] or [`PATH_ANSWER`].
    pub kind: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// What the asking node is held for: bits of [`view`].
    pub asker: u8,
    /// What the subject is held for: bits of [`view`]; 0 if it is unknown or nothing was asked.
    pub verdict: u8,
    /// Membership fingerprint.
    pub fingerprint: u32,
    /// Chosen by the asking node.
    pub sequence: u64,
    /// Hash of the sender's name.
    pub sender: u64,
    /// Hash of the addressee's name.
    pub addressee: u64,
    /// Address of the subject (IPv4-mapped for IPv4), zero for none.
    pub subject: [u8; 16],
    /// Foreign sockets.
    pub foreign: u32,
    /// Rounds of probing, modulo 2^32.
    pub rounds: u32,
}

macro_rules! part {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[repr(C, align(2))]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }

        impl Header for $name {}
    };
}

part! {
    /// The first word of a message.
    First {
        /// [`VERSION`].
        version: u8,
        /// [`REQUEST`] or [`ANSWER`].
        kind: u8,
        /// Bits of [`flag`].
        flags: u8,
        /// Two sets of bits of [`view`].
        views: u8,
        /// Membership fingerprint.
        fingerprint: [u8; 4],
    }
}

part! {
    /// Hashes of the names of both ends.
    Ends {
        /// Who sends.
        sender: [u8; 8],
        /// For whom it is.
        addressee: [u8; 8],
    }
}

part! {
    /// The address of a third node.
    Subject {
        /// IPv4-mapped for IPv4.
        address: [u8; 16],
    }
}

part! {
    /// What a node counts.
    Counts {
        /// Foreign sockets.
        foreign: [u8; 4],
        /// Rounds of probing.
        rounds: [u8; 4],
    }
}

part! {
    /// A word of a message.
    Word {
        /// Its bytes.
        bytes: [u8; 8],
    }
}

part! {
    /// A message as it is on the wire.
    Message {
        /// Bytes 0 to 7.
        first: First,
        /// Chosen by the asking node.
        sequence: Word,
        /// Who and for whom.
        ends: Ends,
        /// About whom.
        subject: Subject,
        /// What is counted.
        counts: Counts,
        /// The code.
        code: Word,
    }
}

const _: () = assert!(SIZE == 64 && align_of::<Message>() == 2);

/// Offsets of the parts of a message.
pub mod offset {
    use super::Message;
    use core::mem::offset_of;

    /// Of [`super::First`].
    pub const FIRST: u32 = offset_of!(Message, first) as u32;
    /// Of the sequence.
    pub const SEQUENCE: u32 = offset_of!(Message, sequence) as u32;
    /// Of [`super::Ends`].
    pub const ENDS: u32 = offset_of!(Message, ends) as u32;
    /// Of [`super::Subject`].
    pub const SUBJECT: u32 = offset_of!(Message, subject) as u32;
    /// Of [`super::Counts`].
    pub const COUNTS: u32 = offset_of!(Message, counts) as u32;
    /// Of the code.
    pub const CODE: u32 = offset_of!(Message, code) as u32;
}

/// The code under `key` of a message whose words `word` reads; `None` if one of them cannot be read.
#[inline(always)]
pub fn code(key: Key, word: impl Fn(u32) -> Option<Word>) -> Option<Word> {
    let mut hasher = SipHasher::new(key);
    let mut i = 0;
    while i < SIGNED_WORDS {
        hasher = hasher.with_word(u64::from_le_bytes(word(i)?.bytes));
        i += 1;
    }
    Some(Word {
        bytes: hasher.finish().to_be_bytes(),
    })
}

impl Message {
    fn code_under(&self, key: Key) -> Option<Word> {
        let words: [Word; SIZE / 8] = bytemuck::cast(*self);
        code(key, |i| words.get(i as usize).copied())
    }
}

impl Probe {
    /// The wire form, signed.
    #[must_use]
    pub fn sign(&self, key: Key) -> Message {
        let mut message = Message {
            first: First {
                version: VERSION,
                kind: self.kind,
                flags: self.flags,
                views: views(self.asker, self.verdict),
                fingerprint: self.fingerprint.to_be_bytes(),
            },
            sequence: Word {
                bytes: self.sequence.to_be_bytes(),
            },
            ends: Ends {
                sender: self.sender.to_be_bytes(),
                addressee: self.addressee.to_be_bytes(),
            },
            subject: Subject {
                address: self.subject,
            },
            counts: Counts {
                foreign: self.foreign.to_be_bytes(),
                rounds: self.rounds.to_be_bytes(),
            },
            code: Word::default(),
        };
        message.code = message.code_under(key).unwrap_or_default();
        message
    }

    /// Reads a message that a holder of `key`, or of `previous` unless that is zero, made; `None` for anything else.
    #[must_use]
    pub fn open(bytes: &[u8], key: Key, previous: Key) -> Option<Self> {
        let message: Message = bytemuck::try_pod_read_unaligned(bytes).ok()?;
        let known =
            message.first.version == VERSION && matches!(message.first.kind, REQUEST..=PATH_ANSWER);
        let signed = |key| message.code_under(key) == Some(message.code);
        let authentic = signed(key) || (previous != [0, 0] && signed(previous));
        (known && authentic).then_some(Self {
            kind: message.first.kind,
            flags: message.first.flags,
            asker: message.first.views & 0xf,
            verdict: message.first.views >> 4,
            fingerprint: u32::from_be_bytes(message.first.fingerprint),
            sequence: u64::from_be_bytes(message.sequence.bytes),
            sender: u64::from_be_bytes(message.ends.sender),
            addressee: u64::from_be_bytes(message.ends.addressee),
            subject: message.subject.address,
            foreign: u32::from_be_bytes(message.counts.foreign),
            rounds: u32::from_be_bytes(message.counts.rounds),
        })
    }
}

/// Byte 3: what the asking node and the subject are held for.
#[inline(always)]
#[must_use]
pub const fn views(asker: u8, subject: u8) -> u8 {
    asker & 0xf | subject << 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::sip13;
    use proptest::prelude::*;

    const KEY: Key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
    const OTHER: Key = [1, 2];

    fn sample() -> Probe {
        Probe {
            kind: ANSWER,
            flags: flag::PROXY_ALIVE | flag::READY,
            asker: view::LISTED,
            verdict: view::LISTED | view::SILENT,
            fingerprint: 0x0102_0304,
            sequence: 0x1112_1314_1516_1718,
            sender: 0x2122_2324_2526_2728,
            addressee: 0x3132_3334_3536_3738,
            subject: core::array::from_fn(|i| 0x40 + i as u8),
            foreign: 0x5152_5354,
            rounds: 0x6162_6364,
        }
    }

    #[test]
    fn golden_vector() {
        let bytes: [u8; SIZE] = bytemuck::cast(sample().sign(KEY));
        let golden: [u8; SIZE - 8] = [
            1, 2, 5, 0xa8, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22,
            0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38,
            0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d,
            0x4e, 0x4f, 0x51, 0x52, 0x53, 0x54, 0x61, 0x62, 0x63, 0x64,
        ];
        assert_eq!(bytes[..56], golden);
        let code = u64::from_be_bytes(bytes[56..].try_into().unwrap());
        assert_eq!(code, sip13(KEY, &golden), "the code is plain SipHash-1-3");
        assert_eq!(code, 17_996_973_611_392_643_572);
    }

    #[test]
    fn both_keys_open_it_and_no_other() {
        let message = sample().sign(KEY);
        let bytes: [u8; SIZE] = bytemuck::cast(message);
        assert_eq!(Probe::open(&bytes, KEY, [0, 0]), Some(sample()));
        assert_eq!(Probe::open(&bytes, OTHER, KEY), Some(sample()));
        assert_eq!(Probe::open(&bytes, OTHER, [0, 0]), None);
        assert_eq!(Probe::open(&bytes[..63], KEY, [0, 0]), None);
        // No previous key is not a key that anybody could sign with.
        let unkeyed: [u8; SIZE] = bytemuck::cast(sample().sign([0, 0]));
        assert_eq!(Probe::open(&unkeyed, KEY, [0, 0]), None);
    }

    proptest! {
        #[test]
        fn no_byte_can_be_changed(at in 0..SIZE, to: u8) {
            let mut bytes: [u8; SIZE] = bytemuck::cast(sample().sign(KEY));
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            prop_assert_eq!(Probe::open(&bytes, KEY, OTHER), None);
        }
    }
}
