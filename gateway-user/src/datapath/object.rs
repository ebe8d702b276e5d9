//! The BPF object inside this program, and its maps: made new or adopted from their pins.
//!
//! A pinned map is adopted only if kind, sizes, capacity and flags are those of this build. Another layout under
//! the same ABI version is refused and never replaced: programs that forward right now may live on it.

use std::path::Path;

use aya::maps::MapInfo;
use aya::programs::ProgramError;
use aya::{Ebpf, EbpfLoader};
use aya_obj::Object;
use gateway_common::abi;

use super::{Error, counts, sys};

/// As `include_bytes!` but aligned as ELF wants it.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static EMBEDDED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/forebay.o")));

/// The embedded object.
///
/// # Errors
/// This program was built without one.
pub fn embedded() -> Result<&'static [u8], Error> {
    if EMBEDDED.0.is_empty() {
        return Err(Error::NoObject);
    }
    Ok(&EMBEDDED.0)
}

/// What two maps must have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl Layout {
    /// The first difference in words, if any. `self` is pinned, `other` is wanted.
    fn difference(&self, other: &Self) -> Option<String> {
        /// Set by the kernel itself on device maps.
        const BPF_F_RDONLY_PROG: u32 = 1 << 7;
        [
            ("kind", self.kind, other.kind),
            ("key size", self.key, other.key),
            ("value size", self.value, other.value),
            ("capacity", self.entries, other.entries),
            (
                "flags",
                self.flags & !BPF_F_RDONLY_PROG,
                other.flags & !BPF_F_RDONLY_PROG,
            ),
        ]
        .into_iter()
        .find(|(_, is, wanted)| is != wanted)
        .map(|(what, is, wanted)| format!("{what} {is} instead of {wanted}"))
    }
}

/// Loads the object's maps and prepares its programs; every map is pinned in `directory`, those already there
/// are adopted.
///
/// # Errors
/// No object, a pinned map of another layout, no permission, or a kernel that refuses a map.
pub fn load(directory: &Path, object: &[u8]) -> Result<Ebpf, Error> {
    load_with(directory, object, None)
}

/// As [`load`], with a program that is to take the place of a function in another program.
///
/// # Errors
/// As [`load`].
pub fn load_extension(directory: &Path, object: &[u8], program: &str) -> Result<Ebpf, Error> {
    load_with(directory, object, Some(program))
}

fn load_with(directory: &Path, object: &[u8], extension: Option<&str>) -> Result<Ebpf, Error> {
    let parsed = Object::parse(object).map_err(|error| Error::BadObject(error.to_string()))?;
    // BTF of the kernel is not needed; making a loader parses it all the same, and nothing later needs so much memory.
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    if let Some(program) = extension {
        loader.extension(program);
    }
    sys::return_freed_memory();
    let names: Vec<&String> = parsed
        .maps
        .iter()
        .filter(|(_, map)| {
            matches!(
                map.section_kind(),
                aya_obj::EbpfSectionKind::Maps | aya_obj::EbpfSectionKind::BtfMaps
            )
        })
        .map(|(name, _)| name)
        .collect();
    for name in names {
        let path = directory.join(name);
        let map = &parsed.maps[name];
        let mut entries = map.max_entries();
        if name == abi::map::COUNTERS {
            entries = counts::words_here();
            loader.map_max_entries(abi::map::COUNTERS, entries);
        }
        let wanted = Layout {
            kind: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            entries,
            flags: map.map_flags(),
        };
        check(&path, wanted)?;
        loader.map_pin_path(name, path);
    }
    loader
        .load(object)
        .map_err(|error| refused("its maps", &error))
}

fn check(path: &Path, wanted: Layout) -> Result<(), Error> {
    if !path.exists() {
        return Ok(());
    }
    let differs = |difference: String| Error::PinnedMapDiffers {
        path: path.to_owned(),
        difference,
    };
    let info = MapInfo::from_pin(path).map_err(|error| differs(error.to_string()))?;
    let kind = info
        .map_type()
        .map_err(|error| differs(error.to_string()))?;
    let pinned = Layout {
        kind: kind as u32,
        key: info.key_size(),
        value: info.value_size(),
        entries: info.max_entries(),
        flags: info.map_flags(),
    };
    pinned
        .difference(&wanted)
        .map_or(Ok(()), |difference| Err(differs(difference)))
}

