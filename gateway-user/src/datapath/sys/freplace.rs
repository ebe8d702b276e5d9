//! bpf(2) commands for programs that take the place of a function in another program (`BPF_PROG_TYPE_EXT`, "freplace"). The loader
//! library loads such programs, but makes no program that has replaceable functions unless a compiler made it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_type};

use super::super::object::objection;
use super::{bpf, owned, raw, zeroed};

/// A program to load, as the kernel wants it.
pub(crate) struct Image<'a> {
    /// Name that it is listed by, 15 bytes at most.
    pub(crate) name: &'a CStr,
    /// Instructions of eight bytes.
    pub(crate) instructions: &'a [[u8; 8]],
    /// Each function: its first instruction and its type's number.
    pub(crate) functions: &'a [[u32; 2]],
    /// What describes the types.
    pub(crate) types: &'a [u8],
    /// `BPF_F_…`.
    pub(crate) flags: u32,
}

/// Loads an XDP program whose functions have types.
pub(crate) fn load_xdp(image: &Image<'_>) -> io::Result<OwnedFd> {
    let types = load_types(image.types)?;
    let mut log = vec![0_u8; 16 << 10];
    let mut attributes = zeroed();
    // SAFETY: of the members of the union this one is meant by the command, and zero is a value of it.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
    load.insns = image.instructions.as_ptr() as u64;
    load.insn_cnt = length(image.instructions)?;
    load.license = c"GPL".as_ptr() as u64;
    load.prog_flags = image.flags;
    // As libbpf has it: a program that takes a function's place goes to targets of one such type only.
    load.expected_attach_type = bpf_attach_type::BPF_XDP as u32;
    for (to, from) in load.prog_name.iter_mut().zip(image.name.to_bytes()) {
        *to = from.cast_signed();
    }
    load.prog_btf_fd = raw(types.as_fd());
    load.func_info = image.functions.as_ptr() as u64;
    load.func_info_cnt = length(image.functions)?;
    load.func_info_rec_size = size_of::<[u32; 2]>() as u32;
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = length(&log)?;
    load.log_level = 1;
    match bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) {
        Ok(program) => Ok(owned(program)),
        Err(error) => Err(with_log(error, &log)),
    }
}

fn length<T>(of: &[T]) -> io::Result<u32> {
    u32::try_from(of.len()).map_err(io::Error::other)
}

/// A refusal with the verifier's last word, which is what it stumbled over.
fn with_log(error: io::Error, log: &[u8]) -> io::Error {
    let log = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let said = String::from_utf8_lossy(log);
    match (error.raw_os_error(), objection(&said)) {
        (Some(libc::EPERM), _) | (_, None) => error,
        (_, Some(line)) => io::Error::other(format!("{error}: {line}")),
    }
}

fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let mut log = vec![0_u8; 16 << 10];
    let mut attributes = zeroed();
    attributes.__bindgen_anon_7.btf = types.as_ptr() as u64;
    attributes.__bindgen_anon_7.btf_size = length(types)?;
    attributes.__bindgen_anon_7.btf_log_buf = log.as_mut_ptr() as u64;
    attributes.__bindgen_anon_7.btf_log_size = length(&log)?;
    attributes.__bindgen_anon_7.btf_log_level = 1;
    match bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes) {
        Ok(types) => Ok(owned(types)),
        Err(error) => Err(with_log(error, &log)),
    }
}

/// An array of one value that neither programs nor processes can change.
pub(crate) fn constant(name: &CStr, value: &[u8]) -> io::Result<OwnedFd> {
    const BPF_F_RDONLY_PROG: u32 = 1 << 7;
    let mut attributes = zeroed();
    // SAFETY: of the members of the union this one is meant by the command, and zero is a value of it.
    let create = unsafe { &mut attributes.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    create.key_size = size_of::<u32>() as u32;
    create.value_size = length(value)?;
    create.max_entries = 1;
    create.map_flags = BPF_F_RDONLY_PROG;
    for (to, from) in create.map_name.iter_mut().zip(name.to_bytes()) {
        *to = from.cast_signed();
    }
    let map = owned(bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes)?);
    let key = 0_u32;
    let mut attributes = element(map.as_fd(), &key);
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes)?;
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = raw(map.as_fd());
    bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attributes)?;
    Ok(map)
}

fn element(map: BorrowedFd<'_>, key: &u32) -> bpf_attr {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_2.map_fd = raw(map);
    attributes.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attributes
}

/// The first value of an array, whose length is told by the kernel's description of the map.
pub(crate) fn first_value(map: BorrowedFd<'_>, length: u32) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; length as usize];
    let key = 0_u32;
    let mut attributes = element(map, &key);
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes)?;
    Ok(value)
}

/// Puts a program into the place of the function of `target` whose type has this number (Linux 5.10 for one that is in another
/// place already).
pub(crate) fn link_function(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    function: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.link_create.__bindgen_anon_1.prog_fd = raw(program);
    attributes.link_create.__bindgen_anon_2.target_fd = raw(target);
    attributes.link_create.__bindgen_anon_3.target_btf_id = function;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes).map(owned)
}
