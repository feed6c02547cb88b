//! One HTTP request of the API server: its limits, and the words for what is wrong with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::decide::{self, Decision, Injector, Policy};
use super::metrics::{Outcome, Series};
use super::review::{self, Answer, Question, shown};
use crate::admin::{Body, body, text};
use crate::metrics::seconds;

/// Where reviews are sent.
pub const PATH: &str = "/mutate";
/// Largest body that is read. Objects of Kubernetes have 3 MiB at most; a review may hold two.
pub const MAX_BODY: usize = 8 << 20;
/// Bytes of bodies that are worked on at once: what bounds the process's memory.
const BUDGET: usize = 2 * MAX_BODY;
/// The unit of the budget.
const UNIT: usize = 1 << 10;

/// Answers reviews. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    policy: Arc<Policy>,
    injector: Injector,
    series: Series,
    budget: Arc<Semaphore>,
    /// For a body to arrive, and for its turn.
    limit: Duration,
}

/// What is wrong with a request.
struct Bad(StatusCode, Outcome, String);

impl Bad {
    fn request(status: StatusCode, said: impl Into<String>) -> Self {
        Bad(status, Outcome::BadRequest, said.into())
    }
}

impl Service {
    /// A service by this policy; `limit` is the time for a body to arrive.
    pub fn new(policy: Policy, injector: Injector, limit: Duration, series: Series) -> Self {
        Service {
            policy: Arc::new(policy),
            injector,
            series,
            budget: Arc::new(Semaphore::new(BUDGET / UNIT)),
            limit,
        }
    }

    /// Answers, and counts what became of it.
    pub async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let begun = Instant::now();
        let (outcome, response) = match self.reviewed(request).await {
            Ok(answered) => answered,
            Err(Bad(status, outcome, said)) => {
                let (code, why) = (status.as_u16(), shown(&said, 300));
                tracing::warn!(status = code, why, "a request could not be answered");
                let mut response = text(status, said + "\n");
                if status == StatusCode::METHOD_NOT_ALLOWED {
                    let allow = HeaderValue::from_static("POST");
                    response.headers_mut().insert(ALLOW, allow);
                }
                (outcome, response)
            }
        };
        let label = [outcome.as_str()];
        self.series.requests.with_label_values(&label).inc();
        let took = seconds(begun.elapsed());
        self.series.duration.with_label_values(&label).observe(took);
        response
    }

    async fn reviewed(&self, request: Request<Incoming>) -> Result<(Outcome, Response<Body>), Bad> {
        check(&request)?;
        let size = request.body().size_hint().upper();
        let size = size.map_or(MAX_BODY, |s| usize::try_from(s).unwrap_or(MAX_BODY));
        let units = u32::try_from(size.min(MAX_BODY).div_ceil(UNIT)).unwrap_or(u32::MAX);
        let turn = timeout(self.limit, self.budget.acquire_many(units)).await;
        // The semaphore is never closed, so only the limit is an error.
        let Ok(Ok(_turn)) = turn else {
            let said = format!("too many reviews at once: no turn within {:?}", self.limit);
            return Err(Bad(
                StatusCode::SERVICE_UNAVAILABLE,
                Outcome::Overloaded,
                said,
            ));
        };
        let body = whole(request.into_body(), self.limit).await?;
        let question = review::parse(&body)
            .map_err(|e| Bad::request(StatusCode::BAD_REQUEST, e.to_string()))?;
        drop(body);
        let (decision, panicked) = decide::safely(&question, &self.policy, &self.injector);
        if panicked {
            self.series.panics.inc();
        }
        log(&question, &decision);
        Ok(respond(&question, &decision))
    }
}

fn check(request: &Request<Incoming>) -> Result<(), Bad> {
    let path = request.uri().path();
    if path != PATH {
        let said = format!("no such path; reviews are sent to POST {PATH}");
        return Err(Bad::request(StatusCode::NOT_FOUND, said));
    }
    if request.method() != Method::POST {
        let said = "POST only: this is an admission webhook";
        return Err(Bad::request(StatusCode::METHOD_NOT_ALLOWED, said));
    }
    let kind = request.headers().get(CONTENT_TYPE);
    let kind = kind.and_then(|k| k.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let said = "expected content-type application/json";
        return Err(Bad::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, said));
    }
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
    match length.is_some_and(|l| l > MAX_BODY as u64) {
        true => Err(too_large()),
        false => Ok(()),
    }
}

fn too_large() -> Bad {
    let said = format!("the body is larger than {MAX_BODY} bytes");
    Bad::request(StatusCode::PAYLOAD_TOO_LARGE, said)
}

async fn whole(body: Incoming, limit: Duration) -> Result<Bytes, Bad> {
    let read = Limited::new(body, MAX_BODY).collect();
    match timeout(limit, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            let said = format!("the body did not come whole: {error}");
            Err(Bad::request(StatusCode::BAD_REQUEST, said))
        }
        Err(_) => {
            let said = format!("the body did not come within {limit:?}");
            Err(Bad::request(StatusCode::REQUEST_TIMEOUT, said))
        }
    }
}

fn respond(question: &Question, decision: &Decision) -> (Outcome, Response<Body>) {
    let outcome = decision.outcome;
    let answer = match (outcome, &decision.why) {
        (Outcome::Rejected, why) => {
            let why = why.as_deref().unwrap_or_default();
            Answer::refused(question, outcome.as_str(), &format!("agent-shim: {why}"))
        }
        _ => Answer::allowed(question, outcome.as_str(), &decision.warnings),
    };
    let answer = match &decision.patch {
        Some(patch) => answer.with_patch(patch),
        None => Ok(answer),
    };
    // Strings and numbers always become JSON; where they did not, no pod may be blocked by it.
    match answer.and_then(|a| a.body()) {
        Ok(json) => (outcome, json_response(json)),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            let outcome = Outcome::FailedOpen;
            let plain = Answer::allowed(question, outcome.as_str(), &[]);
            (outcome, json_response(plain.body().unwrap_or_default()))
        }
    }
}

fn json_response(json: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(body(json));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn log(question: &Question, decision: &Decision) {
    let namespace = shown(question.namespace.as_deref().unwrap_or_default(), 63);
    let named = question.name.as_deref().filter(|n| !n.is_empty());
    let metadata = question.object.get("metadata");
    let generated = || metadata.and_then(|m| m.get("name").or(m.get("generateName"))?.as_str());
    let pod = shown(named.or_else(generated).unwrap_or_default(), 253);
    let outcome = decision.outcome.as_str();
    let dry_run = question.dry_run.unwrap_or(false);
    let why = decision.why.as_deref().map(|w| shown(w, 500));
    let warnings = decision.warnings.len();
    match decision.outcome {
        Outcome::Injected => {
            tracing::info!(namespace, pod, dry_run, warnings, "injected");
            for warning in &decision.warnings {
                let warning = shown(warning, 500);
                tracing::warn!(namespace, pod, warning, "about this pod");
            }
        }
        Outcome::Rejected => tracing::warn!(namespace, pod, dry_run, why, "rejected"),
        Outcome::FailedOpen => {
            tracing::error!(
                namespace,
                pod,
                dry_run,
                why,
                "failed: let through unchanged"
            );
        }
        _ => tracing::debug!(namespace, pod, dry_run, why, outcome, "unchanged"),
    }
}
