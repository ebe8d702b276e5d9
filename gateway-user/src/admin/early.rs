//! What the endpoints answer while this node starts: a port that is open and silent tells nobody what it waits for.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use tower::ServiceExt;

use super::api::failure;
use super::server::Bound;
use crate::readiness::Readiness;

/// An endpoint that answers already, and will answer with what is set here. Set once.
#[derive(Debug)]
pub struct Early(Arc<OnceLock<Router>>);

impl Early {
    /// Answers at `bound`, with `early` until the rest is there.
    #[must_use]
    pub fn serve(bound: Bound, early: Router) -> Self {
        let rest = Arc::new(OnceLock::new());
        bound.serve(router(Arc::clone(&rest), early));
        Self(rest)
    }

    /// From now on `rest` answers.
    pub fn go_on(self, rest: Router) {
        // Nobody else has it.
        drop(self.0.set(rest));
    }
}

fn router(rest: Arc<OnceLock<Router>>, early: Router) -> Router {
    Router::new().fallback(async move |request: Request| {
        let router = rest.get().unwrap_or(&early).clone();
        router.oneshot(request).await
    })
}

/// The admin endpoint meanwhile: why there is nothing to tell yet.
pub fn admin(readiness: Readiness) -> Router {
    Router::new().fallback(async move || {
        let reason = readiness.reason();
        let reason = reason
            .as_ref()
            .map_or("it has just started", |reason| reason.as_str());
        failure(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("this node starts: {reason}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use http_body_util::BodyExt;

    use super::*;
    use crate::readiness::Progress;

    async fn ask(router: &Router, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn what_is_waited_for_is_told_until_the_rest_is_there() {
        let readiness = Readiness::default();
        let rest = Arc::new(OnceLock::new());
        let router = router(Arc::clone(&rest), admin(readiness.clone()));
        readiness.set(&Progress {
            waits_for: Some("not read yet: Gateways".to_owned()),
            ..Progress::default()
        });
        let (status, body) = ask(&router, "/status").await;
        assert_eq!(status, 503);
        assert_eq!(
            body,
            r#"{"error":"this node starts: not read yet: Gateways"}"#
        );
        let late = Router::new().route("/status", get(async || "well"));
        rest.set(late).unwrap();
        assert_eq!(ask(&router, "/status").await, (200, "well".to_owned()));
        assert_eq!(ask(&router, "/other").await.0, 404);
    }
}
