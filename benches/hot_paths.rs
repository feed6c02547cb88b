//! The pure hot paths under criterion: what a caller's first call, a subscription and a manifest
//! cost. `cargo bench`, or `cargo bench -- --test` to run each once. Inputs are made here, of the
//! size that a large installation has.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use agent_shim::capability::{self, Distribution, Observation, Policy, Source};
use agent_shim::inject::Options;
use agent_shim::inject::manifest;
use agent_shim::proto::agent::{AgentSubscribeRequest, ModelVersion, ReplicaConfig};
use agent_shim::proto::scheduler::{MetaData, Model, ModelSpec};
use agent_shim::relay::opening;
use agent_shim::relay::{grpc, http};
use agent_shim::subscription::ledger::Restored;
use agent_shim::subscription::message::{self, SubscribeChange};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// What a client sends up to its first call: preface, SETTINGS, headers as literals, a body.
fn first_call(path: &str) -> Bytes {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "127.0.0.1:9650"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.73.0"),
        ("te", "trailers"),
        ("seldon-model-name", "iris_1"),
    ];
    let mut headers = Vec::new();
    for (name, value) in fields {
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).unwrap());
            headers.extend_from_slice(text.as_bytes());
        }
    }
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(4, 0, 0, &[]));
    out.extend(frame(1, 4, 1, &headers));
    out.extend(frame(0, 1, 1, &[0; 65]));
    out.into()
}

