//! How much stack the chains of calls in the object take, as the kernel adds it up.
//!
//! A program has 512 bytes for a function and all that it calls. Before Linux 6.8 each function takes a multiple of 32, at
//! least 32 (`check_max_stack_depth` in kernel/bpf/verifier.c), later a multiple of 16: an object that loads on the machine
//! that builds it may be refused by an older kernel. So the build refuses it first.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// Bytes of stack of a program.
const LIMIT: u64 = 512;
/// What each function's share is a multiple of.
const GRAIN: u64 = 32;

/// A function: its section and its offset there.
type Place = (usize, u64);

/// What a function takes by itself, and what it calls.
struct Function {
    name: String,
    bytes: u64,
    calls: Vec<Place>,
}

/// The largest sum of a chain of calls in bytes and the names in that chain.
///
/// # Errors
/// It is more than the kernel gives, or this is no object.
pub(super) fn check(object: &[u8]) -> Result<(u64, String)> {
    let functions = Elf(object)
        .functions()
        .context("the built file is no object of BPF programs")?;
    let chains = functions.keys().map(|place| deepest(*place, &functions));
    let (bytes, names) = chains.max().context("the object holds no function")?;
    let chain = names.join(" > ");
    if bytes > LIMIT {
        bail!(
            "{chain} take {bytes} bytes of stack, {LIMIT} are the limit before Linux 6.8, where each function takes a multiple of {GRAIN}: give one of them less to keep"
        );
    }
    Ok((bytes, chain))
}

/// No function of a program calls itself, even by way of others: the verifier refuses that.
fn deepest(place: Place, functions: &BTreeMap<Place, Function>) -> (u64, Vec<String>) {
    let Some(function) = functions.get(&place) else {
        return (0, Vec::new());
    };
    let below = function.calls.iter().map(|call| deepest(*call, functions));
    let (bytes, mut names) = below.max().unwrap_or_default();
    names.insert(0, function.name.clone());
    (function.bytes.max(1).next_multiple_of(GRAIN) + bytes, names)
}

/// An ELF object of 64 bits, little endian.
struct Elf<'a>(&'a [u8]);

/// A header of a section: kind, offset, size, link and info.
struct Section {
    kind: u64,
    at: u64,
    size: u64,
    link: u64,
    info: u64,
}

/// A symbol: kind, section, value and size.
struct Symbol {
    name: String,
    kind: u64,
    section: usize,
    value: u64,
    size: u64,
}

