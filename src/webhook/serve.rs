//! The HTTPS port: accepts, secures, bounds, and ends connections.
//!
//! Knows nothing of admission. A caller that is slow, silent or speaks something else costs its
//! own connection and nobody else anything. HTTP/2 and HTTP/1.1, whichever the caller prefers.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, AlertDescription};
use tokio_rustls::server::TlsStream;

use super::answer::Service;
use super::certificate::Certificate;
use super::limits::Limits;
use super::metrics::{Handshake, Series};
use crate::relay::{accept_failed, prepare};

/// How often a silent HTTP/2 caller is asked whether it is there, and how long it may take.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Calls at once on one HTTP/2 connection.
const STREAMS: u32 = 250;
/// How often the same trouble with callers is logged.
const REPEAT: Duration = Duration::from_secs(60);

/// The port. Cheap to clone: one for each listener.
#[derive(Debug, Clone)]
pub struct Port {
    service: Service,
    certificate: Certificate,
    series: Series,
    limits: Limits,
    places: Arc<Semaphore>,
    refusal_logged: Arc<Mutex<Option<Instant>>>,
}

impl Port {
    /// A port that shows this certificate and asks this service.
    pub fn new(service: Service, certificate: Certificate, limits: Limits, series: Series) -> Self {
        Port {
            service,
            certificate,
            series,
            limits,
            places: Arc::new(Semaphore::new(limits.connections)),
            refusal_logged: Arc::default(),
        }
    }

    /// Accepts until `stopping` becomes true; then ends when every connection has ended, each
    /// after the calls that it carries.
    pub async fn serve(self, listener: TcpListener, mut stopping: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                stream = accept(&listener, &self.places) => if let Some((stream, peer, place)) = stream {
                    let (port, stopping) = (self.clone(), stopping.clone());
                    connections.spawn(async move {
                        let _place = place;
                        port.connection(stream, peer, stopping).await;
                    });
                },
                Some(ended) = connections.join_next() => told(ended),
                () = stopped(&mut stopping) => break,
            }
        }
        drop(listener);
        while let Some(ended) = connections.join_next().await {
            told(ended);
        }
    }

    async fn connection(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        mut stopping: watch::Receiver<bool>,
    ) {
        prepare(&stream);
        let Some(config) = self.certificate.current() else {
            self.series.failed(Handshake::NoCertificate);
            return;
        };
        let stream = match timeout(
            self.limits.handshake,
            TlsAcceptor::from(config).accept(stream),
        )
        .await
        {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.handshake_failed(peer, &error),
            Err(_) => return self.series.failed(Handshake::Timeout),
        };
        self.series.connections.inc();
        let _open = Open(&self.series);
        self.carry(stream, &mut stopping).await;
    }

    async fn carry(&self, stream: TlsStream<TcpStream>, stopping: &mut watch::Receiver<bool>) {
        let asked = Arc::new(AtomicBool::new(false));
        let service = service_fn({
            let (service, asked) = (self.service.clone(), asked.clone());
            move |request| {
                asked.store(true, Ordering::Relaxed);
                let service = service.clone();
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(16 * 1024);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let silent = async {
            sleep(self.limits.first_request).await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        // A caller's broken connection is the caller's concern, here and below.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = silent => return,
            () = stopped(stopping) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }

    fn handshake_failed(&self, peer: SocketAddr, error: &io::Error) {
        let reason = reason(error);
        self.series.failed(reason);
        if reason != Handshake::CertificateRefused {
            tracing::debug!(%peer, %error, "no secured connection");
            return;
        }
        // With failurePolicy Ignore this is all that shows why pods are not injected.
        let mut logged = self
            .refusal_logged
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= REPEAT) {
            *logged = Some(Instant::now());
            tracing::error!(
                %peer, %error,
                "a caller refuses the certificate: does caBundle hold its authority, and does it name <service>.<namespace>.svc?"
            );
        }
    }
}

/// Waits for a place first, so that callers in excess wait in the listener's queue.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, place)),
        Err(error) => {
            accept_failed(&error, "webhook").await;
            None
        }
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A sender that is gone means the end as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn told(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection task failed");
    }
}

fn reason(error: &io::Error) -> Handshake {
    use AlertDescription::{
        BadCertificate, CertificateExpired, CertificateRevoked, CertificateUnknown, DecryptError,
        UnknownCA, UnsupportedCertificate,
    };
    // A signature that does not fit an authority of the same name is `DecryptError`.
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    match inner {
        Some(rustls::Error::AlertReceived(
            BadCertificate
            | DecryptError
            | CertificateExpired
            | CertificateRevoked
            | CertificateUnknown
            | UnknownCA
            | UnsupportedCertificate,
        )) => Handshake::CertificateRefused,
        _ => Handshake::Other,
    }
}

struct Open<'a>(&'a Series);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
