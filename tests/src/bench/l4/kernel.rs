//! The benchmark object in the kernel: loading, tables for one VIP and two nodes, test runs.
//!
//! Nothing is pinned: programs, maps and links end with this process.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, Map};
use aya::programs::{
    ProgramError, SchedClassifier, TestRun, TestRunAttrs, TestRunOptions, TestRunResult, Xdp,
    XdpMode,
    links::LinkOrder,
    tc::{SchedClassifierLinkId, TcAttachOptions, TcAttachType},
    xdp::XdpLinkId,
};
use aya::{Ebpf, EbpfLoader};
use gateway_common::abi::{
    ABI_VERSION, Config, MAX_NODES, NodeEntry, ROWS, Row, VIP_SLOTS, VipEntry, VipKey, map,
    node_flag, vip_flag,
};
use gateway_common::hash::vip_slot;

use super::frames::{PORT, VIP};

/// This node and the one that packets are forwarded to.
pub(super) const SELF: u16 = 1;
pub(super) const OTHER: u16 = 2;

const CONFIG: usize = size_of::<Config>();
const NODE: usize = size_of::<NodeEntry>();
const ENTRY: usize = size_of::<VipEntry>();

/// The loaded object.
pub(super) struct Kernel {
    ebpf: Ebpf,
    rows: Option<Row>,
}

impl Kernel {
    /// Loads the object and verifies the programs that are named.
    pub(super) fn load(object: &Path, programs: &[&str]) -> Result<Self> {
        let bytes = fs::read(object).with_context(|| {
            format!(
                "cannot read {}: build the kernel programs with the feature `bench`",
                object.display()
            )
        })?;
        let mut ebpf = EbpfLoader::new()
            .load(&bytes)
            .context("cannot load the benchmark object")?;
        for name in programs {
            xdp(&mut ebpf, name)?
                .load()
                .with_context(|| format!("the kernel refuses the program {name}"))?;
        }
        Ok(Self { ebpf, rows: None })
    }

    /// Sets an element of an array map.
    pub(super) fn set<V: aya::Pod>(&mut self, map: &str, index: u32, value: V) -> Result<()> {
        let array = self
            .ebpf
            .map_mut(map)
            .with_context(|| format!("the object has no map {map}"))?;
        Array::try_from(array)?
            .set(index, value, 0)
            .with_context(|| format!("cannot write {map}[{index}]"))
    }

    /// Reads an element of an array map.
    pub(super) fn get<V: aya::Pod>(&mut self, map: &str, index: u32) -> Result<V> {
        let array = self
            .ebpf
            .map_mut(map)
            .with_context(|| format!("the object has no map {map}"))?;
        Array::try_from(array)?
            .get(&index, 0)
            .with_context(|| format!("cannot read {map}[{index}]"))
    }

