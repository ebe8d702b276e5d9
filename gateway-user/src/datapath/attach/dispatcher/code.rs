//! The dispatcher as instructions and types. Pure.
//!
//! A compiler's dispatcher has ten functions and drops those that its configuration does not name; this one is written for its
//! number of components, so that a packet meets one call and one test for each.

/// What a function returns that nobody has replaced: go on. All who write dispatchers agree on it.
pub(super) const KEEP_GOING: u32 = 31;
/// `XDP_PASS`.
pub(super) const PASS: u32 = 2;

/// Number of the type of the first function; the main one has the number before.
pub(super) const FIRST_FUNCTION: u32 = 7;

/// Instructions for components whose results in `actions`, a bit each, have the next one called; and where each function
/// begins: the main one first. `configuration` is the descriptor of the map that others read.
pub(super) fn instructions(actions: &[u32], configuration: i32) -> (Vec<[u8; 8]>, Vec<u32>) {
    const PER_COMPONENT: usize = 6;
    let exit = 2 + PER_COMPONENT * actions.len();
    let starts: Vec<usize> = (0..actions.len())
        .scan(exit + 1, |next, component| {
            let start = *next;
            *next += function(component, configuration).len();
            Some(start)
        })
        .collect();
    let mut code = vec![instruction(MOVE, 6, 1, 0, 0)];
    for (start, actions) in starts.iter().zip(actions) {
        code.push(instruction(MOVE, 1, 6, 0, 0));
        let distance = start - code.len() - 1;
        code.push(instruction(CALL, 0, PSEUDO_CALL, 0, distance as i32));
        code.push(instruction(SET_32, 2, 0, 0, 1));
        code.push(instruction(SHIFT_LEFT_32, 2, 0, 0, 0));
        code.push(instruction(AND_32, 2, 0, 0, actions.cast_signed()));
        let distance = exit - code.len() - 1;
        code.push(instruction(JUMP_IF_EQUAL_32, 2, 0, distance as i16, 0));
    }
    code.push(instruction(SET, 0, 0, 0, PASS.cast_signed()));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    for component in 0..actions.len() {
        code.extend(function(component, configuration));
    }
    let starts = std::iter::once(0).chain(starts).map(|start| start as u32);
    (code, starts.collect())
}

