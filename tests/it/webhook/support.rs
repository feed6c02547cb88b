//! An authority, a webhook in this process, callers of both HTTP versions, and a pod.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_shim::inject::Options;
use agent_shim::webhook::certificate::Files;
use agent_shim::webhook::decide::{Injector, Policy};
use agent_shim::webhook::limits::Limits;
use agent_shim::webhook::overrides::Allowed;
use agent_shim::webhook::{Error, Settings, Webhook};
use base64::Engine;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{eventually, http as plain, within};

/// What the Service of the webhook is called in its certificate.
pub const HOST: &str = "agent-shim-webhook.shim.svc";

/// An authority, and the folder in which the webhook finds its pair.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub folder: PathBuf,
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Authority {
    pub fn new() -> Self {
        Authority::named("authority")
    }

    pub fn named(name: &str) -> Self {
        let unique = fastrand::u64(..);
        let folder = std::env::temp_dir().join(format!("agent-shim-webhook-{unique:x}"));
        std::fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Authority { issuer, folder }
    }

    pub fn files(&self) -> Files {
        Files {
            cert: self.folder.join("tls.crt"),
            key: self.folder.join("tls.key"),
        }
    }

    /// A new pair, valid for some years.
    pub fn pair(&self, years: (i32, i32)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![HOST.to_string()]).unwrap();
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Puts a pair in place, one file after the other, as nobody should.
    pub fn write(&self, (cert, key): &(String, String)) {
        let files = self.files();
        std::fs::write(files.cert, cert).unwrap();
        std::fs::write(files.key, key).unwrap();
    }

    /// What a caller needs that trusts this authority.
    pub fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Each connection of a test shows whether the certificate is accepted.
        config.resumption = tokio_rustls::rustls::client::Resumption::disabled();
        config.alpn_protocols = alpn.iter().map(|a| a.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

pub async fn secured(
    to: SocketAddr,
    client: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from(HOST).unwrap();
    TlsConnector::from(client).connect(name, stream).await
}

/// A webhook in this process.
pub struct Hook {
    pub authority: Authority,
    pub review: SocketAddr,
    pub ops: SocketAddr,
    task: JoinHandle<Result<(), Error>>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hook {
    pub fn start() -> Hook {
        Hook::with(|_| {}, Injector::default())
    }

    pub fn with(change: impl FnOnce(&mut Settings), injector: Injector) -> Hook {
        let authority = Authority::new();
        authority.write(&authority.pair((2020, 2050)));
        Hook::of(authority, change, injector)
    }

    pub fn of(
        authority: Authority,
        change: impl FnOnce(&mut Settings),
        injector: Injector,
    ) -> Hook {
        let mut settings = Settings {
            listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            port: 0,
            ops_port: 0,
            files: authority.files(),
            policy: Policy {
                defaults: Options::default(),
                allowed: Allowed::All,
                excluded: vec!["shim".into(), "kube-system".into()],
            },
            limits: Limits::default(),
            stop_delay: Duration::ZERO,
            stop_limit: Duration::from_secs(10),
        };
        change(&mut settings);
        let webhook = Webhook::start(settings, injector).unwrap();
        let (review, ops) = (webhook.bound().review[0], webhook.bound().ops[0]);
        let task = tokio::spawn(webhook.run(std::future::pending()));
        Hook {
            authority,
            review,
            ops,
            task,
        }
    }

    /// GET on the plain port.
    pub async fn get(&self, path: &str) -> (u16, String) {
        plain::get(self.ops, path).await
    }

    pub async fn caller(&self) -> Caller {
        Caller::connect(self.review, self.authority.client(&["h2", "http/1.1"])).await
    }

    /// The response to a review of this pod being created in `ns`.
    pub async fn review(&self, pod: &Value) -> Value {
        self.ask(&review(pod)).await
    }

    /// The response to a review.
    pub async fn ask(&self, review: &Value) -> Value {
        let (status, answer) = self.caller().await.post(review.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        response(review, &answer)
    }

    /// The value of a series.
    pub async fn series(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find_map(|l| l.strip_prefix(series));
        let value = line.unwrap_or_else(|| panic!("{series} is not in:\n{text}"));
        value.trim().parse().unwrap()
    }

    pub async fn until(&self, name: &str, at_least: f64) {
        eventually(name, async || {
            (self.series(name).await >= at_least).then_some(())
        })
        .await;
    }
}

/// Checks what every answer must be, and takes the response out of it.
pub fn response(review: &Value, answer: &str) -> Value {
    let answer: Value = serde_json::from_str(answer).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    let response = &answer["response"];
    assert_eq!(response["uid"], review["request"]["uid"]);
    assert!(response["allowed"].is_boolean(), "{response}");
    assert_eq!(
        response.get("patch").is_some(),
        response.get("patchType").is_some()
    );
    response.clone()
}

/// The pod as the API server makes it from a response.
pub fn patched(pod: &Value, response: &Value) -> Value {
    let mut pod = pod.clone();
    if let Some(patch) = response.get("patch") {
        assert_eq!(response["patchType"], "JSONPatch");
        json_patch::patch(&mut pod, &patch_of(patch)).unwrap();
    }
    pod
}

pub fn patch_of(patch: &Value) -> json_patch::Patch {
    let text = base64::engine::general_purpose::STANDARD
        .decode(patch.as_str().unwrap())
        .unwrap();
    serde_json::from_slice(&text).unwrap()
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// One connection.
pub struct Caller {
    sender: Sender,
    task: JoinHandle<()>,
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Caller {
    pub async fn connect(to: SocketAddr, client: Arc<ClientConfig>) -> Caller {
        let stream = within("a secured connection", secured(to, client)).await;
        Caller::over(stream.unwrap()).await
    }

    /// Speaks what was agreed on in the handshake.
    pub async fn over(stream: TlsStream<TcpStream>) -> Caller {
        let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        let (sender, task) = match two {
            true => {
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), io).await.unwrap();
                let task = tokio::spawn(async move {
                    let _ = connection.await;
                });
                (Sender::Two(sender), task)
            }
            false => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                let task = tokio::spawn(async move {
                    let _ = connection.await;
                });
                (Sender::One(sender), task)
            }
        };
        Caller { sender, task }
    }

    pub fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Two(_))
    }

    pub async fn post(&mut self, body: impl Into<Bytes>) -> (u16, String) {
        self.send(post("/mutate?timeout=10s", body)).await.unwrap()
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<(u16, String)> {
        let response = within("an answer", async {
            match &mut self.sender {
                Sender::One(one) => {
                    one.ready().await?;
                    one.send_request(request).await
                }
                Sender::Two(two) => {
                    two.ready().await?;
                    two.send_request(request).await
                }
            }
        })
        .await?;
        let status = response.status().as_u16();
        let body = within("the body", response.into_body().collect()).await?;
        let body = body.to_bytes().to_vec();
        Ok((status, String::from_utf8(body).unwrap()))
    }
}

pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method("POST")
        .uri(format!("https://{HOST}{path}"))
        .header("host", HOST)
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A review as the API server of Kubernetes 1.30 sends it for a new pod.
pub fn review(pod: &Value) -> Value {
    let kind = json!({ "group": "", "version": "v1", "kind": "Pod" });
    let resource = json!({ "group": "", "version": "v1", "resource": "pods" });
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": format!("{:032x}", fastrand::u128(..)),
            "kind": kind, "requestKind": kind,
            "resource": resource, "requestResource": resource,
            "name": "mlserver-0", "namespace": "ns", "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:statefulset-controller",
                "uid": "42", "groups": ["system:serviceaccounts", "system:authenticated"],
            },
            "object": pod, "oldObject": null, "dryRun": false,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
        },
    })
}

