//! The HTTP/1.1 routes: MLServer's, and some that only tests ask.
//!
//! | route | what it does |
//! |---|---|
//! | `POST /echo` | sends the body back as it arrives, trailers too (the caller says `te: trailers`) |
//! | `POST /sink` | reads the body and says how many bytes there were |
//! | `GET /sse` | the events that the test pushes, until it ends them |
//! | `GET /hang` | answers when released |
//! | `GET /large?bytes=N` | N bytes: the n-th is `n % 251` |
//! | `GET /headers` | the request's headers as a JSON object |
//! | `GET /trailers` | chunked, with the trailer `x-checksum` (to a caller that says `te: trailers`) |
//! | `GET /reset` | half of the declared body, then RST |
//! | `GET /close` | closes without an answer |

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, SERVER, TRAILER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::{Asked, BoxError, Reply};
use super::calls::Entry;
use super::wire::Tap;
use super::world::{READY, UNAVAILABLE, UNKNOWN, World};
use crate::endpoint::Protocol;

/// What is sent before `/reset` resets.
const HALF: usize = 1000;

/// Answers one request; an error closes the connection without an answer.
pub(super) async fn answer(
    request: Request<Incoming>,
    tap: Arc<Tap>,
    world: Arc<World>,
) -> Result<Response<Reply>, BoxError> {
    let entry = world.journal.begin(Protocol::Http, &tap, &request);
    let (head, body) = request.into_parts();
    let to = To {
        entry: entry.clone(),
        world,
        tap,
    };
    let mut asked = Asked::new(body, entry);
    let path = head.uri.path();
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let get = head.method == Method::GET;
    let post = head.method == Method::POST;
    let mut response = match (segments.as_slice(), get, post) {
        (["echo"], _, true) => to.echo(&head.headers, asked),
        (["sse"], true, _) => to.events(),
        (["large"], true, _) => to.large(head.uri.query()),
        (["reset"], true, _) => to.reset(),
        (["v2", "models", _, "infer"], _, true) if to.world.settings().breaks_off => {
            asked.drain().await?;
            to.reset()
        }
        (["close"], true, _) => {
            asked.drain().await?;
            return Err("closed without an answer, as asked".into());
        }
        (["hang"], true, _) => {
            let released = to.world.release();
            asked.drain().await?;
            released.await;
            to.json(StatusCode::OK, &json!({"released": true}))
        }
        (["trailers"], true, _) => to.trailers(),
        (["headers"], true, _) => to.json(StatusCode::OK, &headers(&head.headers)),
        (["sink"], _, true) => {
            let mut bytes = 0;
            while let Some(frame) = asked.next().await? {
                bytes += frame.data_ref().map_or(0, Bytes::len);
            }
            to.json(StatusCode::OK, &json!({ "bytes": bytes }))
        }
        _ => to.mlserver(&segments, &head, &mut asked).await?,
    };
    let server = HeaderValue::from_static("uvicorn");
    response.headers_mut().insert(SERVER, server);
    Ok(response)
}

/// One call to answer.
struct To {
    entry: Arc<Entry>,
    world: Arc<World>,
    tap: Arc<Tap>,
}

