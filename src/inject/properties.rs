//! What holds for every pod and every text of one.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const OWNED: [&str; 5] = [
    "SELDON_SERVER_HTTP_PORT",
    "SELDON_SERVER_GRPC_PORT",
    "SELDON_SCHEDULER_HOST",
    "SELDON_SCHEDULER_PORT",
    "CONTROL_PLANE_SECURITY_PROTOCOL",
];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,6}",
        "[ -~]{0,12}",
        Just("yes".to_string()),
        Just("0o644".to_string()),
        Just("1e3".to_string()),
        Just("a: b # c".to_string()),
        Just("two\nlines\n".to_string()),
        Just("it's \"so\" é".to_string()),
        Just("$(POD_IP)".to_string()),
    ]
}

fn variable() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        3 => "[A-C]",
        2 => proptest::sample::select(OWNED.to_vec()).prop_map(str::to_string),
        1 => Just("MLSERVER_HTTP_PORT".to_string()),
        1 => Just("CONTROL_PLANE_CLIENT_TLS_SECRET_NAME".to_string()),
    ];
    let value = prop_oneof![
        text().prop_map(|t| ("value", json!(t))),
        Just(("value", json!("SSL"))),
        Just((
            "valueFrom",
            json!({ "fieldRef": { "fieldPath": "status.podIP" } })
        )),
    ];
    (name, value, any::<bool>()).prop_map(|(name, (key, value), swap)| {
        let mut map = Map::new();
        if swap {
            map.insert(key.into(), value.clone());
        }
        map.insert("name".into(), json!(name));
        map.insert(key.into(), value);
        Value::Object(map)
    })
}

fn list_or_less(items: Vec<Value>, how: u8) -> Option<Value> {
    match (items.is_empty(), how % 3) {
        (true, 0) => None,
        (true, 1) => Some(Value::Null),
        _ => Some(Value::Array(items)),
    }
}

/// None, Seldon's hook, or somebody else's.
fn lifecycle() -> impl Strategy<Value = Option<Value>> {
    proptest::sample::select(vec![
        None,
        Some(Value::Null),
        Some(json!({ "preStop": { "httpGet": { "port": 9007, "path": "terminate" } } })),
        Some(json!({ "preStop": { "exec": { "command": ["sleep", "9"] } } })),
        Some(json!({ "postStart": { "exec": { "command": ["true"] } } })),
    ])
}

fn container(name: String) -> impl Strategy<Value = Value> {
    (
        vec(variable(), 0..5),
        any::<u8>(),
        text(),
        vec(text(), 0..3),
        any::<bool>(),
        proptest::option::of(1u16..10000),
        lifecycle(),
    )
        .prop_map(move |(env, how, image, args, first, port, lifecycle)| {
            let mut map = Map::new();
            if first {
                map.insert("image".into(), json!(image));
            }
            map.insert("name".into(), json!(name));
            if let Some(env) = list_or_less(env, how) {
                map.insert("env".into(), env);
            }
            if let Some(port) = port {
                map.insert("ports".into(), json!([{ "containerPort": port }]));
            }
            map.insert("args".into(), json!(args));
            if let Some(lifecycle) = lifecycle {
                map.insert("lifecycle".into(), lifecycle);
            }
            Value::Object(map)
        })
}

