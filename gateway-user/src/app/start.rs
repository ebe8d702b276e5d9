//! The start of the parts: what each is given, and what is waited for before.

use std::sync::{Arc, OnceLock};

use super::kernel::Kernel;
use super::source::Source;
use super::view::Shared;
use super::{AGAIN, ALLOCATIONS, RunError};
use crate::admin::server::{BindError, Bound, bind};
use crate::allocate::Allocations;
use crate::args::{AccessLogArg, Endpoint};
use crate::datapath::{AttachState, Driver, Lock};
use crate::drain::Signals;
use crate::file::keys::{self, KeyError};
use crate::k8s::Remark;
use crate::proxy::access_log::Destination;
use crate::proxy::headroom::Headroom;
use crate::proxy::held::Held;
use crate::proxy::stats::Stats;
use crate::proxy::{Mode, OpenUdp, Proxy, ProxySettings, Timers};
use crate::readiness::{Progress, Readiness};
use crate::settings::{self, Datapath, Settings};
use crate::translate::{Context, translate};

/// Opens the endpoints of admin, metrics and readiness.
pub(super) async fn endpoints(settings: &Settings) -> Result<[Bound; 3], BindError> {
    let bound = [
        bind("--admin", &settings.admin).await?,
        bind("--metrics", &settings.metrics).await?,
        bind("--ready", &settings.ready).await?,
    ];
    for (name, bound) in ["admin", "metrics", "readiness"].iter().zip(&bound) {
        tracing::info!(endpoint = name, address = bound.describe(), "listening");
    }
    Ok(bound)
}

/// Says which uplinks are served in another way than the best, and why.
pub(super) async fn tell_fallbacks(shared: &Shared, source: &Source) {
    let Some(kernel) = shared.kernel() else {
        return;
    };
    let status = kernel.status().await;
    for uplink in status.iter().flat_map(|status| &status.interfaces) {
        if let (AttachState::Attached, Some(why)) = (uplink.state, &uplink.note) {
            let (interface, mode) = (&uplink.interface, uplink.mode.name());
            source.remark(Remark {
                reason: "NoNativeXDP",
                note: format!(
                    "packets of {interface} are taken by {mode}, which costs more than native XDP: {why}"
                ),
            });
        }
    }
}

/// Starts the proxy with what the datapath gives it; `late` gets the datapath's thread once it runs.
pub(super) fn start_proxy(
    settings: &Settings,
    readiness: &Readiness,
    driver: Option<&mut Driver>,
    held: Option<Arc<Held>>,
    late: &Arc<OnceLock<Kernel>>,
) -> Result<Proxy, RunError> {
    let stats = Arc::new(Stats::new(settings.workers));
    let mut for_proxy = proxy_settings(settings, readiness);
    let Some(driver) = driver else {
        return Ok(Proxy::start(for_proxy, stats)?);
    };
    for_proxy.tags = Some(Arc::new(driver.session_tags()));
    for_proxy.held = held;
    for_proxy.open_udp = udp_by_kernel(Arc::clone(late));
    let proxy = Proxy::start(for_proxy, stats)?;
    proxy.inherit(driver.inherit()?.into_values());
    Ok(proxy)
}

fn proxy_settings(settings: &Settings, readiness: &Readiness) -> ProxySettings {
    let ready = readiness.clone();
    ProxySettings {
        workers: settings.workers,
        mode: match settings.datapath {
            Datapath::Off => Mode::Direct,
            Datapath::Auto | Datapath::Native | Datapath::Tcx | Datapath::Generic => Mode::Steered,
        },
        max_segment: None,
        timers: Timers::default(),
        access_log: match &settings.access_log {
            AccessLogArg::Off => Destination::Off,
            AccessLogArg::Stdout => Destination::Stdout,
            AccessLogArg::File(path) => Destination::File(path.clone()),
        },
        seed: name_seed(&settings.node_name),
        ready: Box::new(move || ready.reason().is_none()),
        ready_endpoint: match settings.ready {
            Endpoint::Tcp(address) => Some(address),
            Endpoint::Off | Endpoint::Unix(_) => None,
        },
        headroom: Headroom::of_process(),
        ..ProxySettings::default()
    }
}

/// UDP sockets on VIPs are opened by whoever holds the privileges of the datapath.
fn udp_by_kernel(kernel: Arc<OnceLock<Kernel>>) -> Box<OpenUdp> {
    Box::new(move |vip| match kernel.get() {
        Some(kernel) => kernel.open_udp(vip),
        None => Err("the datapath thread has not started".into()),
    })
}

/// A number that differs from node to node and is the same after a restart.
fn name_seed(name: &str) -> u64 {
    gateway_common::hash::sip13([0, 0], name.as_bytes())
}

/// What was given out before; nothing if the file is not there.
pub(super) fn load_allocations(settings: &Settings) -> Allocations {
    let path = settings.state_dir.join(ALLOCATIONS);
    let of_files = matches!(settings.source, settings::Source::Files(_));
    let Some(bytes) = std::fs::read(&path).ok().filter(|_| of_files) else {
        return Allocations::default();
    };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!("{} is damaged and is not used: {error}", path.display());
        Allocations::default()
    })
}

/// Waits until an API server has told all there is to know at first; files have been read. False: told to stop meanwhile.
pub(super) async fn sync(
    source: &mut Source,
    settings: &Settings,
    readiness: &Readiness,
    signals: &mut Signals,
) -> bool {
    let mut tick = tokio::time::interval(AGAIN);
    while let Some(waits_for) = source.waits_for(settings.datapath != Datapath::Off) {
        readiness.set(&Progress {
            waits_for: Some(waits_for),
            ..Progress::default()
        });
        tokio::select! {
            () = source.next() => {}
            () = signals.next() => return false,
            _ = tick.tick() => {}
        }
    }
    true
}

/// Sets up the kernel half with the keys that the nodes share; none with `--datapath off`.
pub(super) fn open_kernel(
    settings: &Settings,
    source: &Source,
    lock: Option<Lock>,
) -> Result<Option<Driver>, RunError> {
    let inputs = source.inputs();
    let replicas = translate(
        inputs,
        &Context {
            on_cluster: source.on_cluster(),
            allocations: &Allocations::default(),
            zone: None,
        },
    )
    .snapshot
    .replicas
    .len();
    if settings.datapath == Datapath::Off {
        // Nothing is hashed, but nodes that disagree later would be worse than none.
        if replicas > 1 && keys::from_secret(inputs)?.is_none() {
            return Err(KeyError::Missing(replicas).into());
        }
        Ok(None)
    } else {
        let keys = keys::load(inputs, replicas, &settings.state_dir)?;
        Ok(Kernel::open(settings, &keys, lock)?)
    }
}
