//! The built kernel object, loaded but attached to nothing: packets run through it by BPF_PROG_TEST_RUN, in the form for
//! XDP or in that for traffic control.
//!
//! Tables are given as the host's ([`HostTables`]), so that one value describes both sides of a comparison.
//! Sockets are looked up in the caller's network namespace: see [`fresh_namespace`].

mod counted;
pub mod fixture;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, DevMapHash, Map, SockMap};
use aya::programs::{
    Program, SchedClassifier, SkLookup, TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode,
};
use aya::{Ebpf, EbpfLoader};
use gateway_common::abi::{Counter, NodeEntry, Row, SourceKey, VipEntry, cpu_state, map, tag};
use gateway_common::host::{HostTables, Table};
use gateway_common::steer::Tables;
use gateway_common::verdict::Action;
use gateway_user::datapath::mmap::MappedArray;
use rustix::thread::{CpuSet, UnshareFlags, sched_getaffinity, sched_setaffinity};

use self::counted::grown_cells;
pub use self::counted::reasons;

/// The loopback interface, on which test runs arrive.
pub const INGRESS: u32 = 1;

/// Bytes in front of a packet that are free for what is pushed.
pub const HEADROOM: u32 = 256;

/// Bytes of them that the kernel itself uses (`struct xdp_frame`).
const FRAME: u32 = 40;

/// What one packet came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What the program returned.
    pub action: Action,
    /// The packet as it left it.
    pub bytes: Vec<u8>,
    /// The reasons that were counted meanwhile, in their order.
    pub counted: Vec<Counter>,
    /// The cells that were counted in, in their order.
    pub cells: Vec<u32>,
}

/// Which of the two forms of the program packets run through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `forebay_xdp`.
    Xdp,
    /// `forebay_tc`.
    Tc,
}

impl Form {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Xdp, Self::Tc];

    const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "forebay_xdp",
            Self::Tc => "forebay_tc",
        }
    }
}

/// A prefix of a list of sources, as [`HostTables`] holds it.
type Source = (u32, SourceKey, u32);

/// The loaded object.
pub struct Object {
    ebpf: Ebpf,
    form: Form,
    written: HostTables,
    /// Counters after the last run.
    counted: Option<Vec<u64>>,
    /// The array of counters.
    counters: MappedArray,
    /// Cells that these tables can count in.
    cells: Vec<u32>,
    /// Whether test runs take as much metadata as fills the headroom: frames alone have it, and not on older kernels.
    short: bool,
}

impl Object {
    /// Loads the object and all of its programs; packets run through the form for XDP.
    pub fn load() -> Result<Self> {
        Self::of(Form::Xdp)
    }

