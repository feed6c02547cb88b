//! An API server of Kubernetes that answers from a table, with or without TLS.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// How a path answers.
#[derive(Clone)]
pub enum Answer {
    Found(Value),
    Status(u16),
    Never,
}

/// What was asked: method, path with query, and the Authorization header.
pub type Asked = (String, String, Option<String>);

#[derive(Clone, Default)]
pub struct Table {
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

pub struct FakeApi {
    pub address: SocketAddr,
    pub table: Table,
    _tasks: JoinSet<()>,
}

impl FakeApi {
    pub async fn start(tls: Option<TlsAcceptor>) -> FakeApi {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let table = Table::default();
        let mut tasks = JoinSet::new();
        let served = table.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, table) = (tls.clone(), served.clone());
                connections.spawn(async move {
                    match tls {
                        None => table.serve(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                table.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        FakeApi {
            address,
            table,
            _tasks: tasks,
        }
    }

    /// One object, or a list of these items.
    pub fn put(&self, path: &str, value: Value) {
        let value = match value {
            Value::Array(items) => json!({"kind": "List", "metadata": {}, "items": items}),
            object => object,
        };
        self.answer(path, Answer::Found(value));
    }

    pub fn answer(&self, path: &str, answer: Answer) {
        self.table
            .answers
            .lock()
            .unwrap()
            .insert(path.into(), answer);
    }

    /// Every path answers this from now on.
    pub fn answer_all(&self, answer: Answer) {
        let mut answers = self.table.answers.lock().unwrap();
        for value in answers.values_mut() {
            *value = answer.clone();
        }
        answers.insert("*".into(), answer);
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.table.asked.lock().unwrap().clone()
    }
}

impl Table {
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(move |request: ::http::Request<Incoming>| {
            let table = self.clone();
            async move {
                let header = request.headers().get("authorization");
                let header = header.map(|v| v.to_str().unwrap().to_string());
                let uri = request.uri();
                table.asked.lock().unwrap().push((
                    request.method().to_string(),
                    uri.to_string(),
                    header,
                ));
                let answer = {
                    let answers = table.answers.lock().unwrap();
                    answers.get(uri.path()).or(answers.get("*")).cloned()
                };
                let (status, body) = match answer {
                    Some(Answer::Found(value)) => (200, value.to_string()),
                    Some(Answer::Status(code)) => (code, "{}".into()),
                    Some(Answer::Never) => std::future::pending().await,
                    None => (404, "{}".into()),
                };
                let body = Full::new(Bytes::from(body));
                let answer = ::http::Response::builder().status(status).body(body);
                Ok::<_, Infallible>(answer.unwrap())
            }
        });
        let serving = hyper::server::conn::http1::Builder::new();
        let _ = serving
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

/// A folder that is removed.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let name = format!("agent-shim-kube-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
