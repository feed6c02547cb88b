//! How the API server is reached: a kubeconfig, or the service account of a pod.
//!
//! Reads files and, where a kubeconfig says so, runs the command that it names for a token.
//! Nothing that is read here is ever shown.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::yaml;

/// Where a pod finds its service account.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Limit for a command that makes a token.
const COMMAND: Duration = Duration::from_secs(3);

/// What the user and the environment say.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `--kubeconfig`.
    pub file: Option<PathBuf>,
    /// `--context`.
    pub context: Option<String>,
    /// `$KUBECONFIG`: a list of files, separated by colons.
    pub files: Option<String>,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// `$KUBERNETES_SERVICE_HOST` and `$KUBERNETES_SERVICE_PORT`, set in every pod.
    pub service: Option<(String, String)>,
    /// The folder of the service account; the usual one unless told.
    pub mount: Option<PathBuf>,
}

/// Everything that is needed to ask. Its `Debug` shows nothing secret.
#[derive(Clone, Default)]
pub struct Access {
    /// Where this comes from, for words.
    pub from: String,
    /// `https://host:port` and perhaps a path, without a slash at its end.
    pub server: String,
    /// The namespace that goes with it.
    pub namespace: Option<String>,
    /// The authority's certificates, as PEM.
    pub(super) ca: Option<Vec<u8>>,
    /// The name to expect in the certificate instead of the host.
    pub(super) server_name: Option<String>,
    pub(super) token: Option<String>,
    /// Certificate and key, as PEM.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("from", &self.from)
            .field("server", &self.server)
            .field("namespace", &self.namespace)
            .field("token", &self.token.is_some())
            .field("identity", &self.identity.is_some())
            .finish_non_exhaustive()
    }
}

/// Finds a way: the file that is named, `$KUBECONFIG`, the service account, `~/.kube/config`.
pub async fn access(places: &Places) -> Result<Access, String> {
    if let Some(file) = &places.file {
        return from_files(std::slice::from_ref(file), places.context.as_deref()).await;
    }
    let listed = places.files.as_deref().unwrap_or_default();
    let listed: Vec<PathBuf> = listed
        .split(':')
        .filter(|p| !p.is_empty())
        .map(PathBuf::from)
        .filter(|p| p.exists())
        .collect();
    if !listed.is_empty() {
        return from_files(&listed, places.context.as_deref()).await;
    }
    let mount = places.mount.clone().unwrap_or_else(|| MOUNT.into());
    if let Some((host, port)) = &places.service
        && mount.join("token").exists()
    {
        return service_account(&mount, host, port);
    }
    let usual = places.home.as_ref().map(|h| h.join(".kube/config"));
    match usual.filter(|p| p.exists()) {
        Some(file) => from_files(&[file], places.context.as_deref()).await,
        None => Err("there is neither a kubeconfig nor a service account: name one with --kubeconfig, or set automountServiceAccountToken: true on the pod".into()),
    }
}

fn service_account(mount: &Path, host: &str, port: &str) -> Result<Access, String> {
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_string(),
    };
    let text = |name: &str| read(&mount.join(name)).map(|b| trimmed(&b));
    Ok(Access {
        from: "the service account of this pod".into(),
        server: format!("https://{host}:{port}"),
        namespace: text("namespace").ok(),
        ca: Some(read(&mount.join("ca.crt"))?),
        token: Some(text("token")?),
        ..Access::default()
    })
}

async fn from_files(files: &[PathBuf], context: Option<&str>) -> Result<Access, String> {
    let mut all = Vec::new();
    for file in files {
        let text = String::from_utf8_lossy(&read(file)?).into_owned();
        let value = yaml::parse(&text).map_err(|why| format!("{}: {why}", file.display()))?;
        all.push((file.clone(), value));
    }
    let shown = files[0].display();
    let current = || all.iter().find_map(|(_, v)| text(&v["current-context"]));
    let context = context.map(str::to_string).or_else(current);
    let context = context
        .ok_or_else(|| format!("{shown} has no current-context: choose one with --context"))?;
    let named = |list: &str, item: &str, name: &str| {
        all.iter().find_map(|(file, value)| {
            let entries = value[list].as_array()?;
            let entry = entries.iter().find(|e| e["name"] == name)?;
            Some((file.clone(), entry[item].clone()))
        })
    };
    let (_, chosen) = named("contexts", "context", &context)
        .ok_or_else(|| format!("{shown} has no context {context:?}"))?;
    let cluster_name = text(&chosen["cluster"]).unwrap_or_default();
    let (file, cluster) = named("clusters", "cluster", &cluster_name)
        .ok_or_else(|| format!("{shown} has no cluster {cluster_name:?}"))?;
    let server = text(&cluster["server"])
        .ok_or_else(|| format!("cluster {cluster_name:?} of {shown} has no server"))?;
    if cluster["insecure-skip-tls-verify"] == "true" {
        return Err(format!(
            "cluster {cluster_name:?} of {shown} says insecure-skip-tls-verify: credentials are not sent to a server that proves nothing; name its certificate-authority instead"
        ));
    }
    if !cluster["proxy-url"].is_null() {
        return Err(format!(
            "cluster {cluster_name:?} of {shown} has a proxy-url, which is not supported: use `kubectl proxy` and a kubeconfig with server: http://127.0.0.1:8001"
        ));
    }
    let mut access = Access {
        from: format!("context {context} of {shown}"),
        server: server.trim_end_matches('/').into(),
        namespace: text(&chosen["namespace"]),
        ca: bytes(&file, &cluster, "certificate-authority")?,
        server_name: text(&cluster["tls-server-name"]),
        ..Access::default()
    };
    if let Some((file, user)) = named("users", "user", &text(&chosen["user"]).unwrap_or_default()) {
        user_of(&mut access, &file, &user, &cluster).await?;
    }
    Ok(access)
}