    /// Loads the object and all of its programs; packets run through this form.
    pub fn of(form: Form) -> Result<Self> {
        let path = path()?;
        let mut ebpf = EbpfLoader::new()
            .load_file(&path)
            .with_context(|| format!("cannot load {}", path.display()))?;
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::Xdp(xdp) => xdp.load(),
                Program::SchedClassifier(tc) => tc.load(),
                _ => Ok(()),
            }
            .with_context(|| format!("the kernel refuses {name}"))?;
        }
        let lookup: &mut SkLookup = ebpf
            .program_mut("forebay_lookup")
            .context("no program forebay_lookup")?
            .try_into()?;
        lookup.load().context("the kernel refuses forebay_lookup")?;
        let Some(Map::Array(counters)) = ebpf.map(map::COUNTERS) else {
            bail!("no array COUNTERS");
        };
        let words = counters.info()?.max_entries();
        let counters = MappedArray::to_read(map::COUNTERS, counters.fd(), words, 8)?;
        let mut object = Self {
            ebpf,
            form,
            written: HostTables::default(),
            counted: None,
            counters,
            cells: counted::cells(&HostTables::default()),
            short: false,
        };
        object.short = form == Form::Xdp && object.run_in(&[0; 64], 0).is_ok();
        Ok(object)
    }

    /// Writes what differs from the tables written last.
    pub fn write(&mut self, tables: &HostTables) -> Result<()> {
        let old = std::mem::replace(&mut self.written, tables.clone());
        if !old.vips.is(&tables.vips) {
            let cells = counted::cells(tables);
            if cells != self.cells {
                (self.cells, self.counted) = (cells, None);
            }
        }
        self.set::<176>(map::CONFIG, 0, bytemuck::cast(tables.config))?;
        for (i, row) in changed::<Row>(&old.rows, &tables.rows) {
            self.set::<8>(map::ROWS, i, bytemuck::cast(*row))?;
        }
        for (i, vip) in changed::<VipEntry>(&old.vips, &tables.vips) {
            self.set::<32>(map::VIPS, i, bytemuck::cast(*vip))?;
        }
        for (i, node) in changed::<NodeEntry>(&old.nodes, &tables.nodes) {
            self.set::<48>(map::NODES, i, bytemuck::cast(*node))?;
        }
        for (sessions, held) in [(&old.sessions, false), (&tables.sessions, true)] {
            for hash in sessions {
                let tag = if held { tag::tag_of(*hash) } else { 0 };
                // The last way: all four are looked at.
                self.set::<16>(
                    map::TAGS,
                    tag::set_of(*hash),
                    bytemuck::cast([0, 0, 0, tag]),
                )?;
            }
        }
        for (list, suspect) in [(&old.suspects, 0u64), (&tables.suspects, 1)] {
            for node in list {
                self.set::<8>(map::ALIVE, u32::from(*node), suspect.to_ne_bytes())?;
            }
        }
        for list in [&old.alive, &tables.alive] {
            for (node, _) in list {
                let word = tables.alive(*node).to_ne_bytes();
                self.set::<8>(map::ALIVE, u32::from(*node), word)?;
            }
        }
        self.set::<8>(map::HEARTBEAT, 0, tables.heartbeat.to_ne_bytes())?;
        for (i, word) in (1..).zip(&tables.facts[1..]) {
            self.set::<8>(map::HEARTBEAT, i, word.to_ne_bytes())?;
        }
        for (i, word) in tables.state.borrow().iter().enumerate() {
            self.set::<8>(map::STATE, i as u32, word.to_ne_bytes())?;
        }
        // The host has one CPU; which one a test run gets is not known.
        for cpu in 0..std::thread::available_parallelism()?.get() as u32 {
            for (i, word) in (0..).zip(tables.cpu_state.borrow().iter()) {
                let slot = cpu * cpu_state::WORDS + i;
                self.set::<8>(map::CPU_STATE, slot, word.to_ne_bytes())?;
            }
        }
        if old.sources == tables.sources {
            return Ok(());
        }
        self.write_sources(&old.sources, &tables.sources)
    }

    fn write_sources(&mut self, old: &[Source], new: &[Source]) -> Result<()> {
        let map = self.ebpf.map_mut(map::SOURCES).context("no map SOURCES")?;
        let mut trie: LpmTrie<_, [u8; 20], u32> = LpmTrie::try_from(map)?;
        let key = |length: u32, key: &SourceKey| Key::new(length, bytemuck::cast(*key));
        for (length, prefix, _) in old {
            trie.remove(&key(*length, prefix))?;
        }
        for (length, prefix, value) in new {
            trie.insert(&key(*length, prefix), value, 0)?;
        }
        Ok(())
    }

    /// Lets packets be redirected to interface `ifindex`, by sending them to loopback.
    pub fn add_device(&mut self, ifindex: u32) -> Result<()> {
        let mut devices =
            DevMapHash::try_from(self.ebpf.map_mut(map::DEVICES).context("no map DEVICES")?)?;
        devices
            .insert(ifindex, INGRESS, None, 0)
            .context("cannot add a device")
    }

    /// Whether a run came to what it must. The outer VLAN tag of what a classifier sends lies beside the packet, where a
    /// test run does not show it.
    #[must_use]
    pub fn agrees(&self, run: &Run, expected: &Run) -> bool {
        let sent = matches!(run.action, Action::Transmit | Action::Redirect { .. });
        let beside =
            self.form == Form::Tc && sent && expected.bytes.get(12..14) == Some(&[0x81, 0]);
        let mut expected = expected.clone();
        if beside && run.bytes.len() + 4 == expected.bytes.len() {
            expected.bytes.drain(12..16);
        }
        *run == expected
    }

    /// Whether the kernel makes a test run of this packet: of none for a classifier whose IP header is cut short, nor with
    /// less headroom than a socket buffer has.
    #[must_use]
    pub fn takes(&self, packet: &[u8], headroom: u32) -> bool {
        let least = match packet.get(12..14) {
            Some([0x08, 0x00]) => 14 + 20,
            Some([0x86, 0xdd]) => 14 + 40,
            _ => 15,
        };
        let long = self.form == Form::Xdp || packet.len() >= least;
        long && (headroom == HEADROOM || self.short)
    }

    /// Whether test runs are made of packets with less headroom than usual.
    #[must_use]
    pub const fn takes_short(&self) -> bool {
        self.short
    }

    /// Runs one packet, which arrives on [`INGRESS`].
    pub fn run(&mut self, packet: &[u8]) -> Result<Run> {
        self.run_in(packet, HEADROOM)
    }

    /// Runs one packet that has `headroom` bytes of headroom: those at its start are filled with metadata to that end.
    pub fn run_in(&mut self, packet: &[u8], headroom: u32) -> Result<Run> {
        // Nothing else counts while packets run.
        let before = match self.counted.take() {
            Some(counted) => counted,
            None => self.counters()?,
        };
        let meta = HEADROOM.saturating_sub(FRAME + headroom) & !3;
        let data = [&vec![0; meta as usize][..], packet].concat();
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [meta, data.len() as u32, 0, 0, 0, 0].map(u32::to_ne_bytes);
        let mut out = vec![0; data.len() + 256];
        let context = (meta > 0).then(|| context.concat());
        let (returned, length) = self.test_run(&data, context.as_deref(), &mut out)?;
        out.truncate(length);
        out.drain(..meta as usize);
        let after = self.counters()?;
        let cells = grown_cells(&self.cells, &before, &after);
        self.counted = Some(after);
        Ok(Run {
            action: match self.form {
                Form::Xdp => action(returned, &self.written)?,
                Form::Tc => action_of_classifier(returned, &out, &self.written)?,
            },
            bytes: out,
            counted: reasons(&cells),
            cells,
        })
    }

    /// Instructions that the verifier walked, of `forebay_xdp`, `forebay_tc` and `forebay_lookup`.
    pub fn verified_instructions(&self) -> Result<[u32; 3]> {
        let count = |name: &str| -> Result<u32> {
            let program = self
                .ebpf
                .program(name)
                .with_context(|| format!("no program {name}"))?;
            Ok(program.info()?.verified_instruction_count().unwrap_or(0))
        };
        Ok([
            count("forebay_xdp")?,
            count("forebay_tc")?,
            count("forebay_lookup")?,
        ])
    }

    /// A word of what the program remembers, see `gateway_common::abi::state`.
    pub fn state(&self, slot: u32) -> Result<u64> {
        let words: Array<_, u64> =
            Array::try_from(self.ebpf.map(map::STATE).context("no map STATE")?)?;
        Ok(words.get(&slot, 0)?)
    }

    /// Marks a port as one of the proxy's own.
    pub fn set_proxy_port(&mut self, port: u16) -> Result<()> {
        self.set::<8>(
            map::PORTS,
            u32::from(port) / 64,
            (1u64 << (port % 64)).to_ne_bytes(),
        )
    }

    /// Puts a listening socket into a slot of the socket map.
    pub fn set_socket(&mut self, slot: u32, socket: &impl AsRawFd) -> Result<()> {
        let mut sockets =
            SockMap::try_from(self.ebpf.map_mut(map::SOCKETS).context("no map SOCKETS")?)?;
        sockets
            .set(slot, socket, 0)
            .with_context(|| format!("socket slot {slot}"))
    }

    /// Attaches the socket lookup program to this thread's network namespace.
    pub fn attach_lookup(&mut self) -> Result<()> {
        let program = self
            .ebpf
            .program_mut("forebay_lookup")
            .context("no program forebay_lookup")?;
        let lookup: &mut SkLookup = program.try_into()?;
        lookup
            .attach(File::open("/proc/thread-self/ns/net")?)
            .context("attach forebay_lookup")?;
        Ok(())
    }

    /// Attaches the decision to an interface of this thread's namespace, natively or in generic mode, as long as this lives.
    pub fn attach(&mut self, interface: &str, generic: bool) -> Result<()> {
        let program = self
            .ebpf
            .program_mut("forebay_xdp")
            .context("no program forebay_xdp")?;
        let xdp: &mut Xdp = program.try_into()?;
        let mode = if generic {
            XdpMode::Skb
        } else {
            XdpMode::Driver
        };
        xdp.attach(interface, mode)
            .with_context(|| format!("attach forebay_xdp to {interface}"))?;
        Ok(())
    }

    fn test_run(
        &self,
        packet: &[u8],
        context: Option<&[u8]>,
        out: &mut [u8],
    ) -> Result<(u32, usize)> {
        let name = self.form.program();
        let program = self
            .ebpf
            .program(name)
            .with_context(|| format!("no program {name}"))?;
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(out),
            ctx_in: context,
            ctx_out: None,
            repeat: 1,
            attrs: TestRunAttrs::new(),
        };
        let result = match self.form {
            Form::Xdp => <&Xdp>::try_from(program)?.test_run(options),
            Form::Tc => <&SchedClassifier>::try_from(program)?.test_run(options),
        };
        let result = result.with_context(|| format!("BPF_PROG_TEST_RUN of {packet:02x?}"))?;
        Ok((result.return_value, result.data_size_out as usize))
    }

    fn set<const SIZE: usize>(&mut self, name: &str, index: u32, value: [u8; SIZE]) -> Result<()>
    where
        [u8; SIZE]: aya::Pod,
    {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))?;
        let mut array: Array<_, [u8; SIZE]> =
            Array::try_from(map).with_context(|| format!("map {name}"))?;
        array
            .set(index, value, 0)
            .with_context(|| format!("entry {index} of {name}"))
    }
}