fn object() -> impl Strategy<Value = Value> {
    let extra = vec(
        "x[a-z]{1,3}"
            .prop_map(String::from)
            .prop_flat_map(container),
        0..3,
    );
    (
        container("agent".into()),
        container("mlserver".into()),
        extra.clone(),
        extra,
        (any::<u8>(), any::<u8>(), any::<u8>()),
        vec((text(), text()), 0..3),
        proptest::option::of(1u32..200),
    )
        .prop_map(|(agent, server, extra, init, (kind, how, at), notes, grace)| {
            let mut containers = extra;
            containers.insert(usize::from(at) % (containers.len() + 1), agent);
            containers.insert(usize::from(how) % (containers.len() + 1), server);
            let mut spec = Map::new();
            if how % 2 == 0 {
                spec.insert("hostNetwork".into(), json!(false));
            }
            spec.insert("containers".into(), Value::Array(containers));
            if let Some(init) = list_or_less(init, how) {
                spec.insert("initContainers".into(), init);
            }
            if let Some(grace) = grace {
                spec.insert("terminationGracePeriodSeconds".into(), json!(grace));
            }
            let mut meta = Map::new();
            meta.insert("name".into(), json!("p"));
            let notes: Map<String, Value> =
                notes.into_iter().map(|(k, v)| (k, json!(v))).collect();
            if !notes.is_empty() || at % 2 == 0 {
                meta.insert("annotations".into(), Value::Object(notes));
            }
            let pod = json!({ "metadata": meta, "spec": spec });
            match kind % 4 {
                0 => json!({ "apiVersion": "v1", "kind": "Pod", "metadata": pod["metadata"], "spec": pod["spec"] }),
                1 => json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "spec": { "template": pod, "replicas": 3 } }),
                2 => json!({ "kind": "ServerConfig", "apiVersion": "mlops.seldon.io/v1alpha1", "metadata": pod["metadata"], "spec": { "podSpec": pod["spec"] } }),
                _ => json!({ "kind": "Server", "apiVersion": "mlops.seldon.io/v1alpha1", "metadata": pod["metadata"], "spec": { "podSpec": pod["spec"], "serverConfig": "mlserver" } }),
            }
        })
}

fn options() -> impl Strategy<Value = Options> {
    (
        any::<u8>(),
        any::<bool>(),
        any::<bool>(),
        any::<[bool; 2]>(),
    )
        .prop_map(|(bits, plain, share, [watchdog, drain_hook])| Options {
            style: if plain { Style::Plain } else { Style::Native },
            share_process_namespace: share,
            agent_watchdog: watchdog,
            drain_hook,
            interpose: bits % 4 != 0,
            tls: match bits % 3 {
                0 => Tls::Auto,
                1 => Tls::Off,
                _ => Tls::Secrets {
                    client: "c".into(),
                    server: None,
                },
            },
            ..Options::default()
        })
}

/// A container without a hook that may be the shim's; one of somebody else's stays.
fn without_hook(container: &mut Map<String, Value>) {
    let Some(lifecycle) = container.get_mut("lifecycle") else {
        return;
    };
    let none = match lifecycle {
        Value::Object(map) => {
            if map.get("preStop").is_some_and(|h| h["exec"].is_null()) {
                map.shift_remove("preStop");
            }
            map.is_empty()
        }
        _ => true,
    };
    if none {
        container.shift_remove("lifecycle");
    }
}

/// The object without all that the shim owns.
fn without_owned(mut object: Value, options: &Options) -> Value {
    let target = target::Target::of(&object, options).unwrap().unwrap();
    let pointer = |path: &[String]| path.iter().map(|p| format!("/{p}")).collect::<String>();
    if let Some(Value::Object(notes)) = object.pointer_mut(&pointer(&target.annotations)) {
        notes.retain(|key, _| !key.starts_with("agent-shim.io/"));
        if notes.is_empty() {
            let meta = pointer(&target.annotations[..target.annotations.len() - 1]);
            object
                .pointer_mut(&meta)
                .unwrap()
                .as_object_mut()
                .unwrap()
                .shift_remove("annotations");
        }
    }
    let spec = object
        .pointer_mut(&pointer(&target.spec))
        .unwrap()
        .as_object_mut()
        .unwrap();
    spec.shift_remove("shareProcessNamespace");
    for list in ["containers", "initContainers", "volumes"] {
        let empty = match spec.get_mut(list) {
            Some(Value::Array(items)) => {
                items.retain(|c| !c["name"].as_str().unwrap().starts_with("agent-shim"));
                for c in items.iter_mut().filter(|c| c["name"] == "mlserver") {
                    without_hook(c.as_object_mut().unwrap());
                }
                for c in items.iter_mut().filter(|c| c["name"] == "agent") {
                    let c = c.as_object_mut().unwrap();
                    without_hook(c);
                    c.shift_remove("livenessProbe");
                    let none = match c.get_mut("env") {
                        Some(Value::Array(env)) => {
                            env.retain(|e| !OWNED.contains(&e["name"].as_str().unwrap()));
                            env.is_empty()
                        }
                        _ => true,
                    };
                    if none {
                        c.shift_remove("env");
                    }
                }
                items.is_empty()
            }
            _ => true,
        };
        if empty {
            spec.shift_remove(list);
        }
    }
    object
}

