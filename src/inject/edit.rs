//! Changes to an object, each with the step that undoes it.
//!
//! Owns how a place is named (by keys and by the `name` of a list's item, never by an index, so
//! that a place is found again after others have edited the object) and that every change is
//! logged. Knows nothing of pods.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Error;

/// A place in an object: keys, and `=name` for an item of a list.
pub(super) type Path = Vec<String>;

/// One step back. Applied in reverse order of logging; a step whose place is gone does nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Undo {
    /// Delete this.
    Del(Path),
    /// Delete this if it is empty by now.
    Prune(Path),
    /// Make this null if it is empty by now.
    Null(Path),
    /// Put this back.
    Set(Path, Value),
}

/// Segments of a path.
pub(super) fn path<'a>(base: &[String], more: impl IntoIterator<Item = &'a str>) -> Path {
    let mut out = base.to_vec();
    out.extend(more.into_iter().map(str::to_string));
    out
}

/// A path as a person reads it: `spec.containers[agent].env`.
pub(super) fn shown(path: &[String]) -> String {
    let mut out = String::new();
    for segment in path {
        match segment.strip_prefix('=') {
            Some(name) => out.push_str(&format!("[{name}]")),
            None if out.is_empty() => out.push_str(segment),
            None => out.push_str(&format!(".{segment}")),
        }
    }
    out
}

/// The index of the item of this name: the last, because the last variable of a name wins.
fn item(list: &[Value], name: &str) -> Option<usize> {
    list.iter()
        .rposition(|v| v.get("name").and_then(Value::as_str) == Some(name))
}

/// What is at a place.
pub(super) fn get<'v>(root: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter()
        .try_fold(root, |at, segment| match segment.strip_prefix('=') {
            Some(name) => {
                let list = at.as_array()?;
                list.get(item(list, name)?)
            }
            None => at.get(segment),
        })
}

fn get_mut<'v>(root: &'v mut Value, path: &[String]) -> Option<&'v mut Value> {
    path.iter()
        .try_fold(root, |at, segment| match segment.strip_prefix('=') {
            Some(name) => {
                let list = at.as_array_mut()?;
                let index = item(list, name)?;
                list.get_mut(index)
            }
            None => at.get_mut(segment),
        })
}

fn delete(root: &mut Value, path: &[String]) {
    let Some((last, parent)) = path.split_last() else {
        return;
    };
    let Some(parent) = get_mut(root, parent) else {
        return;
    };
    match (last.strip_prefix('='), parent) {
        (Some(name), Value::Array(list)) => {
            if let Some(index) = item(list, name) {
                list.remove(index);
            }
        }
        (None, Value::Object(map)) => {
            // Not `remove`: that would move the last key into the gap.
            map.shift_remove(last);
        }
        _ => {}
    }
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

impl Undo {
    pub(super) fn apply(&self, root: &mut Value) {
        match self {
            Undo::Del(path) => delete(root, path),
            Undo::Prune(path) => {
                if is_empty(get(root, path)) {
                    delete(root, path);
                }
            }
            Undo::Null(path) => {
                if is_empty(get(root, path))
                    && let Some(value) = get_mut(root, path)
                {
                    *value = Value::Null;
                }
            }
            Undo::Set(path, was) => {
                if let Some(value) = get_mut(root, path) {
                    *value = was.clone();
                }
            }
        }
    }
}

/// Changes an object and remembers how to go back.
#[derive(Debug)]
pub(super) struct Editor<'a> {
    root: &'a mut Value,
    log: Vec<Undo>,
}

impl<'a> Editor<'a> {
    pub(super) fn new(root: &'a mut Value) -> Self {
        Editor {
            root,
            log: Vec::new(),
        }
    }

    pub(super) fn root(&self) -> &Value {
        self.root
    }

    pub(super) fn take_log(&mut self) -> Vec<Undo> {
        std::mem::take(&mut self.log)
    }

    /// Makes sure that there is a map at every step, and returns the last.
    pub(super) fn map(&mut self, path: &[String]) -> Result<&mut Map<String, Value>, Error> {
        for end in 1..=path.len() {
            self.container(&path[..end], Value::Object(Map::new()))?;
        }
        let found = get_mut(self.root, path).and_then(Value::as_object_mut);
        found.ok_or_else(|| malformed(path, "a map"))
    }

    fn container(&mut self, path: &[String], empty: Value) -> Result<(), Error> {
        let (last, parent) = path.split_last().expect("a place below the root");
        match get_mut(self.root, path) {
            Some(Value::Null) => {
                if let Some(value) = get_mut(self.root, path) {
                    *value = empty;
                }
                self.log.push(Undo::Null(path.to_vec()));
            }
            Some(_) => {}
            None => {
                let parent = get_mut(self.root, parent).and_then(Value::as_object_mut);
                let parent = parent.ok_or_else(|| malformed(path, "a map around it"))?;
                parent.insert(last.clone(), empty);
                self.log.push(Undo::Prune(path.to_vec()));
            }
        }
        Ok(())
    }

    /// Appends an item that has a name.
    pub(super) fn append(&mut self, list: &[String], value: Value) -> Result<(), Error> {
        self.map(&list[..list.len() - 1])?;
        self.container(list, Value::Array(Vec::new()))?;
        let name = value.get("name").and_then(Value::as_str);
        let name = format!("={}", name.expect("only items with a name are added"));
        let items = get_mut(self.root, list).and_then(Value::as_array_mut);
        items.ok_or_else(|| malformed(list, "a list"))?.push(value);
        self.log.push(Undo::Del(path(list, [name.as_str()])));
        Ok(())
    }

    /// Puts the item in the place of the last one of its name, or appends it.
    pub(super) fn put(&mut self, list: &[String], value: Value) -> Result<(), Error> {
        let name = value.get("name").and_then(Value::as_str);
        let name = format!("={}", name.expect("only items with a name are put"));
        let place = path(list, [name.as_str()]);
        match get_mut(self.root, &place) {
            Some(there) if *there == value => Ok(()),
            Some(there) => {
                let was = std::mem::replace(there, value);
                self.log.push(Undo::Set(place, was));
                Ok(())
            }
            None => self.append(list, value),
        }
    }

    /// Sets a key, whatever was there.
    pub(super) fn set(&mut self, place: &[String], value: Value) -> Result<(), Error> {
        let (last, parent) = place.split_last().expect("a place below the root");
        if get(self.root, place) == Some(&value) {
            return Ok(());
        }
        let was = self.map(parent)?.insert(last.clone(), value);
        self.log.push(match was {
            Some(was) => Undo::Set(place.to_vec(), was),
            None => Undo::Del(place.to_vec()),
        });
        Ok(())
    }
}

fn malformed(path: &[String], expected: &'static str) -> Error {
    Error::Malformed {
        path: shown(path),
        expected,
    }
}