fn classification(c: &mut Criterion) {
    let mut group = c.benchmark_group("classify_first_call");
    let paths = [
        "/inference.GRPCInferenceService/ServerLive",
        INFER,
        "/inference.model_repository.ModelRepositoryService/RepositoryModelLoad",
    ];
    group.bench_function("grpc_path", |b| {
        b.iter(|| paths.map(|path| grpc::is_control(black_box(path))));
    });
    let paths = [
        "/v2/health/ready",
        "/v2/models/iris_1/infer",
        "/v2/repository/models/iris_1/load",
    ];
    group.bench_function("http_path", |b| {
        b.iter(|| {
            paths.map(|path| {
                let path = black_box(path);
                http::is_inference(path) ^ http::changes_models(&::http::Method::POST, path)
            })
        });
    });
    // The whole handshake that the shim serves before it knows the path; the caller's bytes are
    // there, its socket takes the answer.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime
        .block_on(TcpListener::bind(("127.0.0.1", 0)))
        .unwrap();
    let said = first_call(INFER);
    group.bench_function("grpc_handshake", |b| {
        b.iter_batched(
            || {
                runtime.block_on(async {
                    let far = TcpStream::connect(listener.local_addr().unwrap());
                    (far.await.unwrap(), listener.accept().await.unwrap().0)
                })
            },
            |(far, near)| {
                let limit = Duration::from_secs(10);
                let opened = runtime.block_on(opening::open(near, said.clone(), limit));
                assert_eq!(opened.as_ref().unwrap().path, INFER);
                (far, opened)
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// A subscribe request of about 1 MB: an agent that comes back with thousands of models.
fn subscribe_request() -> Vec<u8> {
    let model = |number: u32| ModelVersion {
        model: Some(Model {
            meta: Some(MetaData {
                name: format!("team-{}-fraud-detection-{number:05}", number % 37),
            }),
            model_spec: Some(ModelSpec {
                uri: format!("gs://models-of-team-{}/fraud/{number}", number % 37),
                requirements: vec!["sklearn".into(), "python-3.11".into()],
                memory_bytes: Some(1_000_000 + u64::from(number)),
                ..ModelSpec::default()
            }),
            ..Model::default()
        }),
        version: 1 + number % 5,
        ..ModelVersion::default()
    };
    let mut loaded: Vec<ModelVersion> = Vec::new();
    let mut request = AgentSubscribeRequest {
        server_name: "mlserver".into(),
        shared: true,
        replica_idx: 3,
        replica_config: Some(ReplicaConfig {
            inference_svc: "mlserver-3.mlserver".into(),
            inference_http_port: 9600,
            inference_grpc_port: 9650,
            memory_bytes: 8_000_000_000,
            capabilities: names("declared", 40),
            over_commit_percentage: 10,
        }),
        loaded_models: Vec::new(),
        available_memory_bytes: 3_000_000_000,
    };
    let mut size = request.encoded_len();
    for number in 0.. {
        let one = model(number);
        size += one.encoded_len() + 4;
        loaded.push(one);
        if size > 1_000_000 {
            break;
        }
    }
    request.loaded_models = loaded;
    request.encode_to_vec()
}

fn names(kind: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{kind}-{n:04}")).collect()
}

fn wire_edits(c: &mut Criterion) {
    let request = subscribe_request();
    let models = message::subscribe(&request).unwrap().loaded.len();
    let numbers = SubscribeChange {
        memory: Some(6_000_000_000),
        capabilities: Some(names("installed", 60)),
        available: Some(1_000_000_000),
        loaded: Vec::new(),
    };
    let every_model = SubscribeChange {
        loaded: vec![
            Restored {
                memory: Some(Some(5_000_000)),
                workers: None,
            };
            models
        ],
        ..numbers.clone()
    };
    let mut group = c.benchmark_group("subscribe_1mb");
    group.throughput(Throughput::Bytes(request.len() as u64));
    group.bench_function("read", |b| {
        b.iter(|| message::subscribe(black_box(&request)).unwrap());
    });
    group.bench_function("edit_totals", |b| {
        b.iter(|| message::change_subscribe(black_box(&request), &numbers).unwrap());
    });
    group.bench_function("edit_totals_and_every_model", |b| {
        b.iter(|| message::change_subscribe(black_box(&request), &every_model).unwrap());
    });
    group.finish();
}

fn reconciliation(c: &mut Criterion) {
    // Half of them names that the table knows in several spellings.
    let known = [
        "sklearn",
        "scikit-learn",
        "xgboost",
        "lightgbm",
        "mlflow",
        "huggingface",
    ];
    let mut requested = names("team-capability", 1_997);
    requested.extend(known[..3].iter().map(ToString::to_string));
    let distribution = |name: String| Distribution {
        name,
        version: "1.2.3".into(),
    };
    let mut distributions: Vec<Distribution> = names("some-library", 400)
        .into_iter()
        .map(distribution)
        .collect();
    distributions.extend(
        [
            "mlserver",
            "mlserver-lightgbm",
            "mlserver-sklearn",
            "scikit-learn",
        ]
        .map(|name| distribution(name.into())),
    );
    distributions.sort_by(|a, b| a.name.cmp(&b.name));
    let observation = Observation {
        source: Source::Distributions,
        distributions,
        settled: true,
        ..Observation::default()
    };
    let mut group = c.benchmark_group("reconcile_2000_capabilities");
    for (name, mode) in [
        ("add", capability::Mode::Add),
        ("strict", capability::Mode::Strict),
    ] {
        let policy = Policy {
            mode,
            list: Vec::new(),
        };
        group.bench_function(name, |b| {
            b.iter(|| capability::reconcile(black_box(&requested), &observation, &policy));
        });
    }
    group.finish();
}

/// A manifest as GitOps repositories have them: many servers in one file, with comments.
fn long_manifest() -> String {
    let mut text = String::new();
    for number in 0.. {
        write!(
            text,
            r#"---
# Server {number} of the platform team.
apiVersion: mlops.seldon.io/v1alpha1
kind: ServerConfig
metadata:
  name: mlserver-{number}
  namespace: seldon-mesh
  labels: {{team: "team-{number}"}}
spec:
  podSpec:
    terminationGracePeriodSeconds: 120
    containers:
    - name: agent
      image: registry.example/agent:2.9.1
      env:
      - name: SELDON_SERVER_CAPABILITIES
        value: "mlserver,sklearn,xgboost"   # what it can run
      - name: SELDON_SERVER_HTTP_PORT
        value: "9000"
      - name: SELDON_SERVER_GRPC_PORT
        value: "9500"
      - name: SELDON_SCHEDULER_HOST
        value: seldon-scheduler
      - name: SELDON_SCHEDULER_PORT
        value: "9005"
      resources:
        requests: {{cpu: "500m", memory: '500M'}}
      volumeMounts:
      - mountPath: /mnt/agent
        name: mlserver-models
    - name: mlserver
      image: registry.example/mlserver:1.7.1
      env:
      - name: MLSERVER_HTTP_PORT
        value: "9000"
      - name: MLSERVER_GRPC_PORT
        value: "9500"
      resources:
        requests:
          cpu: 1
          memory: '1G'
      volumeMounts:
      - mountPath: /mnt/agent
        name: mlserver-models
  volumeClaimTemplates:
  - name: mlserver-models
    spec:
      accessModes: [ "ReadWriteOnce" ]
      resources:
        requests:
          storage: 1Gi
"#
        )
        .unwrap();
        if text.lines().count() >= 5_000 {
            break;
        }
    }
    text
}

fn injection(c: &mut Criterion) {
    let text = long_manifest();
    let options = Options::default();
    let injected = manifest::inject(&text, &options).unwrap();
    assert!(injected.applies());
    let mut group = c.benchmark_group("inject_5000_lines");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("inject", |b| {
        b.iter(|| manifest::inject(black_box(&text), &options).unwrap());
    });
    group.bench_function("inject_again", |b| {
        b.iter(|| manifest::inject(black_box(&injected.text), &options).unwrap());
    });
    group.bench_function("remove", |b| {
        b.iter(|| manifest::remove(black_box(&injected.text), &options).unwrap());
    });
    group.finish();
}

criterion_group!(
    hot_paths,
    classification,
    wire_edits,
    reconciliation,
    injection
);
criterion_main!(hot_paths);