/// A value as a person might have written it: `how` decides about blocks, flows, quotes and
/// comments, one byte a decision.
struct Writer {
    how: Vec<u8>,
    at: usize,
    comments: Vec<String>,
}

impl Writer {
    fn next(&mut self) -> u8 {
        self.at += 1;
        self.how[self.at % self.how.len()].wrapping_add((self.at / self.how.len()) as u8)
    }

    fn comment(&mut self) -> String {
        if !self.next().is_multiple_of(4) {
            return String::new();
        }
        let mark = format!("# c{}", self.comments.len());
        self.comments.push(mark.clone());
        format!(" {mark}")
    }

    fn scalar(&mut self, value: &Value) -> String {
        let Value::String(text) = value else {
            return value.to_string();
        };
        let plain = text.bytes().all(|b| b.is_ascii_lowercase())
            && ![
                "", "yes", "no", "on", "off", "true", "false", "null", "y", "n",
            ]
            .contains(&text.as_str());
        let simple = !text.contains('\n');
        match self.next() % 3 {
            0 if plain => text.clone(),
            1 if simple => format!("'{}'", text.replace('\'', "''")),
            _ => value.to_string(),
        }
    }

    /// Behind a key or a dash that stands at `column`, up to the end of the line.
    fn value(&mut self, value: &Value, column: usize, behind_dash: bool) -> String {
        let flow = self.next().is_multiple_of(6);
        match value {
            Value::Object(map) if !map.is_empty() && !flow => {
                let column = column + 2;
                let pad = " ".repeat(column);
                let mut out = String::new();
                for (at, (key, value)) in map.iter().enumerate() {
                    if at > 0 || !behind_dash {
                        if !behind_dash || at > 0 {
                            out.push_str(&format!("\n{pad}"));
                        }
                    } else {
                        out.push(' ');
                    }
                    let key = json!(key).to_string();
                    out.push_str(&format!("{key}:{}", self.value(value, column, false)));
                }
                out
            }
            Value::Array(list) if !list.is_empty() && !flow => {
                let column =
                    column + usize::from(self.how[0] % 2) * 2 + usize::from(behind_dash) * 2;
                let pad = " ".repeat(column);
                list.iter()
                    .map(|v| format!("\n{pad}-{}", self.value(v, column, true)))
                    .collect()
            }
            Value::Object(_) | Value::Array(_) => format!(" {value}{}", self.comment()),
            value => format!(" {}{}", self.scalar(value), self.comment()),
        }
    }

