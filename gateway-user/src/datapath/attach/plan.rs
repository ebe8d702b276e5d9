//! Which ways there are to an interface's packets, and which of them come first. Pure.

use super::AttachMode;
use crate::datapath::offer::SINGLE_BUFFER;

/// What is known about an interface before anything is tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The XDP program of somebody else on it, in words.
    pub(super) foreign: Option<String>,
    /// Whether that is a dispatcher of libxdp.
    pub(super) dispatcher: bool,
    /// Whether it is in the driver.
    pub(super) in_driver: bool,
    /// It is a veth whose packets may lack their checksums.
    pub(super) partial_checksums: bool,
}

impl Facts {
    const fn can_be_joined(&self) -> bool {
        self.dispatcher && self.in_driver && !self.partial_checksums
    }
}

/// The modes to try, in this order.
pub(super) fn candidates(wanted: AttachMode, facts: &Facts) -> &'static [AttachMode] {
    use AttachMode::{Auto, Clsact, Generic, Joined, Native, Tcx};
    match wanted {
        Auto if facts.can_be_joined() => &[Joined, Tcx, Clsact],
        Native if facts.can_be_joined() => &[Joined],
        Auto if facts.foreign.is_some() => &[Tcx, Clsact],
        Auto if facts.partial_checksums => &[Tcx, Clsact, Generic],
        Auto => &[Native, Tcx, Clsact, Generic],
        Native => &[Native],
        Tcx => &[Tcx],
        Clsact => &[Clsact],
        Generic => &[Generic],
        Joined => &[Joined],
    }
}

/// Why native XDP is not even tried.
pub(super) fn why_not_native(interface: &str, facts: &Facts) -> Option<String> {
    let Some(owner) = &facts.foreign else {
        return facts.partial_checksums.then(|| {
            format!("{interface} is a veth with tx checksum offload; for native XDP run `ethtool -K {interface} tx off` at both ends")
        });
    };
    if !facts.dispatcher {
        return Some(format!("another XDP program has {interface} ({owner})"));
    }
    let why = if !facts.in_driver {
        "which is not in the driver".to_owned()
    } else if facts.partial_checksums {
        format!(
            "and {interface} is a veth with tx checksum offload; to join it run `ethtool -K {interface} tx off` at both ends"
        )
    } else {
        return None;
    };
    Some(format!(
        "a libxdp dispatcher has the XDP of {interface} ({owner}), {why}"
    ))
}

/// Why native XDP is refused, or probably will be, because of the MTU.
pub(super) fn too_long_for_native(mtu: u32) -> Option<String> {
    (mtu > SINGLE_BUFFER).then(|| {
        format!(
            "MTU {mtu} is more than the driver's native XDP takes in one buffer (usually about {SINGLE_BUFFER} bytes)"
        )
    })
}

/// Why native XDP is refused as not supported by a driver that may have it all the same.
pub(super) fn merges(interface: &str) -> String {
    format!(
        "the driver of {interface} has no native XDP, or not while it merges packets that it receives (`ethtool -K {interface} lro off rx-gro-hw off`, if it lets that be turned off)"
    )
}

/// Whether a change of the MTU is a reason to look for a way anew: a driver is asked about the MTU when native XDP is attached,
/// and loses what is longer than its buffer later.
pub(super) fn is_turn(wanted: AttachMode, mode: AttachMode, before: u32, after: u32) -> bool {
    wanted == AttachMode::Auto
        && match mode {
            mode if mode.is_in_driver() => is_raised(before, after),
            _ => before > SINGLE_BUFFER && after <= SINGLE_BUFFER,
        }
}

/// Whether an MTU was raised to more than native XDP usually takes.
pub(super) const fn is_raised(before: u32, after: u32) -> bool {
    after > before && after > SINGLE_BUFFER
}

