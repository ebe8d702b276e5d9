//! VIP packets that cannot be steered.

use super::case::*;

/// VIP packets that cannot be steered.
pub(super) fn unfit() -> Vec<Case> {
    let edited = |at: usize, byte| {
        let mut bytes = ack().build();
        bytes[at] = byte;
        bytes
    };
    vec![
        Case::drop(
            "first fragment",
            TcpPacket {
                fragment: 0x2000,
                ..ack()
            }
            .build(),
            Counter::Fragment,
        ),
        Case::drop(
            "later fragment",
            TcpPacket {
                fragment: 0x0003,
                ..ack()
            }
            .build(),
            Counter::Fragment,
        ),
        Case::pass(
            "options",
            TcpPacket {
                options: vec![1; 4],
                ..ack()
            }
            .build(),
            Counter::OwnPass,
        )
        .row(&ack(), MINE),
        Case::drop(
            "no TCP header",
            ack().build()[..40].to_vec(),
            Counter::Truncated,
        ),
        Case::drop(
            "IPv4 header of 16 bytes",
            edited(14, 0x44),
            Counter::Truncated,
        ),
        Case::drop("longer than the frame", edited(17, 41), Counter::Truncated),
        Case::drop(
            "shorter than its headers",
            edited(17, 39),
            Counter::Truncated,
        ),
        Case::drop(
            "TCP header of 16 bytes",
            edited(46, 0x40),
            Counter::Truncated,
        ),
        Case::drop(
            "TCP header past the end",
            edited(46, 0x60),
            Counter::Truncated,
        ),
    ]
}