/// A function to be replaced. It calls what changes packets without doing so: since Linux 6.13 only such a function can be replaced
/// by a program that changes packets.
fn function(component: usize, configuration: i32) -> Vec<[u8; 8]> {
    const XDP_ADJUST_TAIL: i32 = 65;
    let mut code = vec![
        instruction(SET, 2, 0, 0, 0),
        instruction(CALL, 0, 0, 0, XDP_ADJUST_TAIL),
    ];
    if component == 0 {
        // Here since it costs nothing in a function that is replaced: whoever reads a dispatcher looks for its one map.
        code.push(instruction(
            LOAD_WORD,
            1,
            PSEUDO_MAP_VALUE,
            0,
            configuration,
        ));
        code.push([0; 8]);
    }
    code.push(instruction(SET, 0, 0, 0, KEEP_GOING.cast_signed()));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

// As in the kernel's Documentation/bpf/standardization/instruction-set.rst.
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const SET_32: u8 = 0xb4;
const SHIFT_LEFT_32: u8 = 0x6c;
const AND_32: u8 = 0x54;
const JUMP_IF_EQUAL_32: u8 = 0x16;
const LOAD_WORD: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const PSEUDO_CALL: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> [u8; 8] {
    let [o0, o1] = offset.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    let registers = match cfg!(target_endian = "little") {
        true => from << 4 | to,
        false => to << 4 | from,
    };
    [code, registers, o0, o1, v0, v1, v2, v3]
}

/// Types in the kernel's format (Documentation/bpf/btf.rst): each function takes the context of XDP and returns an `int`, and can be
/// replaced. A program is let into a function's place if its context has the same name and layout. The loader library can build types,
/// but no structure.
pub(super) fn types(components: usize) -> Vec<u8> {
    const CONTEXT: [&str; 6] = [
        "data",
        "data_end",
        "data_meta",
        "ingress_ifindex",
        "rx_queue_index",
        "egress_ifindex",
    ];
    let mut types = Types::default();
    types.integer("int", true);
    types.integer("unsigned int", false);
    let context = types.named("xdp_md");
    types.words(&[context, STRUCT << 24 | CONTEXT.len() as u32, 24]);
    for (at, member) in CONTEXT.into_iter().enumerate() {
        let name = types.named(member);
        types.words(&[name, 2, at as u32 * 32]);
    }
    types.words(&[0, POINTER << 24, 3]);
    let argument = types.named("ctx");
    types.words(&[0, PROTOTYPE << 24 | 1, 1, argument, 4]);
    let functions = (0..components).map(|component| format!("prog{component}"));
    for name in std::iter::once("xdp_dispatcher".to_owned()).chain(functions) {
        let name = types.named(&name);
        types.words(&[name, FUNCTION << 24 | GLOBAL, 5]);
    }
    types.finish()
}

const INTEGER: u32 = 1;
const POINTER: u32 = 2;
const STRUCT: u32 = 4;
const FUNCTION: u32 = 12;
const PROTOTYPE: u32 = 13;
/// Linkage of functions that can be replaced.
const GLOBAL: u32 = 1;

#[derive(Default)]
struct Types {
    types: Vec<u8>,
    /// Names, each with its end; an empty one comes first.
    names: Vec<u8>,
}

impl Types {
    fn named(&mut self, name: &str) -> u32 {
        if self.names.is_empty() {
            self.names.push(0);
        }
        let at = self.names.len() as u32;
        self.names.extend(name.bytes());
        self.names.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        self.types
            .extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    }

    fn integer(&mut self, name: &str, signed: bool) {
        let name = self.named(name);
        self.words(&[name, INTEGER << 24, 4, u32::from(signed) << 24 | 32]);
    }

    fn finish(self) -> Vec<u8> {
        const MAGIC: u16 = 0xeb9f;
        const HEADER: u32 = 24;
        let (types, names) = (self.types.len() as u32, self.names.len() as u32);
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [HEADER, 0, types, types, names] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(self.types);
        bytes.extend(self.names);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_reach_the_beginning_of_their_functions() {
        for components in 1..=10 {
            let actions = vec![1 << PASS | 1 << KEEP_GOING; components];
            let (code, starts) = instructions(&actions, 9);
            assert_eq!(starts.len(), components + 1);
            let calls: Vec<usize> = (0..code.len())
                .filter(|at| code[*at][0] == CALL && code[*at][1] >> 4 == PSEUDO_CALL)
                .collect();
            for (call, start) in calls.iter().zip(&starts[1..]) {
                let distance = i32::from_ne_bytes(code[*call][4..].try_into().unwrap());
                assert_eq!(call + 1 + distance as usize, *start as usize);
                assert_eq!(code[*start as usize], instruction(SET, 2, 0, 0, 0));
            }
            assert_eq!(calls.len(), components);
            assert_eq!(code.last(), Some(&instruction(EXIT, 0, 0, 0, 0)));
        }
    }

    #[test]
    fn a_result_that_ends_it_is_returned_from_any_place() {
        let (code, starts) = instructions(&[1 << KEEP_GOING; 10], 9);
        let exit = starts[1] as usize - 1;
        assert_eq!(code[exit], instruction(EXIT, 0, 0, 0, 0));
        let jumps = (0..exit).filter(|at| code[*at][0] == JUMP_IF_EQUAL_32);
        for jump in jumps {
            let distance = i16::from_ne_bytes([code[jump][2], code[jump][3]]);
            assert_eq!(jump + 1 + distance as usize, exit);
        }
    }

    #[test]
    fn another_reader_finds_the_functions_by_their_names() {
        let bytes = types(3);
        let types = aya_obj::btf::Btf::parse(&bytes, aya::Endianness::default()).unwrap();
        for (at, name) in ["xdp_dispatcher", "prog0", "prog1", "prog2"]
            .iter()
            .enumerate()
        {
            let found = types.id_by_type_name_kind(name, aya_obj::btf::BtfKind::Func);
            assert_eq!(found.unwrap(), FIRST_FUNCTION - 1 + at as u32, "{name}");
        }
    }
}