/// What is to be said of native XDP that stays although the MTU was raised.
pub(super) fn loses_frames(mtu: u32, wanted: AttachMode) -> Option<String> {
    let remedy = match wanted {
        AttachMode::Native => "lower it, or use --datapath auto",
        _ => "lower it: before Linux 6.3 the program cannot be taken off meanwhile",
    };
    too_long_for_native(mtu).map(|why| format!("{why}, and longer frames are lost; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_elses_program_is_never_in_the_way() {
        let facts = Facts {
            foreign: Some("program other, id 7".to_owned()),
            ..Facts::default()
        };
        let modes = candidates(AttachMode::Auto, &facts);
        assert_eq!(modes, [AttachMode::Tcx, AttachMode::Clsact]);
        let note = why_not_native("eth0", &facts).unwrap();
        assert_eq!(note, "another XDP program has eth0 (program other, id 7)");
    }

    #[test]
    fn a_dispatcher_is_joined_where_that_loses_nothing() {
        let facts = Facts {
            foreign: Some("program xdp_dispatcher, id 7".to_owned()),
            dispatcher: true,
            in_driver: true,
            partial_checksums: false,
        };
        let modes = candidates(AttachMode::Auto, &facts);
        assert_eq!(
            modes,
            [AttachMode::Joined, AttachMode::Tcx, AttachMode::Clsact]
        );
        assert_eq!(candidates(AttachMode::Native, &facts), [AttachMode::Joined]);
        assert_eq!(why_not_native("eth0", &facts), None);
        let in_stack = Facts {
            in_driver: false,
            ..facts.clone()
        };
        let modes = candidates(AttachMode::Auto, &in_stack);
        assert_eq!(modes, [AttachMode::Tcx, AttachMode::Clsact]);
        let note = why_not_native("eth0", &in_stack).unwrap();
        assert!(note.ends_with("which is not in the driver"), "{note}");
        let veth = Facts {
            partial_checksums: true,
            ..facts
        };
        let modes = candidates(AttachMode::Auto, &veth);
        assert_eq!(modes, [AttachMode::Tcx, AttachMode::Clsact]);
        assert!(why_not_native("eth0", &veth).unwrap().contains("tx off"));
    }

    #[test]
    fn native_is_first_where_it_loses_nothing() {
        let plain = Facts::default();
        assert_eq!(candidates(AttachMode::Auto, &plain)[0], AttachMode::Native);
        assert_eq!(why_not_native("eth0", &plain), None);
        let veth = Facts {
            partial_checksums: true,
            ..plain
        };
        let modes = candidates(AttachMode::Auto, &veth);
        assert_eq!(
            modes,
            [AttachMode::Tcx, AttachMode::Clsact, AttachMode::Generic]
        );
        assert!(why_not_native("eth0", &veth).unwrap().contains("tx off"));
    }

    #[test]
    fn what_is_asked_for_is_the_only_one() {
        let facts = Facts {
            foreign: Some("program other, id 7".to_owned()),
            ..Facts::default()
        };
        for mode in [
            AttachMode::Native,
            AttachMode::Tcx,
            AttachMode::Clsact,
            AttachMode::Generic,
            AttachMode::Joined,
        ] {
            assert_eq!(candidates(mode, &facts), [mode]);
        }
    }

    #[test]
    fn only_an_mtu_that_passes_the_limit_is_a_reason_to_look_anew() {
        use AttachMode::{Auto, Native, Tcx};
        for (wanted, mode, before, after, is_it) in [
            (Auto, Native, 1_500, 9_000, true),
            (Auto, Native, 1_500, 3_500, false),
            (Auto, Native, 9_000, 1_500, false),
            (Auto, Native, 9_000, 9_000, false),
            (Native, Native, 1_500, 9_000, false),
            (Auto, Tcx, 9_000, 1_500, true),
            (Auto, Tcx, 1_500, 9_000, false),
            (Auto, Tcx, 1_500, 1_400, false),
            (Tcx, Tcx, 9_000, 1_500, false),
        ] {
            let found = is_turn(wanted, mode, before, after);
            assert_eq!(found, is_it, "{wanted:?} {mode:?} {before} {after}");
        }
        let said = loses_frames(9_000, Native).unwrap();
        assert!(
            said.ends_with("lost; lower it, or use --datapath auto"),
            "{said}"
        );
        assert_eq!(loses_frames(1_500, Auto), None);
    }
}
