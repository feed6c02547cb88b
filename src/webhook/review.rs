//! `AdmissionReview` of `admission.k8s.io/v1`: what is read of the question, and the answer.
//!
//! Pure. Reads only what the decision needs and passes over the rest, so that fields of later
//! Kubernetes releases do no harm. The types are the webhook's own: `kube-core`'s bring the whole
//! of the Kubernetes API into the build and refuse a review for fields that nobody here needs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The only version that is spoken.
pub const VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Kubernetes cuts a warning after so many bytes.
const WARNING: usize = 256;
/// Kubernetes cuts all warnings of one request together after so many bytes.
const WARNINGS: usize = 4096;
/// Longest message of a refusal; it becomes an event, which holds 1024 bytes.
const MESSAGE: usize = 800;

/// What the API server asks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// To be repeated in the answer.
    pub uid: String,
    /// What is to be admitted.
    #[serde(default)]
    pub kind: Kind,
    /// `binding` or `status`, for example; none for the object itself.
    #[serde(default)]
    pub sub_resource: Option<String>,
    /// Where; the object itself need not say.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The name, where it is not left to the API server.
    #[serde(default)]
    pub name: Option<String>,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    #[serde(default)]
    pub operation: String,
    /// Nothing will be stored.
    #[serde(default)]
    pub dry_run: Option<bool>,
    /// The object; null for `DELETE`.
    #[serde(default)]
    pub object: Value,
}

/// Group, version and kind of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Kind {
    /// Empty for the core group.
    #[serde(default)]
    pub group: String,
    /// `v1`, for example.
    #[serde(default)]
    pub version: String,
    /// `Pod`, for example.
    #[serde(default)]
    pub kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Value>,
}

/// Why a body is no question.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No JSON, or not of this form.
    #[error("the body is no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON, and no map where one belongs.
    #[error("the body is no AdmissionReview: expected maps")]
    NoMap,
    /// Another kind of object.
    #[error("expected an AdmissionReview of {VERSION}, got kind {kind:?} of {version:?}")]
    Kind {
        /// What it says that it is.
        kind: String,
        /// And of which version.
        version: String,
    },
    /// Another version of the review.
    #[error(
        "{version:?} is not spoken, only {VERSION}: set admissionReviewVersions: [v1] in the MutatingWebhookConfiguration"
    )]
    Version {
        /// What was sent.
        version: String,
    },
    /// An answer instead of a question, or neither.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// Nothing that an answer could refer to.
    #[error("the AdmissionReview's request has no uid")]
    NoUid,
}

/// Reads a body.
pub fn parse(body: &[u8]) -> Result<Question, Error> {
    let envelope: Envelope = serde_json::from_value(map(serde_json::from_slice(body)?)?)?;
    if envelope.kind != KIND || !envelope.api_version.starts_with("admission.k8s.io/") {
        return Err(Error::Kind {
            kind: shown(&envelope.kind, 60),
            version: shown(&envelope.api_version, 60),
        });
    }
    if envelope.api_version != VERSION {
        return Err(Error::Version {
            version: shown(&envelope.api_version, 60),
        });
    }
    let request = envelope.request.ok_or(Error::NoRequest)?;
    let question: Question = serde_json::from_value(map(request)?)?;
    if question.uid.is_empty() {
        return Err(Error::NoUid);
    }
    Ok(question)
}

/// Only a map: the library would take a list for one, its items for the fields in order.
fn map(value: Value) -> Result<Value, Error> {
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(Error::NoMap),
    }
}

/// The answer to one question.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    /// For the audit log of the API server, under the webhook's name.
    audit_annotations: Audit,
}

#[derive(Debug, Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
}

#[derive(Debug, Serialize)]
struct Audit {
    outcome: &'static str,
}

impl Answer {
    /// Lets the object through; `outcome` is for the audit log.
    pub fn allowed(question: &Question, outcome: &'static str, warnings: &[String]) -> Self {
        Answer {
            uid: question.uid.clone(),
            allowed: true,
            patch_type: None,
            patch: None,
            status: None,
            warnings: bounded(warnings),
            audit_annotations: Audit { outcome },
        }
    }

    /// With this change.
    pub fn with_patch(mut self, patch: &Patch) -> Result<Self, serde_json::Error> {
        self.patch_type = Some("JSONPatch");
        self.patch = Some(STANDARD.encode(serde_json::to_vec(patch)?));
        Ok(self)
    }

