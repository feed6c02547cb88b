//! The objects around the pod, read from Kubernetes: get and list only, never a Secret, everything
//! at once, with a limit for the whole and for the size of each list.
//!
//! What may not be read, or is not there, is noted with the permission that would help; it never
//! stops the rest.

use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::doctor::evidence::KubeFacts;

pub use self::access::{Access, Places, access};
use self::client::{Client, Failure};

mod access;
mod client;
mod read;
#[cfg(test)]
mod tests;
pub(crate) mod yaml;

/// Limit for everything.
const WHOLE: Duration = Duration::from_secs(4);
/// Longest list that is asked for.
const ITEMS: usize = 500;
/// Where the operator is usually installed.
const USUAL: [&str; 2] = ["seldon-system", "seldon-mesh"];
/// The operator's Deployment.
const OPERATOR: &str = "seldon-v2-controller-manager";
const MLOPS: &str = "/apis/mlops.seldon.io/v1alpha1";

/// What is asked about.
#[derive(Debug, Clone)]
pub struct Ask {
    /// How the API server is found.
    pub places: Places,
    /// The namespace of the Server; that of the kubeconfig or service account unless told.
    pub namespace: Option<String>,
    /// The Server; all of the namespace unless told.
    pub server: Option<String>,
    /// The scheduler's host as configured, which may name its namespace.
    pub scheduler: Option<String>,
    /// The operator's namespace, where it is not a usual one.
    pub operator_namespace: Option<String>,
    /// Limit for everything.
    pub timeout: Duration,
}

impl Ask {
    /// With the usual limit.
    pub fn new(places: Places) -> Self {
        Ask {
            places,
            namespace: None,
            server: None,
            scheduler: None,
            operator_namespace: None,
            timeout: WHOLE,
        }
    }
}

/// One list or object to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Namespace,
    SchedulerNamespace,
    Servers,
    Configs,
    OperatorConfigs,
    Models,
    StatefulSets,
    Deployments,
    Pods,
    SchedulerPods,
    SchedulerSlices,
    Events,
    Quotas,
    LimitRanges,
    Policies,
}

impl Part {
    const ALL: [Part; 15] = [
        Part::Namespace,
        Part::SchedulerNamespace,
        Part::Servers,
        Part::Configs,
        Part::OperatorConfigs,
        Part::Models,
        Part::StatefulSets,
        Part::Deployments,
        Part::Pods,
        Part::SchedulerPods,
        Part::SchedulerSlices,
        Part::Events,
        Part::Quotas,
        Part::LimitRanges,
        Part::Policies,
    ];

    /// The name under which it may be noted as unreadable.
    fn name(self) -> &'static str {
        match self {
            Part::Namespace => "namespace",
            Part::SchedulerNamespace => "scheduler-namespace",
            Part::Servers => "servers",
            Part::Configs => "serverconfigs",
            Part::OperatorConfigs => "operator-serverconfigs",
            Part::Models => "models",
            Part::StatefulSets => "statefulsets",
            Part::Deployments => "deployments",
            Part::Pods => "pods",
            Part::SchedulerPods => "scheduler-pods",
            Part::SchedulerSlices => "scheduler-endpoints",
            Part::Events => "events",
            Part::Quotas => "resourcequotas",
            Part::LimitRanges => "limitranges",
            Part::Policies => "networkpolicies",
        }
    }

    /// Group, resource and verb of the permission that it takes.
    fn permission(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Part::Namespace | Part::SchedulerNamespace => ("", "namespaces", "get"),
            Part::Servers => ("mlops.seldon.io", "servers", "list"),
            Part::Configs | Part::OperatorConfigs => ("mlops.seldon.io", "serverconfigs", "list"),
            Part::Models => ("mlops.seldon.io", "models", "list"),
            Part::StatefulSets => ("apps", "statefulsets", "list"),
            Part::Deployments => ("apps", "deployments", "list"),
            Part::Pods | Part::SchedulerPods => ("", "pods", "list"),
            Part::SchedulerSlices => ("discovery.k8s.io", "endpointslices", "list"),
            Part::Events => ("", "events", "list"),
            Part::Quotas => ("", "resourcequotas", "list"),
            Part::LimitRanges => ("", "limitranges", "list"),
            Part::Policies => ("networking.k8s.io", "networkpolicies", "list"),
        }
    }

    fn namespace(self, at: &At) -> &str {
        match self {
            Part::SchedulerNamespace | Part::SchedulerPods | Part::SchedulerSlices => &at.scheduler,
            Part::OperatorConfigs => at.operator.as_deref().unwrap_or_default(),
            _ => &at.namespace,
        }
    }

    /// `None` where there is nothing to ask.
    fn path(self, at: &At) -> Option<String> {
        let ns = self.namespace(at);
        let servers = "labelSelector=app.kubernetes.io%2Fname%3Dseldon-server";
        let scheduler = "labelSelector=app.kubernetes.io%2Fname%3Dseldon-scheduler";
        let slices = "labelSelector=kubernetes.io%2Fservice-name%3Dseldon-scheduler";
        let apart = |other: &Option<String>| other.as_ref().is_some_and(|o| *o != at.namespace);
        Some(match self {
            Part::Namespace => format!("/api/v1/namespaces/{ns}"),
            Part::SchedulerNamespace if at.scheduler == at.namespace => return None,
            Part::SchedulerNamespace => format!("/api/v1/namespaces/{ns}"),
            Part::OperatorConfigs if !apart(&at.operator) => return None,
            Part::Configs | Part::OperatorConfigs => {
                format!("{MLOPS}/namespaces/{ns}/serverconfigs?limit={ITEMS}")
            }
            Part::Servers => format!("{MLOPS}/namespaces/{ns}/servers?limit={ITEMS}"),
            Part::Models => format!("{MLOPS}/namespaces/{ns}/models?limit={ITEMS}"),
            Part::StatefulSets => {
                format!("/apis/apps/v1/namespaces/{ns}/statefulsets?{servers}&limit={ITEMS}")
            }
            Part::Deployments => {
                format!("/apis/apps/v1/namespaces/{ns}/deployments?{servers}&limit={ITEMS}")
            }
            Part::Pods => format!("/api/v1/namespaces/{ns}/pods?{servers}&limit={ITEMS}"),
            Part::SchedulerPods => format!("/api/v1/namespaces/{ns}/pods?{scheduler}&limit=20"),
            Part::SchedulerSlices => format!(
                "/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices?{slices}&limit=20"
            ),
            Part::Events => {
                format!("/api/v1/namespaces/{ns}/events?fieldSelector=type%3DWarning&limit={ITEMS}")
            }
            Part::Quotas => format!("/api/v1/namespaces/{ns}/resourcequotas?limit=50"),
            Part::LimitRanges => format!("/api/v1/namespaces/{ns}/limitranges?limit=50"),
            Part::Policies => {
                format!("/apis/networking.k8s.io/v1/namespaces/{ns}/networkpolicies?limit={ITEMS}")
            }
        })
    }
}