/// Puts the calling thread into a network namespace of its own, which ends with it.
pub fn fresh_namespace() -> Result<()> {
    #[allow(
        deprecated,
        reason = "the namespace of a thread is no memory-safety matter"
    )]
    rustix::thread::unshare(UnshareFlags::NEWNET)
        .context("cannot make a network namespace: run as root")
}

/// Keeps the calling thread on one processor, the first that it may run on.
pub fn on_one_processor() -> Result<()> {
    let mut set = sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|cpu| set.is_set(*cpu));
    set.clear();
    set.set(first.context("this thread may run nowhere")?);
    sched_setaffinity(None, &set).context("cannot stay on one processor")
}

/// Where the object is: `FOREBAY_EBPF_OBJECT`, else where `cargo xtask build-ebpf` puts it.
pub fn path() -> Result<PathBuf> {
    let path = std::env::var_os("FOREBAY_EBPF_OBJECT").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../target/ebpf/forebay.o"
            ))
        },
        PathBuf::from,
    );
    ensure!(
        path.is_file(),
        "no kernel object at {}: run `cargo xtask build-ebpf`",
        path.display()
    );
    Ok(path)
}

/// Entries that differ, with their indices; pieces without any are passed over in one go.
fn changed<'a, T: bytemuck::Pod>(
    old: &'a Table<T>,
    new: &'a Table<T>,
) -> impl Iterator<Item = (u32, &'a T)> {
    const PIECE: usize = 256;
    let same = |old: &[T], new: &[T]| {
        bytemuck::cast_slice::<T, u8>(old) == bytemuck::cast_slice::<T, u8>(new)
    };
    let differ = !old.is(new);
    let pairs = old.chunks(PIECE).zip(new.chunks(PIECE));
    let pieces = pairs.enumerate().filter(move |_| differ);
    pieces
        .filter(move |(_, (old, new))| !same(old, new))
        .flat_map(move |(piece, (old, new))| {
            let pairs = old.iter().zip(new).enumerate();
            pairs
                .filter(move |(_, (old, new))| bytemuck::bytes_of(*old) != bytemuck::bytes_of(*new))
                .map(move |(i, (_, new))| ((piece * PIECE + i) as u32, new))
        })
}

/// The action of a return code; a redirect goes where the one node off the ingress interface lies.
fn action(returned: u32, tables: &HostTables) -> Result<Action> {
    Ok(match returned {
        1 => Action::Drop,
        2 => Action::Pass,
        3 => Action::Transmit,
        4 => {
            let away = tables.nodes.iter().find(|node| node.ifindex > INGRESS);
            Action::Redirect {
                ifindex: away
                    .context("redirected, but every node is on the ingress")?
                    .ifindex,
            }
        }
        other => anyhow::bail!("the program returned {other}"),
    })
}

/// The action of a classifier's return code. Where it redirects to is not told: a test run shows it by the receiver's MAC.
fn action_of_classifier(returned: u32, bytes: &[u8], tables: &HostTables) -> Result<Action> {
    Ok(match returned.cast_signed() {
        -1 => Action::Pass,
        2 => Action::Drop,
        7 => {
            let away = tables
                .nodes
                .iter()
                .find(|node| node.ifindex > INGRESS && bytes.get(..6) == Some(node.mac.as_slice()));
            away.map_or(Action::Transmit, |node| Action::Redirect {
                ifindex: node.ifindex,
            })
        }
        other => anyhow::bail!("the classifier returned {other}"),
    })
}
