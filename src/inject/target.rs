//! Which objects the shim goes into, and where in them.

use serde_json::Value;

use super::edit::{self, Path, path};
use super::{Error, Options, Skipped};

/// The kinds that the shim goes into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pod.
    Pod,
    /// A StatefulSet.
    StatefulSet,
    /// A Deployment.
    Deployment,
    /// Seldon's `Server`: a fragment that the operator merges into a `ServerConfig`.
    Server,
    /// Seldon's `ServerConfig`.
    ServerConfig,
}

impl Kind {
    /// As in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Pod => "Pod",
            Kind::StatefulSet => "StatefulSet",
            Kind::Deployment => "Deployment",
            Kind::Server => "Server",
            Kind::ServerConfig => "ServerConfig",
        }
    }

    /// The kind of an object, by `apiVersion` and `kind`.
    pub fn of(object: &Value) -> Option<Kind> {
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        let (version, kind) = (text("apiVersion")?, text("kind")?);
        let group = version.split_once('/').map_or("", |(group, _)| group);
        Some(match (group, kind) {
            ("", "Pod") => Kind::Pod,
            ("apps", "StatefulSet") => Kind::StatefulSet,
            ("apps", "Deployment") => Kind::Deployment,
            ("mlops.seldon.io", "Server") => Kind::Server,
            ("mlops.seldon.io", "ServerConfig") => Kind::ServerConfig,
            _ => return None,
        })
    }

    /// Whether the containers are only overrides of ones that stand elsewhere.
    pub fn is_fragment(self) -> bool {
        self == Kind::Server
    }
}

/// An object's kind and the places in it.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) kind: Kind,
    /// Of the pod.
    pub(super) spec: Path,
    /// That reach the pod.
    pub(super) annotations: Path,
}

impl Target {
    /// `None` for an object of another kind.
    pub(super) fn of(object: &Value, _options: &Options) -> Result<Option<Target>, Error> {
        let Some(kind) = Kind::of(object) else {
            return Ok(None);
        };
        let place = |keys: &[&str]| path(&[], keys.iter().copied());
        let (spec, annotations): (&[&str], &[&str]) = match kind {
            Kind::Pod => (&["spec"], &["metadata", "annotations"]),
            Kind::StatefulSet | Kind::Deployment => (
                &["spec", "template", "spec"],
                &["spec", "template", "metadata", "annotations"],
            ),
            // The operator copies them to the pod.
            Kind::Server | Kind::ServerConfig => {
                (&["spec", "podSpec"], &["metadata", "annotations"])
            }
        };
        let target = Target {
            kind,
            spec: place(spec),
            annotations: place(annotations),
        };
        target.check_shape(object)?;
        Ok(Some(target))
    }

    /// Everything that is read or written later has the type that Kubernetes gives it.
    fn check_shape(&self, object: &Value) -> Result<(), Error> {
        let wrong = |place: &[String], expected| {
            Err(Error::Malformed {
                path: edit::shown(place),
                expected,
            })
        };
        for end in 1..=self.spec.len() {
            match edit::get(object, &self.spec[..end]) {
                Some(Value::Object(_) | Value::Null) | None => {}
                Some(_) => return wrong(&self.spec[..end], "a map"),
            }
        }
        for end in 1..=self.annotations.len() {
            match edit::get(object, &self.annotations[..end]) {
                Some(Value::Object(_) | Value::Null) | None => {}
                Some(_) => return wrong(&self.annotations[..end], "a map"),
            }
        }
        for list in ["containers", "initContainers", "volumes"] {
            let place = path(&self.spec, [list]);
            let items = match edit::get(object, &place) {
                Some(Value::Array(items)) => items,
                Some(Value::Null) | None => continue,
                Some(_) => return wrong(&place, "a list"),
            };
            for item in items {
                if item.get("name").and_then(Value::as_str).is_none() {
                    return wrong(&place, "items with a name");
                }
                for inner in ["env", "ports", "volumeMounts", "args", "command"] {
                    match item.get(inner) {
                        Some(Value::Array(_) | Value::Null) | None => {}
                        Some(_) => return wrong(&path(&place, [inner]), "a list"),
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn name(&self, object: &Value) -> String {
        let meta = |key: &str| object.get("metadata")?.get(key)?.as_str();
        let name = meta("name").or_else(|| meta("generateName"));
        let parts = [Some(self.kind.as_str()), meta("namespace"), name];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        parts.join("/")
    }

    /// Why the object is none of ours, although of a known kind.
    pub(super) fn skip(&self, object: &Value, options: &Options) -> Option<Skipped> {
        if self.kind == Kind::Server {
            let config = object.get("spec")?.get("serverConfig")?.as_str()?;
            if options.injected_configs.iter().any(|c| c == config) {
                return Some(Skipped::Covered(config.into()));
            }
            return config
                .contains("triton")
                .then(|| Skipped::OtherRuntime(config.into()));
        }
        [&options.agent, &options.inference]
            .into_iter()
            .find(|name| self.container(object, name).is_none())
            .map(|name| Skipped::NoContainer(name.clone()))
    }

    /// The list of ordinary containers, or of init containers.
    pub(super) fn list(&self, list: &str) -> Path {
        path(&self.spec, [list])
    }

    /// An ordinary container.
    pub(super) fn container<'v>(&self, object: &'v Value, name: &str) -> Option<&'v Value> {
        edit::get(
            object,
            &path(&self.spec, ["containers", &format!("={name}")]),
        )
    }

    /// A field of the pod.
    pub(super) fn field<'v>(&self, object: &'v Value, key: &str) -> Option<&'v Value> {
        edit::get(object, &path(&self.spec, [key])).filter(|v| !v.is_null())
    }

    /// All containers of a list.
    pub(super) fn containers<'v>(
        &self,
        object: &'v Value,
        list: &str,
    ) -> impl Iterator<Item = &'v Value> {
        self.field(object, list)
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
    }

    /// Whether any container, init or not, has this name.
    pub(super) fn has_container(&self, object: &Value, name: &str) -> bool {
        ["containers", "initContainers"]
            .iter()
            .flat_map(|list| self.containers(object, list))
            .any(|c| c.get("name").and_then(Value::as_str) == Some(name))
    }
}
