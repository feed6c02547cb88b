//! Evidence from an API server: what is read, what may not be, and what must never be shown.

use std::path::PathBuf;
use std::time::Duration;

use agent_shim::doctor::evidence::Evidence;
use agent_shim::doctor::evidence::kube::KubeFacts;
use agent_shim::doctor::gather::kube::{Ask, Places, gather};
use agent_shim::doctor::{Diagnosis, diagnose, rules};
use serde_json::{Value, json};

use super::api::{Answer, FakeApi, Folder};
use super::certificates::Authority;
use crate::support::*;

const MLOPS: &str = "/apis/mlops.seldon.io/v1alpha1/namespaces";
/// Planted where nothing may be taken from.
const SECRET: &str = "sesame-opens";

fn containers() -> Value {
    let resources =
        json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}});
    json!([
        {"name": "agent", "resources": resources, "args": [format!("--password={SECRET}")], "env": [
            {"name": "SELDON_SERVER_CAPABILITIES", "value": "mlserver,sklearn"},
            {"name": "SELDON_SERVER_HTTP_PORT", "value": "9600"},
            {"name": "SELDON_SERVER_GRPC_PORT", "value": "9650"},
            {"name": "DATABASE_PASSWORD", "value": SECRET},
            {"name": "SELDON_API_TOKEN", "value": SECRET},
            {"name": "AWS", "valueFrom": {"secretKeyRef": {"name": SECRET, "key": "a"}}},
            {"name": "MEMORY_REQUEST", "valueFrom": {"resourceFieldRef": {"containerName": "mlserver", "resource": "requests.memory"}}},
        ]},
        {"name": "mlserver", "resources": resources, "env": [{"name": "MLSERVER_HTTP_PORT", "value": "9000"}]},
        {"name": "agent-shim", "resources": resources, "env": [{"name": "SHIM_MODE", "value": "correct"}]},
    ])
}