    fn document(&mut self, value: &Value) -> String {
        let mut out = String::new();
        for (key, value) in value.as_object().unwrap() {
            out.push_str(&format!("{key}:{}\n", self.value(value, 0, false)));
        }
        if self.next().is_multiple_of(3) {
            out.pop();
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn injecting_is_idempotent_removable_and_an_upgrade_is_a_fresh_one(
        object in object(), options in options(), others in options(),
    ) {
        let mut once = object.clone();
        let report = inject(&mut once, &options).unwrap();
        prop_assert!(report.changed && report.applies());
        let mut twice = once.clone();
        prop_assert!(!inject(&mut twice, &options).unwrap().changed);
        // As text, because the order of keys counts too.
        prop_assert_eq!(twice.to_string(), once.to_string());
        prop_assert!(check(&once, &options).unwrap().missing.is_empty());
        prop_assert!(!check(&object, &options).unwrap().missing.is_empty());
        let (mut upgraded, mut fresh) = (once.clone(), object.clone());
        inject(&mut upgraded, &others).unwrap();
        inject(&mut fresh, &others).unwrap();
        prop_assert_eq!(upgraded.to_string(), fresh.to_string());
        let mut back = once;
        remove(&mut back, &options).unwrap();
        prop_assert_eq!(back.to_string(), object.to_string());
    }

    #[test]
    fn nothing_else_is_touched(object in object(), options in options()) {
        let mut done = object.clone();
        inject(&mut done, &options).unwrap();
        prop_assert_eq!(
            without_owned(done.clone(), &options).to_string(),
            without_owned(object, &options).to_string()
        );
        let target = target::Target::of(&done, &options).unwrap().unwrap();
        let agent = target.container(&done, "agent").unwrap();
        let list = if options.style == Style::Native { "initContainers" } else { "containers" };
        let shims = target.containers(&done, list).filter(|c| c["name"] == "agent-shim");
        prop_assert_eq!(shims.count(), 1);
        prop_assert_eq!(env::text(agent, "SELDON_SERVER_HTTP_PORT"), Some("9600"));
        prop_assert_eq!(env::text(agent, "SELDON_SERVER_GRPC_PORT"), Some("9650"));
        let interposed = env::text(agent, "SELDON_SCHEDULER_PORT") == Some("9605");
        prop_assert!(interposed || !options.interpose);
        let shim = target.containers(&done, list).find(|c| c["name"] == "agent-shim").unwrap();
        prop_assert!(env::duplicates(shim).is_empty());
    }

    #[test]
    fn a_text_comes_back_and_keeps_its_comments(
        object in object(), options in options(), how in vec(any::<u8>(), 16..64),
    ) {
        let mut writer = Writer { how, at: 0, comments: Vec::new() };
        let text = writer.document(&object);
        let done = manifest::inject(&text, &options).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        let report = &done.reports[0].report;
        prop_assert!(!report.warns("rewritten"), "{}\n{}", text, done.text);
        let again = manifest::inject(&done.text, &options).unwrap();
        prop_assert_eq!(&again.text, &done.text);
        // A comment stays on its line, unless the line is one that changes.
        let changes = [
            "value", "env", "initContainers", "annotations", "fieldPath", "lifecycle", "preStop",
            "httpGet", "path", "port", "{", "[",
        ];
        for line in text.lines().filter(|l| l.contains("# c")) {
            let may = changes.iter().any(|c| line.contains(c));
            prop_assert!(may || done.text.lines().any(|l| l == line), "{}\n{}", line, done.text);
        }
        // Only what stands behind a value that is replaced by another shape may go.
        let lost = writer.comments.iter().filter(|c| !done.text.contains(c.as_str())).count();
        let hooks = if options.drain_hook { 2 * 4 } else { 0 };
        prop_assert!(lost <= 5 + hooks, "{}\n{}", text, done.text);
        let back = manifest::remove(&done.text, &options).unwrap();
        prop_assert_eq!(back.text, text);
    }

    #[test]
    fn what_others_add_later_stays_in_its_place(object in object(), options in options()) {
        let edit = |object: &mut Value| {
            let target = target::Target::of(object, &options).unwrap().unwrap();
            let mut editor = Editor::new(object);
            editor.set(&edit::path(&target.annotations, ["z"]), json!("z")).unwrap();
            editor.set(&edit::path(&target.spec, ["z"]), json!("z")).unwrap();
            editor.set(&edit::path(&target.spec, ["zz"]), json!("z")).unwrap();
            editor.append(&target.list("containers"), json!({ "name": "z" })).unwrap();
            let env = edit::path(&target.list("containers"), ["=agent", "env"]);
            editor.append(&env, json!({ "name": "z" })).unwrap();
        };
        let (mut done, mut expected) = (object.clone(), object);
        inject(&mut done, &options).unwrap();
        edit(&mut done);
        edit(&mut expected);
        remove(&mut done, &options).unwrap();
        prop_assert_eq!(&done, &expected);
        let keys = |v: &Value| {
            let target = target::Target::of(v, &options).unwrap().unwrap();
            let spec = edit::get(v, &target.spec).unwrap().as_object().unwrap().clone();
            spec.keys().filter(|k| k.starts_with('z')).cloned().collect::<Vec<_>>()
        };
        prop_assert_eq!(keys(&done), keys(&expected));
    }

    #[test]
    fn no_text_makes_it_panic(text in "[-a-z:{}\\[\\]&*!|>'\"#%, \n]{0,80}") {
        let _ = manifest::inject(&text, &Options::default());
    }
}