/// The kernel's refusal as a sentence, with missing permission told apart.
pub(super) fn refused(what: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut reasons = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.raw_os_error() == Some(libc::EPERM)
        {
            return Error::NotPermitted {
                what: format!("loading the BPF object ({what})"),
            };
        }
        // Without it the verifier holds programs to rules that compiled ones do not keep (how spilled registers may
        // share the stack), and the code that it does take is slower.
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.raw_os_error() == Some(libc::EACCES)
            && !has_perfmon()
        {
            return Error::NoPerfmon {
                program: what.to_owned(),
            };
        }
        match error.downcast_ref() {
            Some(ProgramError::LoadError { verifier_log, .. }) => {
                let log = verifier_log.to_string();
                tracing::debug!(program = what, %log, "the verifier's log");
                let said = objection(&log);
                reasons.extend(said.map(|line| format!("the verifier says \"{line}\"")));
            }
            _ => reasons.push(error.to_string()),
        }
        next = error.source();
    }
    Error::Load {
        program: what.to_owned(),
        reason: reasons.join(": "),
    }
}

/// Why the verifier refuses: the last line of its log that is no statistics. All of a log may be thousands of lines.
pub(super) fn objection(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 3] = ["verification time ", "stack depth ", "processed "];
    let is_statistics = |line: &str| {
        // Newer kernels have a line for each function too.
        STATISTICS.iter().any(|begin| line.starts_with(begin))
            || (line.starts_with("subprog ") && line.contains(" insns_self "))
    };
    let mut lines = log.lines().map(str::trim);
    lines.rfind(|line| !line.is_empty() && !is_statistics(line))
}

fn has_perfmon() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    let enough = CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN;
    capabilities(None).is_ok_and(|sets| sets.effective.intersects(enough))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_of_layout_is_named() {
        let wanted = Layout {
            kind: 2,
            key: 4,
            value: 48,
            entries: 2048,
            flags: 1024,
        };
        assert_eq!(wanted.difference(&wanted), None);
        let other = Layout {
            value: 40,
            ..wanted
        };
        assert_eq!(
            other.difference(&wanted).as_deref(),
            Some("value size 40 instead of 48")
        );
        let device = Layout {
            flags: 1024 | 128,
            ..wanted
        };
        assert_eq!(device.difference(&wanted), None);
    }

    #[test]
    fn of_the_verifiers_log_its_objection_is_told() {
        let log = "0: (bf) r6 = r1\n1: (61) r2 = *(u32 *)(r10 -168)\n\
                   invalid read from stack R10 off=-168 size=4\n\
                   verification time 1234958 usec\nstack depth 0+0+192\n\
                   processed 12982 insns (limit 1000000)\n\n";
        let error = ProgramError::LoadError {
            io_error: std::io::Error::from_raw_os_error(libc::EINVAL),
            verifier_log: aya_obj::VerifierLog::new(log.to_owned()),
        };
        assert_eq!(
            refused("forebay_tc", &error).to_string(),
            "the kernel refused to load forebay_tc: the verifier says \"invalid read from stack R10 off=-168 size=4\": Invalid argument (os error 22); Forebay needs Linux 5.15 or newer with CONFIG_BPF_SYSCALL"
        );
        assert_eq!(objection("processed 3 insns\n"), None);
        let newer = "no such thing\nsubprog 28 (forebay_syn_ack) global insns_self 0 insns_total 0 stack 0\n";
        assert_eq!(objection(newer), Some("no such thing"));
    }

    #[test]
    fn a_kernel_that_lacks_something_is_told_from_missing_permission() {
        let said = |number| refused("forebay_xdp", &std::io::Error::from_raw_os_error(number));
        assert_eq!(
            said(libc::EINVAL).to_string(),
            "the kernel refused to load forebay_xdp: Invalid argument (os error 22); Forebay needs Linux 5.15 or newer with CONFIG_BPF_SYSCALL"
        );
        assert_eq!(
            said(libc::ENOSYS).to_string(),
            "the kernel refused to load forebay_xdp: Function not implemented (os error 38); Forebay needs Linux 5.15 or newer with CONFIG_BPF_SYSCALL"
        );
        assert!(matches!(said(libc::EPERM), Error::NotPermitted { .. }));
    }
}