/// Where things are.
#[derive(Debug, Clone)]
struct At {
    namespace: String,
    scheduler: String,
    operator: Option<String>,
}

/// Reads everything. An error means that the API server could not be asked at all.
pub async fn gather(ask: &Ask) -> Result<KubeFacts, String> {
    let deadline = Instant::now() + ask.timeout;
    let access = timeout_at(deadline, access(&ask.places)).await;
    let access = access.map_err(|_| "the time was over before there were credentials")??;
    let client = Client::new(&access)?;
    let namespace = ask.namespace.clone().or(access.namespace.clone());
    let namespace = checked(namespace.unwrap_or_else(|| "default".into()))?;
    let scheduler = ask.scheduler.as_deref().and_then(namespace_of);
    let at = At {
        scheduler: checked(scheduler.map_or_else(|| namespace.clone(), Into::into))?,
        operator: match &ask.operator_namespace {
            Some(told) => Some(checked(told.clone())?),
            None => find_operator(&client, &namespace, deadline).await,
        },
        namespace,
    };
    let mut tasks = JoinSet::new();
    for part in Part::ALL {
        let (client, path) = (client.clone(), part.path(&at));
        tasks.spawn(async move {
            let answer = match path {
                None => return None,
                Some(path) => timeout_at(deadline, client.get(&path)).await,
            };
            let over = || Failure::Other("the time was over before it answered".into());
            Some((part, answer.unwrap_or_else(|_| Err(over()))))
        });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_by_key(|answer| answer.as_ref().map(|(part, _)| *part));
    let mut facts = KubeFacts {
        namespace: at.namespace.clone(),
        scheduler_namespace: at.scheduler.clone(),
        // A bare name leads to the Server's own namespace; an address leads anywhere.
        scheduler_known: ask
            .scheduler
            .as_deref()
            .is_some_and(|host| namespace_of(host).is_some() || !host.contains(['.', ':'])),
        operator_namespace: at.operator.clone(),
        server: ask.server.clone(),
        ..KubeFacts::default()
    };
    // No answer to anything is one reason, not fifteen.
    let all: Vec<_> = answers.into_iter().flatten().collect();
    if let Some(why) = nothing_at_all(&all) {
        return Err(format!("{why} (from {})", access.from));
    }
    for (part, answer) in all {
        match answer {
            Ok(value) => part.put(&mut facts, &value, &at),
            Err(failure) => {
                let why = words(part, &failure, &at);
                facts.unreadable.push((part.name().into(), why));
            }
        }
    }
    if at.scheduler == at.namespace {
        facts.scheduler_labels = facts.namespace_labels.clone();
    }
    Ok(facts)
}

impl Part {
    fn put(self, facts: &mut KubeFacts, value: &Value, at: &At) {
        match self {
            Part::Namespace => facts.namespace_labels = read::labels(value),
            Part::SchedulerNamespace => facts.scheduler_labels = read::labels(value),
            Part::Servers => facts.servers = read::items(value, read::server),
            Part::Configs => facts.configs.extend(read::items(value, read::config)),
            Part::OperatorConfigs => facts.configs.extend(read::items(value, read::config)),
            Part::Models => facts.models = read::items(value, read::model),
            Part::StatefulSets | Part::Deployments => {
                let kind = match self {
                    Part::StatefulSets => "StatefulSet",
                    _ => "Deployment",
                };
                let all = read::items(value, |v| read::workload(kind, v));
                facts.workloads.extend(all);
            }
            Part::Pods => facts.pods = read::items(value, read::pod),
            Part::SchedulerPods => facts.scheduler_pods = read::items(value, read::pod),
            Part::SchedulerSlices => facts.scheduler_ready = Some(read::ready_addresses(value)),
            Part::Events => {
                facts.events = read::items(value, read::event);
                facts.events.sort_by(|a, b| b.last.cmp(&a.last));
            }
            Part::Quotas => facts.quotas = read::items(value, read::quota),
            Part::LimitRanges => facts.limit_ranges = read::items(value, read::limit_range),
            Part::Policies => facts.policies = read::items(value, read::policy),
        }
        let cut = value["metadata"]["continue"].as_str();
        if cut.is_some_and(|c| !c.is_empty()) {
            let ns = self.namespace(at);
            let why = format!(
                "there are more in {ns} than are read at once; name a --namespace with fewer"
            );
            facts
                .unreadable
                .push((format!("{} (the rest)", self.name()), why));
        }
    }
}

/// What stands in answers to all questions, in the order of [`Part::ALL`].
#[cfg(feature = "fuzzing")]
pub(crate) fn facts_of(answers: &[Value]) -> KubeFacts {
    let namespace = String::from("team");
    let at = At {
        scheduler: namespace.clone(),
        operator: None,
        namespace,
    };
    let mut facts = KubeFacts::default();
    for (part, answer) in Part::ALL.into_iter().zip(answers) {
        part.put(&mut facts, answer, &at);
    }
    facts
}

/// Where every question failed in the same way.
fn nothing_at_all(all: &[(Part, Result<Value, Failure>)]) -> Option<String> {
    let mut reasons = all.iter().map(|(_, answer)| match answer {
        Err(Failure::Other(why)) => Some(why.clone()),
        Err(Failure::Unauthorised) => {
            Some("the API server does not take the credentials (401): they may have expired".into())
        }
        _ => None,
    });
    let first = reasons.next()??;
    reasons.all(|r| r.is_some()).then_some(first)
}

fn words(part: Part, failure: &Failure, at: &At) -> String {
    let (group, resource, verb) = part.permission();
    let ns = part.namespace(at);
    match failure {
        Failure::Forbidden => format!(
            "forbidden: a Role in {ns} with {{apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: [\"{verb}\"]}} would allow it"
        ),
        Failure::NotFound if group == "mlops.seldon.io" => {
            format!("this cluster has no {resource}.{group}: is Seldon Core 2 installed?")
        }
        Failure::NotFound => format!("there is none in {ns}"),
        Failure::Unauthorised => "the API server does not take the credentials (401)".into(),
        Failure::Other(why) => why.clone(),
    }
}

/// The first namespace with the operator in it, as far as may be looked.
async fn find_operator(client: &Client, namespace: &str, deadline: Instant) -> Option<String> {
    let mut tasks = JoinSet::new();
    let unusual = Some(namespace).filter(|n| !USUAL.contains(n));
    for (order, ns) in USUAL.into_iter().chain(unusual).enumerate() {
        let (client, ns) = (client.clone(), ns.to_string());
        tasks.spawn(async move {
            let path = format!("/apis/apps/v1/namespaces/{ns}/deployments/{OPERATOR}");
            let answer = timeout_at(deadline, client.get(&path)).await;
            matches!(answer, Ok(Ok(_))).then_some((order, ns))
        });
    }
    let found = tasks.join_all().await;
    found.into_iter().flatten().min().map(|(_, ns)| ns)
}

/// `seldon-scheduler.<namespace>[.svc...]`.
fn namespace_of(host: &str) -> Option<&str> {
    let parts: Vec<&str> = host.split('.').collect();
    match parts.as_slice() {
        [_, namespace] | [_, namespace, "svc", ..] => Some(namespace),
        _ => None,
    }
}

/// A namespace becomes part of a path.
fn checked(namespace: String) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match !namespace.is_empty() && namespace.len() <= 63 && namespace.bytes().all(good) {
        true => Ok(namespace),
        false => Err(format!("{namespace:?} is no namespace")),
    }
}
