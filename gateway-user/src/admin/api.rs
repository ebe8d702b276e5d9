//! The routes of the admin and readiness endpoints. Answers are JSON; what they hold is the module's contract with the
//! subcommands in `cli`.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::sync::Notify;

use super::certs::{self, State as CertificateState};
use crate::app::view::Shared;
use crate::l7::question::{Question, answer};
use crate::readiness::Readiness;
use crate::status;

/// `/config`, `/status`, `/stats`, `/endpoints`, `/certs`, `/explain`, `/datapath`, `POST /drain`.
pub fn router(shared: Arc<Shared>, drain: Arc<Notify>) -> Router {
    let ask_drain = async move |State(shared): State<Arc<Shared>>| {
        // Kept until the control task looks, so a request is never lost.
        drain.notify_one();
        shared.drain_begins().await;
        Json(json!({"draining": true}))
    };
    Router::new()
        .route("/config", get(config))
        .route("/status", get(all_statuses))
        .route("/stats", get(stats))
        .route("/endpoints", get(endpoints))
        .route("/certs", get(certificates))
        .route("/explain", get(explanation))
        .route("/datapath", get(datapath))
        .route("/drain", post(ask_drain))
        .fallback(async || failure(StatusCode::NOT_FOUND, "no such page; there are /config /status /stats /endpoints /certs /explain /datapath and POST /drain"))
        .with_state(shared)
}

/// `/healthz/ready` and `/healthz/live`.
pub fn readiness(readiness: Readiness) -> Router {
    let ready = move || async move { readiness.answer() };
    Router::new()
        .route("/healthz/ready", get(ready))
        .route("/healthz/live", get(async || "alive\n"))
}

pub(super) fn failure(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": message}))).into_response()
}

async fn config(State(shared): State<Arc<Shared>>) -> Response {
    Json(shared.view().snapshot.canonical()).into_response()
}

async fn all_statuses(State(shared): State<Arc<Shared>>) -> Response {
    let view = shared.view();
    let well = status::well(&view.statuses) && view.problems.is_empty();
    let mut warned = certs::list(&view.snapshot, certs::now());
    warned.retain(|one| one.state != CertificateState::Valid);
    let datapath = match shared.kernel() {
        Some(kernel) => kernel.status().await,
        None => None,
    };
    Json(json!({
        "node": shared.node,
        "well": well,
        "generation": view.snapshot.generation,
        "drain": shared.drain(),
        "open_connections": shared.proxy.open_connections(),
        "replicas": view.snapshot.replicas,
        "datapath": datapath,
        "objects": *view.statuses,
        "problems": view.problems,
        "certificates": warned,
    }))
    .into_response()
}

async fn stats(State(shared): State<Arc<Shared>>) -> Response {
    Json(shared.proxy.stats().read()).into_response()
}

async fn endpoints(State(shared): State<Arc<Shared>>) -> Response {
    Json(shared.proxy.endpoints()).into_response()
}

async fn certificates(State(shared): State<Arc<Shared>>) -> Response {
    let listed = certs::list(&shared.view().snapshot, certs::now());
    let well = listed
        .iter()
        .all(|one| one.state == CertificateState::Valid);
    Json(json!({"well": well, "certificates": listed})).into_response()
}

async fn datapath(State(shared): State<Arc<Shared>>) -> Response {
    match shared.kernel() {
        Some(kernel) => Json(kernel.status().await).into_response(),
        None => Json(serde_json::Value::Null).into_response(),
    }
}

async fn explanation(
    State(shared): State<Arc<Shared>>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Response {
    match Question::from_pairs(&pairs) {
        Ok(question) => Json(answer(&shared.view().snapshot, &question)).into_response(),
        Err(error) => failure(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}