    /// The file descriptor of an array map.
    pub(super) fn fd(&self, map: &str) -> Result<BorrowedFd<'_>> {
        match self.ebpf.map(map) {
            Some(Map::Array(data)) => Ok(data.fd().as_fd()),
            _ => bail!("the object has no array map {map}"),
        }
    }

    /// A row of the steering table as the kernel sees it.
    pub(super) fn row(&self, row: u32) -> Result<u64> {
        let rows = self.ebpf.map(map::ROWS).context("the object has no rows")?;
        let rows = Array::<_, u64>::try_from(rows)?;
        rows.get(&row, 0).context("cannot read a row")
    }

    /// Writes the VIP and both nodes; the other node is on-link behind `ifindex`.
    pub(super) fn tables(&mut self, ifindex: u32) -> Result<()> {
        let vip = VipKey::v4(VIP, PORT.to_be_bytes(), 6);
        let address = VipKey::v4(VIP, [0; 2], 0);
        let mut taken = Vec::new();
        for key in [vip, address] {
            let first = vip_slot(&key, 0);
            let slot = (first..)
                .map(|s| s % VIP_SLOTS)
                .find(|s| !taken.contains(s))
                .unwrap_or(first);
            taken.push(slot);
            let entry = VipEntry {
                key,
                flags: vip_flag::USED,
                ..VipEntry::default()
            };
            self.set::<[u8; ENTRY]>(map::VIPS, slot, bytemuck::cast(entry))?;
        }
        let usable = node_flag::LISTED | node_flag::READY | node_flag::RESOLVED;
        for (index, flags) in [
            (SELF, usable | node_flag::SELF),
            (OTHER, usable | node_flag::ON_LINK),
        ] {
            let last = index as u8;
            let entry = NodeEntry {
                address: VipKey::v4([203, 0, 113, last], [0; 2], 0).address,
                mac: [2, 0, 0, 0, 1, last],
                source_mac: [2, 0, 0, 0, 1, SELF as u8],
                ifindex,
                flags,
                ..NodeEntry::default()
            };
            ensure!(u32::from(index) < MAX_NODES, "the node table is too small");
            self.set::<[u8; NODE]>(map::NODES, u32::from(index), bytemuck::cast(entry))?;
        }
        self.configure(0)
    }

    /// Writes the configuration with these flags. The proxy's heartbeat is not watched, second-chance hops are not limited.
    pub(super) fn configure(&mut self, flags: u32) -> Result<()> {
        let config = Config {
            abi_version: ABI_VERSION,
            self_index: u32::from(SELF),
            flags,
            tunnel_port: 17410u16.to_be_bytes(),
            probe_port: 17411u16.to_be_bytes(),
            hash_key: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
            tunnel_source: VipKey::v4([203, 0, 113, SELF as u8], [0; 2], 0).address,
            ..Config::default()
        };
        self.set::<[u8; CONFIG]>(map::CONFIG, 0, bytemuck::cast(config))
    }

    /// Makes every row of the table this one.
    pub(super) fn steer_all(&mut self, row: Row) -> Result<()> {
        if self.rows != Some(row) {
            for index in 0..ROWS {
                self.set(map::ROWS, index, row.0)?;
            }
            self.rows = Some(row);
        }
        Ok(())
    }

    /// Repeats a program on a packet, without effects outside.
    pub(super) fn test_run(
        &mut self,
        program: &str,
        packet: &[u8],
        repeat: u32,
    ) -> Result<TestRunResult> {
        let options = TestRunOptions {
            data_in: Some(packet),
            repeat,
            ..TestRunOptions::new()
        };
        let result = xdp(&mut self.ebpf, program)?.test_run(options);
        result.with_context(|| format!("cannot run the program {program}"))
    }

    /// Runs a program on live frames that arrive at the interface `ifindex` of this thread's namespace.
    pub(super) fn live_run(
        &mut self,
        program: &str,
        packet: &[u8],
        ifindex: u32,
        repeat: u32,
    ) -> Result<()> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [0, packet.len() as u32, 0, ifindex, 0, 0]
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect();
        let attrs = TestRunAttrs::new().xdp_live_frames(64);
        let options = TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            repeat,
            attrs,
            ..TestRunOptions::new()
        };
        let result = xdp(&mut self.ebpf, program)?.test_run(options);
        result
            .map(|_| ())
            .with_context(|| format!("cannot send frames with the program {program}"))
    }

    /// Attaches a program natively to an interface of this thread's namespace.
    pub(super) fn attach(&mut self, program: &str, interface: &str) -> Result<XdpLinkId> {
        self.attach_as(program, interface, XdpMode::Driver)
    }

    /// Attaches an XDP program in this mode.
    pub(super) fn attach_as(
        &mut self,
        program: &str,
        interface: &str,
        mode: XdpMode,
    ) -> Result<XdpLinkId> {
        let link = xdp(&mut self.ebpf, program)?.attach(interface, mode);
        link.with_context(|| format!("cannot attach {program} to {interface} ({mode:?})"))
    }

    /// Attaches the classifier by tcx.
    pub(super) fn attach_tcx(&mut self, interface: &str) -> Result<SchedClassifierLinkId> {
        let program = classifier(&mut self.ebpf)?;
        if program.fd().is_err() {
            program.load().context("the kernel refuses forebay_tc")?;
        }
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        program
            .attach_with_options(interface, TcAttachType::Ingress, options)
            .with_context(|| format!("cannot attach forebay_tc to {interface}"))
    }

    /// Ends it.
    pub(super) fn detach_tcx(&mut self, link: SchedClassifierLinkId) -> Result<()> {
        let detached = classifier(&mut self.ebpf)?.detach(link);
        detached.context("cannot detach forebay_tc")
    }

    /// Ends an attachment.
    pub(super) fn detach(&mut self, program: &str, link: XdpLinkId) -> Result<()> {
        xdp(&mut self.ebpf, program)?
            .detach(link)
            .with_context(|| format!("cannot detach {program}"))
    }
}

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    let program = ebpf
        .program_mut("forebay_tc")
        .context("the object has no program forebay_tc")?;
    Ok(program.try_into()?)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?;
    program
        .try_into()
        .map_err(|error: ProgramError| anyhow::anyhow!("{name} is no XDP program: {error}"))
}