/// A pod as Seldon's operator has it made: three containers, and the shim asked for.
pub fn pod() -> Value {
    let mut pod = silent_pod();
    pod["metadata"]["annotations"]["agent-shim.io/inject"] = json!("enabled");
    pod
}

/// The same, which says nothing of the shim.
pub fn silent_pod() -> Value {
    let env = |name: &str, value: &str| json!({ "name": name, "value": value });
    let probe = |port: &str| {
        json!({ "httpGet": { "path": "/v2/health/live", "port": port, "scheme": "HTTP" },
                "periodSeconds": 5, "failureThreshold": 30 })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "mlserver-0", "generateName": "mlserver-", "namespace": "ns",
            "creationTimestamp": null,
            "labels": { "app": "seldon-server", "seldon-server-name": "mlserver",
                        "statefulset.kubernetes.io/pod-name": "mlserver-0" },
            "annotations": { "team": "a/b~c" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "StatefulSet",
                "name": "mlserver", "uid": "7", "controller": true }],
        },
        "spec": {
            "containers": [
                { "name": "rclone", "image": "rclone:1",
                  "ports": [{ "name": "rclone", "containerPort": 5572, "protocol": "TCP" }],
                  "resources": { "limits": { "cpu": "200m", "memory": "128M" },
                                 "requests": { "cpu": "200m", "memory": "100M" } } },
                { "name": "agent", "image": "agent:2.8.5",
                  "command": ["/bin/agent"], "args": ["--tracing-config-path", "/mnt/tracing"],
                  "env": [
                      env("SELDON_SERVER_CAPABILITIES", "mlserver,sklearn"),
                      env("SELDON_SERVER_HTTP_PORT", "9000"),
                      env("SELDON_SERVER_GRPC_PORT", "9500"),
                      env("SELDON_SCHEDULER_HOST", "seldon-scheduler"),
                      env("SELDON_SCHEDULER_PORT", "9005"),
                      json!({ "name": "POD_NAME", "valueFrom": { "fieldRef": {
                          "apiVersion": "v1", "fieldPath": "metadata.name" } } }),
                  ],
                  "resources": { "limits": { "cpu": "500m", "memory": "500M" },
                                 "requests": { "cpu": "200m", "memory": "100M" } } },
                { "name": "mlserver", "image": "mlserver:1.6.1",
                  "env": [env("MLSERVER_HTTP_PORT", "9000"), env("MLSERVER_GRPC_PORT", "9500")],
                  "ports": [{ "name": "server-http", "containerPort": 9000, "protocol": "TCP" }],
                  "startupProbe": probe("server-http"), "livenessProbe": probe("server-http"),
                  "resources": { "limits": { "cpu": "1", "memory": "1Gi" },
                                 "requests": { "cpu": "100m", "memory": "1Gi" } } },
            ],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 120,
            "serviceAccountName": "seldon-server",
            "securityContext": { "fsGroup": 2000, "runAsNonRoot": true, "runAsUser": 1000 },
        },
    })
}