async fn user_of(
    access: &mut Access,
    file: &Path,
    user: &Value,
    cluster: &Value,
) -> Result<(), String> {
    access.token = match (text(&user["token"]), text(&user["tokenFile"])) {
        (Some(token), _) => Some(token),
        (None, Some(path)) => Some(trimmed(&read(&beside(file, &path))?)),
        (None, None) => None,
    };
    let cert = bytes(file, user, "client-certificate")?;
    let key = bytes(file, user, "client-key")?;
    access.identity = cert.zip(key);
    if access.token.is_some() || access.identity.is_some() {
        return Ok(());
    }
    if user["exec"].is_object() {
        let status = run(file, &user["exec"], cluster).await?;
        access.token = text(&status["token"]);
        let part = |name: &str| text(&status[name]).map(String::into_bytes);
        access.identity = part("clientCertificateData").zip(part("clientKeyData"));
        if access.token.is_none() && access.identity.is_none() {
            return Err(
                "the command of the kubeconfig's user gave neither a token nor a certificate"
                    .into(),
            );
        }
    } else if !user["username"].is_null() || !user["auth-provider"].is_null() {
        return Err("the kubeconfig's user has a kind of credentials that Kubernetes no longer takes: use a token, a certificate or exec".into());
    }
    Ok(())
}

/// Runs the command that makes credentials, as kubectl does. What it writes to its error stream is
/// shown to nobody: it may hold secrets.
async fn run(file: &Path, exec: &Value, cluster: &Value) -> Result<Value, String> {
    let name = text(&exec["command"]).ok_or("exec without a command")?;
    let version =
        text(&exec["apiVersion"]).unwrap_or_else(|| "client.authentication.k8s.io/v1".into());
    let info = json!({
        "apiVersion": version,
        "kind": "ExecCredential",
        "spec": {"interactive": false, "cluster": {"server": cluster["server"]}},
    });
    // A path is meant beside the file; a bare name is looked for as usual.
    let program = match name.contains('/') {
        true => beside(file, &name),
        false => PathBuf::from(&name),
    };
    let mut command = tokio::process::Command::new(program);
    let args = exec["args"].as_array().into_iter().flatten();
    command
        .args(args.filter_map(Value::as_str))
        .env("KUBERNETES_EXEC_INFO", info.to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    for variable in exec["env"].as_array().into_iter().flatten() {
        if let (Some(name), Some(value)) = (text(&variable["name"]), text(&variable["value"])) {
            command.env(name, value);
        }
    }
    let output = tokio::time::timeout(COMMAND, command.output())
        .await
        .map_err(|_| {
            format!("{name:?}, which the kubeconfig names, gave no token within {COMMAND:?}")
        })?
        .map_err(|e| format!("cannot run {name:?}, which the kubeconfig names: {e}"))?;
    if !output.status.success() {
        return Err(format!(
            "{name:?}, which the kubeconfig names, failed with {}: run it by hand",
            output.status
        ));
    }
    let answer: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("{name:?}, which the kubeconfig names, printed no ExecCredential"))?;
    Ok(answer["status"].clone())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|t| !t.is_empty()).map(Into::into)
}

/// `<name>-data` in base64, or the file that `<name>` names.
fn bytes(file: &Path, of: &Value, name: &str) -> Result<Option<Vec<u8>>, String> {
    if let Some(data) = text(&of[format!("{name}-data")]) {
        let clean: String = data.split_whitespace().collect();
        let decoded = BASE64_STANDARD.decode(clean);
        return decoded
            .map(Some)
            .map_err(|_| format!("{}: {name}-data is no base64", file.display()));
    }
    match text(&of[name]) {
        Some(path) => read(&beside(file, &path)).map(Some),
        None => Ok(None),
    }
}

fn beside(file: &Path, path: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(path)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn trimmed(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_string()
}