fn pod(name: &str, labels: Value, containers: &Value) -> Value {
    json!({
        "metadata": {"name": name, "labels": labels, "annotations": {"x": SECRET}},
        "spec": {"containers": containers},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// A healthy namespace `ml`, with operator and scheduler in `seldon-system`.
async fn healthy(api: &FakeApi) {
    let all = containers();
    let server = json!({"seldon-server-name": "mlserver"});
    let scheduler = json!({"app.kubernetes.io/name": "seldon-scheduler"});
    for ns in ["ml", "seldon-system"] {
        let labels = json!({"kubernetes.io/metadata.name": ns});
        api.put(
            &format!("/api/v1/namespaces/{ns}"),
            json!({"metadata": {"name": ns, "labels": labels}}),
        );
    }
    api.put(
        &format!("{MLOPS}/ml/servers"),
        json!([
            {"metadata": {"name": "mlserver"}, "spec": {"serverConfig": "mlserver", "replicas": 1}}
        ]),
    );
    api.put(&format!("{MLOPS}/ml/serverconfigs"), json!([]));
    api.put(&format!("{MLOPS}/seldon-system/serverconfigs"), json!([
        {"metadata": {"name": "mlserver", "namespace": "seldon-system"}, "spec": {"podSpec": {"containers": all}}}
    ]));
    api.put(
        &format!("{MLOPS}/ml/models"),
        json!([{"metadata": {"name": "iris"}, "spec": {"requirements": ["sklearn"]}}]),
    );
    let apps = "/apis/apps/v1/namespaces";
    api.put(
        &format!("{apps}/seldon-system/deployments/seldon-v2-controller-manager"),
        json!({}),
    );
    api.put(
        &format!("{apps}/ml/statefulsets"),
        json!([{
            "metadata": {"name": "mlserver", "generation": 2},
            "spec": {"replicas": 1, "template": {"spec": {"containers": all}}},
            "status": {"replicas": 1, "readyReplicas": 1, "observedGeneration": 2},
        }]),
    );
    api.put(&format!("{apps}/ml/deployments"), json!([]));
    api.put(
        "/api/v1/namespaces/ml/pods",
        json!([pod("mlserver-0", server, &all)]),
    );
    api.put(
        "/api/v1/namespaces/seldon-system/pods",
        json!([pod("seldon-scheduler-0", scheduler, &json!([]))]),
    );
    api.put(
        "/apis/discovery.k8s.io/v1/namespaces/seldon-system/endpointslices",
        json!([
            {"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}]}
        ]),
    );
    for list in ["events", "resourcequotas", "limitranges"] {
        api.put(&format!("/api/v1/namespaces/ml/{list}"), json!([]));
    }
    api.put(
        "/apis/networking.k8s.io/v1/namespaces/ml/networkpolicies",
        json!([]),
    );
}

fn config(server: &str, cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\ncontexts:\n- name: here\n  context: {{cluster: c, user: u, namespace: ml}}\nclusters:\n- name: c\n  cluster:\n    server: {server}\n{cluster}users:\n- name: u\n  user:\n{user}"
    )
}

fn ask(kubeconfig: PathBuf) -> Ask {
    let mut ask = Ask::new(Places {
        file: Some(kubeconfig),
        ..Places::default()
    });
    ask.scheduler = Some("seldon-scheduler.seldon-system.svc.cluster.local".into());
    ask
}

struct Cluster {
    api: FakeApi,
    folder: Folder,
}

impl Cluster {
    async fn new(name: &str) -> Cluster {
        let api = FakeApi::start(None).await;
        healthy(&api).await;
        Cluster {
            api,
            folder: Folder::new(name),
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        let server = format!("http://{}/", self.api.address);
        let text = config(&server, "", &format!("    token: {SECRET}\n"));
        self.folder.write("config", &text)
    }

    async fn facts(&self) -> KubeFacts {
        within("the API server", gather(&ask(self.kubeconfig())))
            .await
            .unwrap()
    }
}

fn judged(facts: KubeFacts) -> Diagnosis {
    let evidence = Evidence {
        kube: Some(facts),
        asked_model: Some("iris".into()),
        ..Evidence::default()
    };
    diagnose(&evidence, rules::all().filter(|r| r.id.starts_with("AS1")))
}

fn names(diagnosis: &Diagnosis) -> Vec<&str> {
    diagnosis.findings().map(|f| f.name.as_str()).collect()
}

#[tokio::test]
async fn a_healthy_namespace_is_read_without_a_finding_and_only_with_get() {
    let cluster = Cluster::new("healthy").await;
    let facts = cluster.facts().await;
    assert_eq!(facts.unreadable, []);
    assert_eq!(facts.operator_namespace.as_deref(), Some("seldon-system"));
    assert_eq!(facts.servers[0].config, "mlserver");
    assert_eq!(facts.scheduler_ready, Some(1));
    let diagnosis = judged(facts);
    assert_eq!(names(&diagnosis), [] as [&str; 0]);
    assert_eq!(diagnosis.unchecked, []);
    let asked = cluster.api.asked();
    assert!(asked.len() > 10);
    for (method, path, header) in asked {
        assert_eq!(method, "GET");
        assert!(!path.contains("secret"), "{path}");
        assert_eq!(header.unwrap(), format!("Bearer {SECRET}"));
    }
}

#[tokio::test]
async fn nothing_secret_leaves_the_cluster_or_the_kubeconfig() {
    let cluster = Cluster::new("secret").await;
    let facts = cluster.facts().await;
    let text = serde_json::to_string(&facts).unwrap();
    assert!(text.contains("MEMORY_REQUEST"));
    assert!(!text.contains(SECRET), "{text}");
    let diagnosis = serde_json::to_string(&judged(facts)).unwrap();
    assert!(!diagnosis.contains(SECRET), "{diagnosis}");
    // And not where something is wrong with them.
    for text in [
        format!("users:\n- token: {SECRET}\n  a: ["),
        config("http://127.0.0.1:1", "", &format!("    token: {SECRET}\n")),
        config(
            "https://127.0.0.1:1",
            &format!("    certificate-authority-data: {SECRET}\n"),
            "",
        ),
        config(
            "http://127.0.0.1:1",
            "",
            &format!("    token: \"{SECRET}\\n\"\n"),
        ),
        config(
            "http://127.0.0.1:1",
            "",
            &format!("    client-certificate-data: YQ==\n    client-key-data: '{SECRET}!'\n"),
        ),
        config(
            "http://127.0.0.1:1",
            "",
            &format!("    exec: {{command: /nowhere/x, args: [{SECRET}]}}\n"),
        ),
    ] {
        let asked = ask(cluster.folder.write("broken", &text));
        let error = within("an error", gather(&asked)).await.unwrap_err();
        assert!(!error.contains(SECRET), "{error}");
        assert!(!format!("{asked:?}").contains(SECRET));
    }
}

#[tokio::test]
async fn what_is_forbidden_is_said_with_the_rule_that_allows_it() {
    let cluster = Cluster::new("forbidden").await;
    cluster
        .api
        .answer("/api/v1/namespaces/ml/events", Answer::Status(403));
    let path = "/apis/networking.k8s.io/v1/namespaces/ml/networkpolicies";
    cluster.api.answer(path, Answer::Status(403));
    let facts = cluster.facts().await;
    let said: Vec<&str> = facts
        .unreadable
        .iter()
        .map(|(kind, _)| kind.as_str())
        .collect();
    assert_eq!(said, ["events", "networkpolicies"]);
    let why = facts.unreadable("networkpolicies").unwrap();
    let rule =
        "{apiGroups: [\"networking.k8s.io\"], resources: [\"networkpolicies\"], verbs: [\"list\"]}";
    assert!(why.contains(rule) && why.contains("Role in ml"), "{why}");
    let diagnosis = judged(facts);
    assert_eq!(names(&diagnosis), [] as [&str; 0]);
    assert!(diagnosis.unchecked.iter().any(|u| u.why.contains(rule)));
}

#[tokio::test]
async fn a_cluster_without_seldon_says_so() {
    let cluster = Cluster::new("bare").await;
    let path = format!("{MLOPS}/ml/servers");
    cluster.api.answer(&path, Answer::Status(404));
    let facts = cluster.facts().await;
    let why = facts.unreadable("servers").unwrap();
    assert!(why.contains("is Seldon Core 2 installed"), "{why}");
}

#[tokio::test]
async fn one_silent_answer_does_not_hold_up_the_rest() {
    let cluster = Cluster::new("slow").await;
    cluster
        .api
        .answer("/api/v1/namespaces/ml/events", Answer::Never);
    let mut asked = ask(cluster.kubeconfig());
    asked.timeout = Duration::from_millis(800);
    let started = tokio::time::Instant::now();
    let facts = within("the rest", gather(&asked)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(
        facts
            .unreadable("events")
            .unwrap()
            .contains("time was over")
    );
    assert_eq!(facts.pods.len(), 1);
}

#[tokio::test]
async fn credentials_that_nobody_takes_are_one_reason() {
    let cluster = Cluster::new("unauthorised").await;
    cluster.api.answer_all(Answer::Status(401));
    let error = within("an error", gather(&ask(cluster.kubeconfig())))
        .await
        .unwrap_err();
    assert!(
        error.contains("401") && error.contains("context here"),
        "{error}"
    );
}

#[tokio::test]
async fn faults_in_the_cluster_are_found_from_its_answers() {
    let cluster = Cluster::new("faults").await;
    cluster
        .api
        .put(&format!("{MLOPS}/seldon-system/serverconfigs"), json!([]));
    cluster.api.put(&format!("{MLOPS}/ml/serverconfigs"), json!([
        {"metadata": {"name": "mlserver", "namespace": "ml"}, "spec": {"podSpec": {"containers": []}}}
    ]));
    let diagnosis = judged(cluster.facts().await);
    assert_eq!(names(&diagnosis), ["server-config-not-found"]);

    healthy(&cluster.api).await;
    let mut all = containers();
    all[1]["resources"] = json!({"limits": {"memory": "1Gi"}});
    let mut killed = pod(
        "mlserver-0",
        json!({"seldon-server-name": "mlserver"}),
        &all,
    );
    killed["status"] = json!({"phase": "Running", "containerStatuses": [{
        "name": "mlserver", "restartCount": 4, "ready": false,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
    }]});
    cluster
        .api
        .put("/api/v1/namespaces/ml/pods", json!([killed]));
    let diagnosis = judged(cluster.facts().await);
    assert_eq!(names(&diagnosis), ["container-out-of-memory"]);

    healthy(&cluster.api).await;
    cluster.api.put("/apis/networking.k8s.io/v1/namespaces/ml/networkpolicies", json!([
        {"metadata": {"name": "isolated"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"ports": [{"port": 53, "protocol": "UDP"}]},
            {"to": [{"podSelector": {}}]},
        ]}}
    ]));
    let diagnosis = judged(cluster.facts().await);
    assert_eq!(names(&diagnosis), ["policy-blocks-scheduler"]);
    assert!(diagnosis.first.unwrap().text.contains("isolated"));

    healthy(&cluster.api).await;
    cluster.api.put("/api/v1/namespaces/ml/pods", json!([]));
    cluster.api.put(
        "/apis/apps/v1/namespaces/ml/statefulsets",
        json!([{
            "metadata": {"name": "mlserver", "generation": 1},
            "spec": {"replicas": 1, "template": {"spec": {"containers": containers()}}},
            "status": {"replicas": 0, "observedGeneration": 1},
        }]),
    );
    cluster.api.put("/api/v1/namespaces/ml/events", json!([{
        "involvedObject": {"kind": "StatefulSet", "name": "mlserver"}, "reason": "FailedCreate", "count": 12,
        "message": "create Pod mlserver-0 in StatefulSet mlserver failed error: pods \"mlserver-0\" is forbidden: failed quota: compute: must specify limits.cpu for: agent",
    }]));
    let diagnosis = judged(cluster.facts().await);
    assert_eq!(names(&diagnosis), ["quota-needs-resources"]);
}

#[tokio::test]
async fn tls_is_proved_on_both_sides() {
    let authority = Authority::new("kube");
    let stranger = Authority::new("kube-stranger");
    let acceptor = authority.acceptor(authority.server("127.0.0.1"), true);
    let api = FakeApi::start(Some(acceptor)).await;
    healthy(&api).await;
    let folder = Folder::new("tls");
    let (cert, key) = authority.server("me");
    folder.write("me.crt", &cert);
    folder.write("me.key", &key);
    let server = format!("https://{}", api.address);
    let ca = |of: &Authority| {
        format!(
            "    certificate-authority: {}\n",
            of.folder.join("ca.crt").display()
        )
    };
    // Paths are meant beside the file.
    let me = "    client-certificate: me.crt\n    client-key: me.key\n";
    let good = folder.write("good", &config(&server, &ca(&authority), me));
    let facts = within("the API server", gather(&ask(good))).await.unwrap();
    assert_eq!(facts.pods.len(), 1);
    let wrong = folder.write("wrong", &config(&server, &ca(&stranger), me));
    let error = within("an error", gather(&ask(wrong))).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    let insecure = "    insecure-skip-tls-verify: true\n";
    let insecure = folder.write("insecure", &config(&server, insecure, me));
    let error = within("an error", gather(&ask(insecure)))
        .await
        .unwrap_err();
    assert!(error.contains("name its certificate-authority"), "{error}");
}

#[tokio::test]
async fn the_service_account_of_a_pod_is_enough() {
    let authority = Authority::new("account");
    let acceptor = authority.acceptor(authority.server("127.0.0.1"), false);
    let api = FakeApi::start(Some(acceptor)).await;
    healthy(&api).await;
    let folder = Folder::new("account");
    folder.write("token", "abc\n");
    folder.write("namespace", "ml");
    std::fs::copy(
        authority.folder.join("ca.crt"),
        folder.path().join("ca.crt"),
    )
    .unwrap();
    let places = Places {
        service: Some(("127.0.0.1".into(), api.address.port().to_string())),
        mount: Some(folder.path().into()),
        ..Places::default()
    };
    let facts = within("the API server", gather(&Ask::new(places)))
        .await
        .unwrap();
    assert_eq!(facts.namespace, "ml");
    assert_eq!(api.asked()[0].2.as_deref(), Some("Bearer abc"));
    let nowhere = Ask::new(Places::default());
    let error = gather(&nowhere).await.unwrap_err();
    assert!(error.contains("--kubeconfig"), "{error}");
}

#[tokio::test]
async fn a_command_of_the_kubeconfig_makes_the_token() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::new("exec").await;
    let script = "#!/bin/sh\n[ -n \"$KUBERNETES_EXEC_INFO\" ] || exit 3\nprintf '{\"status\": {\"token\": \"%s-%s\"}}' \"$1\" \"$WHO\"\n";
    let path = cluster.folder.write("login", script);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    let server = format!("http://{}", cluster.api.address);
    let user = "    exec:\n      apiVersion: client.authentication.k8s.io/v1\n      command: ./login\n      args: [made]\n      env: [{name: WHO, value: here}]\n";
    let file = cluster.folder.write("config", &config(&server, "", user));
    within("the API server", gather(&ask(file))).await.unwrap();
    assert_eq!(
        cluster.api.asked()[0].2.as_deref(),
        Some("Bearer made-here")
    );
    cluster.folder.write("login", "#!/bin/sh\nexit 3\n");
    let file = cluster.folder.write("config", &config(&server, "", user));
    let error = within("an error", gather(&ask(file))).await.unwrap_err();
    assert!(error.contains("run it by hand"), "{error}");
}

#[tokio::test]
async fn contexts_are_chosen_and_files_merged() {
    let cluster = Cluster::new("contexts").await;
    let first = cluster
        .folder
        .write("first", "current-context: other\ncontexts: []\n");
    let second = cluster.kubeconfig();
    let mut asked = ask(PathBuf::new());
    asked.places.file = None;
    asked.places.files = Some(format!("{}:{}:/nowhere", first.display(), second.display()));
    let error = gather(&asked).await.unwrap_err();
    assert!(error.contains("no context \"other\""), "{error}");
    asked.places.context = Some("here".into());
    let facts = within("the API server", gather(&asked)).await.unwrap();
    assert_eq!(facts.namespace, "ml");
    asked.namespace = Some("../ml".into());
    assert!(
        gather(&asked)
            .await
            .unwrap_err()
            .contains("is no namespace")
    );
}

#[tokio::test]
async fn the_command_finds_what_is_wrong_in_the_cluster() {
    let cluster = Cluster::new("command").await;
    let path = "/apis/networking.k8s.io/v1/namespaces/ml/networkpolicies";
    cluster.api.put(path, json!([
        {"metadata": {"name": "isolated"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"ports": [{"port": 53, "protocol": "UDP"}]},
        ]}}
    ]));
    let command = async |format: &[&str]| {
        let (nobody, _held) = refused().await;
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_agent-shim"));
        command
            .env_clear()
            .args(["doctor", "iris", "--admin", &format!("http://{nobody}")])
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig())
            .args(["--operator-namespace", "seldon-system"])
            .env("SHIM_SCHEDULER", "seldon-scheduler.seldon-system:9005")
            .args(format)
            .kill_on_drop(true);
        within("the command", command.output()).await.unwrap()
    };
    let output = command(&["--json"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let diagnosis: Diagnosis = serde_json::from_str(&text).unwrap();
    let first = diagnosis.first.unwrap();
    assert_eq!(first.rule, "AS142");
    assert!(first.text.contains("isolated"), "{}", first.text);
    assert!(!text.contains(SECRET));
    for format in [&["--markdown"][..], &[]] {
        let output = command(format).await;
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("isolated") && !text.contains(SECRET),
            "{text}"
        );
    }
}
