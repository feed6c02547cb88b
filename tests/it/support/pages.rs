//! A small HTTP server whose pages a test sets as it likes: the agent's ports, a metrics page.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// What a page answers.
#[derive(Debug, Clone)]
pub struct Page {
    pub status: u16,
    pub kind: &'static str,
    pub body: Bytes,
    pub delay: Duration,
}

impl Page {
    pub fn new(status: u16, body: impl Into<Bytes>) -> Page {
        Page {
            status,
            kind: "text/plain; version=0.0.4",
            body: body.into(),
            delay: Duration::ZERO,
        }
    }

    pub fn after(self, delay: Duration) -> Page {
        Page { delay, ..self }
    }

    pub fn of_kind(self, kind: &'static str) -> Page {
        Page { kind, ..self }
    }
}

type Asked = (String, HeaderMap, tokio::time::Instant);

#[derive(Default)]
struct Book {
    pages: HashMap<String, Page>,
    asked: Vec<Asked>,
}

/// A running server; dropped, it closes its port and every connection.
pub struct Pages {
    pub address: SocketAddr,
    book: Arc<Mutex<Book>>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Pages {
    /// On a port that stays its own: below those that the system gives out by itself.
    pub async fn start() -> Pages {
        let (listener, address) = loop {
            let port = fastrand::u16(10_240..32_768);
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            if let Ok(listener) = TcpListener::bind(address).await {
                break (listener, address);
            }
        };
        let book = Arc::<Mutex<Book>>::default();
        let task = Some(tokio::spawn(serve(listener, book.clone())));
        Pages {
            address,
            book,
            task,
        }
    }

    pub fn port(&self) -> String {
        self.address.port().to_string()
    }

    pub fn set(&self, path: &str, page: Page) {
        self.book.lock().unwrap().pages.insert(path.into(), page);
    }

    /// How often a path was asked for.
    pub fn asked(&self, path: &str) -> usize {
        self.calls(path).len()
    }

    /// Headers and times of the calls to a path.
    pub fn calls(&self, path: &str) -> Vec<(HeaderMap, tokio::time::Instant)> {
        let book = self.book.lock().unwrap();
        let to = book.asked.iter().filter(|(asked, ..)| asked == path);
        to.map(|(_, headers, at)| (headers.clone(), *at)).collect()
    }

    /// As a process that ends.
    pub fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    pub async fn restart(&mut self) {
        let listener = super::eventually("the port to be free", async || {
            TcpListener::bind(self.address).await.ok()
        })
        .await;
        self.task = Some(tokio::spawn(serve(listener, self.book.clone())));
    }
}

async fn serve(listener: TcpListener, book: Arc<Mutex<Book>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let book = book.clone();
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let path = request.uri().path().to_string();
                let page = {
                    let mut book = book.lock().unwrap();
                    let now = tokio::time::Instant::now();
                    book.asked
                        .push((path.clone(), request.headers().clone(), now));
                    book.pages.get(&path).cloned()
                };
                async move {
                    let page = page.unwrap_or_else(|| Page::new(404, "404 page not found\n"));
                    tokio::time::sleep(page.delay).await;
                    let response = Response::builder()
                        .status(page.status)
                        .header("content-type", page.kind)
                        .body(Full::new(page.body))
                        .unwrap();
                    Ok::<_, Infallible>(response)
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