impl To {
    async fn mlserver(
        &self,
        segments: &[&str],
        head: &http::request::Parts,
        asked: &mut Asked,
    ) -> Result<Response<Reply>, BoxError> {
        let body = asked.all().await?;
        let ["v2", route @ ..] = segments else {
            return Ok(self.json(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"})));
        };
        let wanted = match route {
            ["repository", ..] | [.., "infer"] => Method::POST,
            _ => Method::GET,
        };
        let known = matches!(
            route,
            [] | ["health", "live" | "ready"]
                | ["repository", "index"]
                | ["repository", "models", _, "load" | "unload"]
                | ["models", _]
                | ["models", _, "ready" | "infer"]
                | ["models", _, "versions", _, "ready" | "infer"]
        );
        if !known {
            return Ok(self.json(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"})));
        }
        if head.method != wanted {
            let detail = json!({"detail": "Method Not Allowed"});
            let mut response = self.json(StatusCode::METHOD_NOT_ALLOWED, &detail);
            let allow = HeaderValue::from_str(wanted.as_str())?;
            response.headers_mut().insert(ALLOW, allow);
            return Ok(response);
        }
        Ok(match route {
            [] => self.json(
                StatusCode::OK,
                &json!({"name": "mlserver", "version": super::VERSION, "extensions": []}),
            ),
            ["health", "live"] if self.world.settings().live => self.empty(StatusCode::OK),
            ["health", "live"] => self.empty(StatusCode::SERVICE_UNAVAILABLE),
            ["health", _] if self.world.is_ready() => self.empty(StatusCode::OK),
            ["health", _] => self.empty(StatusCode::BAD_REQUEST),
            ["repository", "index"] => self.index(&body),
            ["repository", "models", name, "load"] => self.load(name).await,
            ["repository", "models", name, _] if self.world.put(name, UNAVAILABLE) => {
                self.empty(StatusCode::OK)
            }
            ["models", name, .., "infer"] => {
                let hangs = self.world.settings().worker_hangs;
                if hangs {
                    self.world.release().await;
                }
                self.infer(name, &head.headers, &body)
            }
            ["models", name, .., "ready"] => match self.world.model_state(name).as_deref() {
                Some(READY) => self.empty(StatusCode::OK),
                Some(UNKNOWN) => self.empty(StatusCode::BAD_REQUEST),
                _ => self.not_found(name),
            },
            ["models", name] if self.world.model_state(name).is_some() => self.json(
                StatusCode::OK,
                &json!({"name": name, "versions": [], "platform": "", "inputs": [], "outputs": [], "parameters": {}}),
            ),
            ["repository", _, name, ..] | ["models", name, ..] => self.not_found(name),
            _ => self.json(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"})),
        })
    }

    fn index(&self, body: &Bytes) -> Response<Reply> {
        if body.is_empty() {
            return self.missing(&["body"]);
        }
        let Ok(asked) = serde_json::from_slice::<Value>(body) else {
            return self.malformed();
        };
        let only_ready = asked["ready"] == json!(true);
        let settings = self.world.settings();
        let models = settings.models.iter();
        let shown: Vec<Value> = models
            .filter(|m| !only_ready || m.state == READY)
            .map(|m| {
                let mut shown = json!({"name": m.name, "state": m.state, "reason": ""});
                if !m.version.is_empty() {
                    shown["version"] = json!(m.version);
                }
                shown
            })
            .collect();
        drop(settings);
        self.json(StatusCode::OK, &Value::Array(shown))
    }

    /// MLServer finishes a load whose caller has gone, over HTTP.
    async fn load(&self, name: &str) -> Response<Reply> {
        let delay = self.world.load_begins(name);
        let (world, name) = (self.world.clone(), name.to_string());
        let load = tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            world.load_ends(&name)
        });
        // It can fail only with the whole runtime.
        match load.await {
            Ok(Err(error)) => {
                self.json(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "error": error }))
            }
            _ => self.empty(StatusCode::OK),
        }
    }

    /// Any model answers, so that a test need not set one up.
    fn infer(&self, name: &str, headers: &HeaderMap, body: &Bytes) -> Response<Reply> {
        let (dead, lost) = {
            let settings = self.world.settings();
            let lost = settings.lost.iter().any(|l| l == name);
            (settings.worker_dead, lost)
        };
        if dead {
            let mut response = Response::new(Reply::whole(&self.entry, "Internal Server Error"));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            let kind = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            return response;
        }
        if lost {
            let error = format!("mlserver.errors.ModelNotFound: Model {name} not found");
            return self.json(StatusCode::NOT_FOUND, &json!({ "error": error }));
        }
        let parsed = serde_json::from_slice::<Value>(body);
        let is_json = headers
            .get(CONTENT_TYPE)
            .is_none_or(|kind| kind.as_bytes().starts_with(b"application/json"));
        if parsed.is_err() && is_json && !headers.contains_key("inference-header-content-length") {
            return self.malformed();
        }
        let id = match &parsed {
            Ok(Value::Object(asked)) => asked.get("id").cloned(),
            _ => None,
        };
        let output = match &self.world.settings().said {
            Some(said) => {
                json!({"name": "predict", "shape": [1, 1], "datatype": "BYTES", "data": [said]})
            }
            None => json!({"name": "predict", "shape": [1, 1], "datatype": "INT64", "data": [1]}),
        };
        let answer = json!({
            "model_name": name,
            "model_version": "v0.1.0",
            "id": id.unwrap_or_else(|| json!("1")),
            "parameters": {},
            "outputs": [output],
        });
        let mut response = self.json(StatusCode::OK, &answer);
        let headers = response.headers_mut();
        headers.insert("ce-specversion", HeaderValue::from_static("0.3"));
        headers.insert("ce-id", HeaderValue::from_static("1"));
        response
    }

    fn echo(&self, headers: &HeaderMap, mut asked: Asked) -> Response<Reply> {
        let reply = Reply::script(&self.entry, |out| async move {
            while let Some(frame) = asked.next().await? {
                out.frame(frame).await?;
            }
            Ok(())
        });
        let mut response = Response::new(reply);
        for name in [CONTENT_TYPE, TRAILER] {
            if let Some(value) = headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        response
    }

    fn events(&self) -> Response<Reply> {
        let mut events = self.world.events();
        let reply = Reply::script(&self.entry, |out| async move {
            let mut sent = 0;
            loop {
                let (new, ended) = {
                    let events = events.borrow_and_update();
                    (events.data[sent..].to_vec(), events.ended)
                };
                sent += new.len();
                for data in new {
                    out.data(format!("data: {data}\n\n")).await?;
                }
                if ended || events.changed().await.is_err() {
                    return Ok(());
                }
            }
        });
        let mut response = Response::new(reply);
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    fn large(&self, query: Option<&str>) -> Response<Reply> {
        let parameters = query.unwrap_or_default().split('&');
        let bytes = parameters
            .filter_map(|p| p.strip_prefix("bytes="))
            .find_map(|n| n.parse::<u64>().ok());
        let Some(bytes) = bytes else {
            return self.missing(&["query", "bytes"]);
        };
        let reply = Reply::script(&self.entry, move |out| async move {
            // A whole number of periods, so every piece begins alike.
            let piece: Bytes = (0..251 * 256).map(|n| (n % 251) as u8).collect();
            let mut left = bytes;
            while left > 0 {
                let n = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
                out.data(piece.slice(..n)).await?;
                left -= n as u64;
            }
            Ok(())
        });
        let mut response = Response::new(reply.with_length(bytes));
        let kind = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    fn reset(&self) -> Response<Reply> {
        let tap = self.tap.clone();
        let enough = tap.written() + HALF as u64;
        let reply = Reply::script(&self.entry, move |out| async move {
            out.data(vec![b'x'; HALF]).await?;
            // The head counts too, so this is a little early; what is left of the half is lost.
            tap.until_written(enough).await;
            tap.reset.store(true, Ordering::Relaxed);
            Err("reset, as asked".into())
        });
        Response::new(reply.with_length(2 * HALF as u64))
    }

    fn trailers(&self) -> Response<Reply> {
        let reply = Reply::script(&self.entry, |out| async move {
            out.data("with trailers\n").await?;
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_static("42"));
            out.trailers(trailers).await
        });
        let mut response = Response::new(reply);
        let announced = HeaderValue::from_static("x-checksum");
        response.headers_mut().insert(TRAILER, announced);
        response
    }

    fn empty(&self, status: StatusCode) -> Response<Reply> {
        let mut response = Response::new(Reply::whole(&self.entry, Bytes::new()));
        *response.status_mut() = status;
        response
    }

    fn json(&self, status: StatusCode, value: &Value) -> Response<Reply> {
        let mut response = Response::new(Reply::whole(&self.entry, value.to_string()));
        *response.status_mut() = status;
        let kind = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    fn not_found(&self, model: &str) -> Response<Reply> {
        let error = json!({"error": format!("Model {model} not found")});
        self.json(StatusCode::NOT_FOUND, &error)
    }

    fn missing(&self, place: &[&str]) -> Response<Reply> {
        let detail = json!({"type": "missing", "loc": place, "msg": "Field required"});
        self.json(
            StatusCode::UNPROCESSABLE_ENTITY,
            &json!({ "detail": [detail] }),
        )
    }

    fn malformed(&self) -> Response<Reply> {
        let detail =
            json!({"type": "json_invalid", "loc": ["body", 0], "msg": "JSON decode error"});
        self.json(
            StatusCode::UNPROCESSABLE_ENTITY,
            &json!({ "detail": [detail] }),
        )
    }
}

/// Repeated headers are joined by commas, as HTTP allows.
fn headers(headers: &HeaderMap) -> Value {
    let mut all = serde_json::Map::new();
    for name in headers.keys() {
        let values = headers.get_all(name).iter();
        let texts: Vec<_> = values
            .map(|v| String::from_utf8_lossy(v.as_bytes()))
            .collect();
        all.insert(name.to_string(), json!(texts.join(", ")));
    }
    Value::Object(all)
}