    /// Refuses the object: its author has to change something.
    pub fn refused(question: &Question, outcome: &'static str, message: &str) -> Self {
        Answer {
            allowed: false,
            status: Some(Status {
                code: 400,
                reason: "BadRequest",
                message: shown(message, MESSAGE),
            }),
            ..Answer::allowed(question, outcome, &[])
        }
    }

    /// The body of the response.
    pub fn body(&self) -> Result<Vec<u8>, serde_json::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Response<'a> {
            api_version: &'static str,
            kind: &'static str,
            response: &'a Answer,
        }
        serde_json::to_vec(&Response {
            api_version: VERSION,
            kind: KIND,
            response: self,
        })
    }
}

/// Warnings as Kubernetes passes them on: printable ASCII, each and all together bounded.
pub fn bounded(warnings: &[String]) -> Vec<String> {
    /// Room for the line that says how many there are besides.
    const REST: usize = 64;
    let mut left = WARNINGS - REST;
    let mut all = Vec::new();
    for (i, warning) in warnings.iter().enumerate() {
        let warning = shown(warning, WARNING);
        if warning.len() > left {
            let more = warnings.len() - i;
            all.push(format!("agent-shim: {more} more warnings are in its log"));
            break;
        }
        left -= warning.len();
        all.push(warning);
    }
    all
}

/// At most `limit` bytes of printable ASCII on one line.
pub fn shown(text: &str, limit: usize) -> String {
    let plain = |c: char| match c {
        ' '..='~' => c,
        c if c.is_control() || c.is_whitespace() => ' ',
        _ => '?',
    };
    let mut plain: String = text.chars().map(plain).take(limit + 1).collect();
    if plain.len() > limit {
        plain.truncate(limit.saturating_sub(3));
        plain.push_str("...");
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_kind_of_wrong_body_is_told_from_the_others() {
        let v1 = r#""apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview""#;
        for (body, part) in [
            (String::new(), "no AdmissionReview: EOF"),
            ("[]".into(), "no AdmissionReview"),
            (
                r#"["admission.k8s.io/v1","AdmissionReview",{}]"#.into(),
                "expected maps",
            ),
            (format!(r#"{v1},"request":["a"]"#), "expected maps"),
            ("{}".into(), r#"got kind "" of """#),
            (
                r#"{"apiVersion":"v1","kind":"Pod"}"#.into(),
                r#"got kind "Pod" of "v1""#,
            ),
            (
                v1.replace("/v1", "/v1beta1"),
                "set admissionReviewVersions: [v1]",
            ),
            (v1.into(), "no request"),
            (format!(r#"{v1},"request":null"#), "no request"),
            (format!(r#"{v1},"request":{{}}"#), "uid"),
            (format!(r#"{v1},"request":{{"uid":""}}"#), "no uid"),
            (format!(r#"{v1},"request":{{"uid":5}}"#), "invalid type"),
            ("[".repeat(10_000), "recursion limit"),
        ] {
            let body = match body.starts_with('"') {
                true => format!("{{{body}}}"),
                false => body,
            };
            let error = parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{body:.80}: {error}");
        }
    }

    #[test]
    fn fields_that_are_not_known_do_no_harm() {
        let body = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","new":1,
            "request":{"uid":"u","operation":"CREATE","dryRun":true,"new":{"a":[]},
            "kind":{"group":"","version":"v1","kind":"Pod","new":2}}}"#;
        let question = parse(body.as_bytes()).unwrap();
        assert_eq!(question.kind.kind, "Pod");
        assert_eq!(question.dry_run, Some(true));
        assert_eq!(question.object, Value::Null);
    }

    #[test]
    fn more_warnings_than_fit_are_counted() {
        let many: Vec<String> = (0..40).map(|i| format!("{i} ").repeat(100)).collect();
        let sent = bounded(&many);
        assert!(
            sent.last()
                .unwrap()
                .ends_with("more warnings are in its log")
        );
        assert_eq!(bounded(&["a\nb\u{1F600}\u{0}".into()]), ["a b? "]);
        assert_eq!(shown(&"x".repeat(300), 256).len(), 256);
        assert_eq!(shown(&"x".repeat(256), 256), "x".repeat(256));
    }

    proptest! {
        #[test]
        fn warnings_keep_the_limits_of_kubernetes(
            warnings in proptest::collection::vec(".{0,600}", 0..40)
        ) {
            let sent = bounded(&warnings);
            prop_assert!(sent.iter().all(|w| w.len() <= WARNING));
            prop_assert!(sent.iter().map(String::len).sum::<usize>() <= WARNINGS);
            prop_assert!(sent.iter().all(|w| w.bytes().all(|b| (b' '..=b'~').contains(&b))));
        }
    }
}
