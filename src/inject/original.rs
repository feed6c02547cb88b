//! What was there before, kept in an annotation of the object.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::edit::{self, Editor, Path, Undo, path};
use super::target::Target;
use super::{Error, INJECTED, ORIGINAL};

/// The form of the annotation. A later form is refused, not guessed at.
pub(super) const VERSION: u32 = 1;

/// The annotation's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Original {
    #[serde(rename = "v")]
    pub(super) version: u32,
    /// The kind of the object that was injected. Annotations travel: from a `Server` to its
    /// StatefulSet and its pods. The log fits only where the kind does.
    pub(super) kind: String,
    pub(super) log: Vec<Undo>,
    /// What the text of the manifest needs beyond the log; opaque here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<Value>,
}

fn annotation<'v>(object: &'v Value, target: &Target) -> Option<&'v str> {
    edit::get(object, &path(&target.annotations, [ORIGINAL]))?.as_str()
}

/// The kind that the annotation names; empty where it cannot be read.
pub(super) fn kind(object: &Value, target: &Target) -> Option<String> {
    let text = annotation(object, target)?;
    let value: Result<Value, _> = serde_json::from_str(text);
    let kind = value
        .ok()
        .and_then(|v| Some(v.get("kind")?.as_str()?.to_string()));
    Some(kind.unwrap_or_else(|| target.kind.as_str().into()))
}

/// Makes room for the annotations, and closes the log: the room is the first thing that is
/// undone.
pub(super) fn prepare(editor: &mut Editor<'_>, target: &Target) -> Result<Vec<Undo>, Error> {
    editor.map(&target.annotations)?;
    Ok(editor.take_log())
}

impl Original {
    /// Takes the annotations off the object.
    pub(super) fn take(object: &mut Value, target: &Target) -> Result<Option<Original>, Error> {
        let Some(text) = annotation(object, target) else {
            return Ok(None);
        };
        let original: Original =
            serde_json::from_str(text).map_err(|error| Error::Lost(error.to_string()))?;
        if original.version != VERSION {
            let why = format!("version {} of {VERSION}", original.version);
            return Err(Error::Lost(why));
        }
        for name in [INJECTED, ORIGINAL] {
            Undo::Del(path(&target.annotations, [name])).apply(object);
        }
        Ok(Some(original))
    }

    /// Goes back, step by step.
    pub(super) fn undo(&self, object: &mut Value) {
        for step in self.log.iter().rev() {
            step.apply(object);
        }
    }

    /// Puts the annotations on the object; there is room, see [`prepare`].
    pub(super) fn store(&self, object: &mut Value, target: &Target) {
        let text = serde_json::to_string(self).expect("strings and JSON can be written");
        let at: &Path = &target.annotations;
        let mut editor = Editor::new(object);
        if let Ok(map) = editor.map(at) {
            map.insert(INJECTED.into(), json!(crate::VERSION));
            map.insert(ORIGINAL.into(), json!(text));
        }
    }
}
