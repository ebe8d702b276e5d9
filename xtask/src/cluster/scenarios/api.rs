//! Requests to the API server without a process for each: `kubectl proxy` in the hub has the administrator's rights.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::super::{running::Running, wait::until};
use super::http::{Answer, ask};

/// In the hub, where nobody else listens.
const PORT: u16 = 8001;
/// Longest wait for an answer.
const BOUND: Duration = Duration::from_secs(20);
/// The same for the removal of many objects, which comes when all are gone.
const MANY: Duration = Duration::from_secs(300);
/// Longest wait for the proxy.
const PATIENCE: Duration = Duration::from_secs(60);
/// How a change is written.
const MERGE: &str = "application/merge-patch+json";

/// The running proxy; dropped, it ends.
pub(super) struct Api {
    proxy: Child,
}

impl Api {
    pub(super) fn start(running: &Running<'_>) -> Result<Self> {
        let mut proxy = running.client();
        proxy
            .arg(running.name.kubectl())
            .args(["proxy", &format!("--port={PORT}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let api = Self {
            proxy: proxy.spawn().context("cannot run setpriv")?,
        };
        until(running.interrupt, "kubectl proxy", PATIENCE, || {
            Ok(api.get("/version").ok())
        })?;
        Ok(api)
    }

    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.send("GET", path, "", None)
    }

    pub(super) fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.send("POST", path, "application/json", Some(object))
    }

    /// Changes only the fields that are given; lists are replaced.
    pub(super) fn change(&self, path: &str, fields: &Value) -> Result<Value> {
        self.send("PATCH", path, MERGE, Some(fields))
    }

    pub(super) fn delete(&self, path: &str) -> Result<Value> {
        self.send("DELETE", path, "", None)
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        // Version 1.0: the answer comes in one piece and ends with the connection.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT);
        let bound = if method == "DELETE" { MANY } else { BOUND };
        let Answer { status, body } = ask(to, &request, bound)
            .map_err(|fault| anyhow!("{method} {path}: no answer ({fault:?})"))?;
        ensure!(
            (200..300).contains(&status),
            "{method} {path}: {status} {body}"
        );
        serde_json::from_str(&body).with_context(|| format!("{method} {path}: no JSON"))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.proxy.kill().ok();
        self.proxy.wait().ok();
    }
}