impl Elf<'_> {
    fn number(&self, at: u64, size: u64) -> Option<u64> {
        let range = usize::try_from(at).ok()?..usize::try_from(at + size).ok()?;
        let bytes = self.0.get(range)?;
        Some(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn sections(&self) -> Option<Vec<Section>> {
        let (table, count) = (self.number(0x28, 8)?, self.number(0x3c, 2)?);
        let section = |i: u64| {
            let at = table + 64 * i;
            Some(Section {
                kind: self.number(at + 4, 4)?,
                at: self.number(at + 24, 8)?,
                size: self.number(at + 32, 8)?,
                link: self.number(at + 40, 4)?,
                info: self.number(at + 44, 4)?,
            })
        };
        (0..count).map(section).collect()
    }

    fn symbols(&self, sections: &[Section]) -> Option<Vec<Symbol>> {
        const SYMBOLS: u64 = 2;
        let table = sections.iter().find(|section| section.kind == SYMBOLS)?;
        let names = sections.get(usize::try_from(table.link).ok()?)?.at;
        let symbol = |at: u64| {
            let name = usize::try_from(names + self.number(at, 4)?).ok()?;
            let name = self.0.get(name..)?.split(|byte| *byte == 0).next()?;
            Some(Symbol {
                name: String::from_utf8_lossy(name).into_owned(),
                kind: self.number(at + 4, 1)? & 15,
                section: usize::try_from(self.number(at + 6, 2)?).ok()?,
                value: self.number(at + 8, 8)?,
                size: self.number(at + 16, 8)?,
            })
        };
        let each = (table.at..table.at + table.size).step_by(24);
        each.map(symbol).collect()
    }

    /// Where instructions that call something point to, by the place of the instruction.
    fn calls(&self, sections: &[Section], symbols: &[Symbol]) -> Option<BTreeMap<Place, Place>> {
        const RELOCATIONS: u64 = 9;
        const SECTION: u64 = 3;
        let mut calls = BTreeMap::new();
        for section in sections.iter().filter(|one| one.kind == RELOCATIONS) {
            let code = usize::try_from(section.info).ok()?;
            for at in (section.at..section.at + section.size).step_by(16) {
                let (from, to) = (self.number(at, 8)?, self.number(at + 12, 4)?);
                let symbol = symbols.get(usize::try_from(to).ok()?)?;
                let mut value = symbol.value;
                if symbol.kind == SECTION {
                    // The instruction says where in it, counted from the next one.
                    let start = sections.get(code)?.at;
                    let word = self.number(start + from + 4, 4)? as u32;
                    value += (u64::from(word.wrapping_add(1))) * 8;
                }
                calls.insert((code, from), (symbol.section, value));
            }
        }
        Some(calls)
    }

    fn functions(&self) -> Option<BTreeMap<Place, Function>> {
        const FUNCTION: u64 = 2;
        let sections = self.sections()?;
        let symbols = self.symbols(&sections)?;
        let calls = self.calls(&sections, &symbols)?;
        let mut functions = BTreeMap::new();
        for symbol in symbols.iter().filter(|symbol| symbol.kind == FUNCTION) {
            let start = sections.get(symbol.section)?.at + symbol.value;
            let code = self.0.get(usize::try_from(start).ok()?..)?;
            let code = code.get(..usize::try_from(symbol.size).ok()?)?;
            let called = |at: u64, word: i32| {
                let place = (symbol.section, symbol.value + at);
                let next = place.1.wrapping_add(8);
                let told = calls.get(&place).copied();
                told.unwrap_or((
                    symbol.section,
                    next.wrapping_add_signed(8 * i64::from(word)),
                ))
            };
            let function = function(symbol.name.clone(), code, called);
            functions.insert((symbol.section, symbol.value), function);
        }
        Some(functions)
    }
}

/// Walks the instructions of a function (`struct bpf_insn`). What it takes is how far below the frame pointer it reads, writes
/// or points to.
fn function(name: String, code: &[u8], called: impl Fn(u64, i32) -> Place) -> Function {
    const FRAME: u8 = 10;
    let mut function = Function {
        name,
        bytes: 0,
        calls: Vec::new(),
    };
    let mut points = [false; 16];
    let mut second_half = false;
    for (at, insn) in (0..).step_by(8).zip(code.chunks_exact(8)) {
        if std::mem::take(&mut second_half) {
            continue;
        }
        let (to, from) = (insn[1] & 15, insn[1] >> 4);
        let offset = i64::from(i16::from_le_bytes([insn[2], insn[3]]));
        let word = i32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]);
        let below = match (insn[0], insn[0] & 7) {
            // A load of two words.
            (0x18, _) => {
                second_half = true;
                0
            }
            // A function, not a helper.
            (0x85, _) if from == 1 => {
                function.calls.push(called(at, word));
                0
            }
            // A copy of the frame pointer, and what is added to it.
            (0xbf, _) => {
                points[usize::from(to)] = from == FRAME;
                0
            }
            (0x07, _) if points[usize::from(to)] => {
                points[usize::from(to)] = false;
                i64::from(word)
            }
            (_, 1) if from == FRAME => offset,
            (_, 2 | 3) if to == FRAME => offset,
            _ => 0,
        };
        function.bytes = function.bytes.max((-below).max(0).unsigned_abs());
    }
    function
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insn(op: u8, to: u8, from: u8, offset: i16, word: i32) -> [u8; 8] {
        let [a, b] = offset.to_le_bytes();
        let [c, d, e, f] = word.to_le_bytes();
        [op, to | from << 4, a, b, c, d, e, f]
    }

    #[test]
    fn what_a_function_takes_is_seen_in_its_instructions() {
        let code = [
            insn(0x7b, 10, 1, -24, 0),
            insn(0xbf, 2, 10, 0, 0),
            insn(0x07, 2, 0, 0, -40),
            // Not the frame pointer any more.
            insn(0x07, 2, 0, 0, -400),
            insn(0x85, 0, 1, 0, 3),
            insn(0x85, 0, 0, 0, 5),
            insn(0x18, 1, 0, 0, 0),
            insn(0x7b, 10, 1, -500, 0),
            insn(0x95, 0, 0, 0, 0),
        ]
        .concat();
        let found = function("f".to_owned(), &code, |at, word| (word as usize, at));
        assert_eq!((found.bytes, found.calls), (40, vec![(3, 32)]));
    }

    #[test]
    fn each_function_of_a_chain_takes_a_multiple() {
        let one = |name: &str, bytes, calls: &[u64]| Function {
            name: name.to_owned(),
            bytes,
            calls: calls.iter().map(|at| (1, *at)).collect(),
        };
        let functions = BTreeMap::from([
            ((1, 0), one("main", 200, &[8, 16])),
            ((1, 8), one("small", 0, &[])),
            ((1, 16), one("large", 33, &[8])),
        ]);
        let (bytes, names) = deepest((1, 0), &functions);
        assert_eq!(
            (bytes, names.join(" ")),
            (224 + 64 + 32, "main large small".to_owned())
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bytes in [&b""[..], b"\x7fELF", &[0; 200]] {
            assert!(check(bytes).is_err());
        }
    }
}
