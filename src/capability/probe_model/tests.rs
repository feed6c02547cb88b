use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::procfs::tree::Tree;

const LIMIT: Duration = Duration::from_millis(300);

/// A server that answers each path with a status and a body, and never where there is none.
struct Standin {
    base: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Standin {
    async fn new(answers: &'static [(&'static str, u16, &'static str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let log = log.clone();
                tokio::spawn(async move {
                    let mut head = vec![0; 8192];
                    let n = stream.read(&mut head).await.unwrap();
                    let head = String::from_utf8_lossy(&head[..n]).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default().to_string();
                    let last = path.rsplit('/').next().unwrap_or_default().to_string();
                    log.lock().unwrap().push(last.clone());
                    match answers.iter().find(|(name, _, _)| *name == last) {
                        Some((_, status, body)) => {
                            let length = body.len();
                            let text = format!(
                                "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                            );
                            let _ = stream.write_all(text.as_bytes()).await;
                        }
                        None => std::future::pending().await,
                    }
                });
            }
        });
        Standin { base, asked }
    }

    async fn probe(&self, tree: &Tree) -> Result<Answer, Failed> {
        probe(&Client::new(), &self.base, tree.path(), LIMIT).await
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn empty(tree: &Tree) -> bool {
    std::fs::read_dir(tree.path()).unwrap().next().is_none()
}

const SAID: &str = r#"{"outputs":[{"data":["{\"distributions\": [[\"MLServer\", \"1.7.1\"], [\"\", \"\"], [\"mlserver_sklearn\", \"1.7.1\"]], \"cgroup\": {\"version\": 2, \"limit\": \"max\\n\", \"current\": \"5\\n\", \"peak\": \"\"}}"]}]}"#;

#[tokio::test]
async fn the_model_is_placed_loaded_asked_unloaded_and_removed() {
    let tree = Tree::new();
    let all = &[
        ("ready", 200, ""),
        ("load", 200, ""),
        ("infer", 200, SAID),
        ("unload", 200, ""),
    ];
    let server = Standin::new(all).await;
    let answer = server.probe(&tree).await.unwrap();
    let names: Vec<&str> = answer
        .distributions
        .iter()
        .map(|d| d.name.as_str())
        .collect();
    assert_eq!(names, ["mlserver", "mlserver-sklearn"]);
    let cgroup = answer.cgroup.unwrap();
    assert_eq!(
        (cgroup.limit, cgroup.current, cgroup.peak),
        (None, Some(5), None)
    );
    assert_eq!(
        answer.observation(Duration::ZERO).source,
        Source::ProbeModel
    );
    assert_eq!(server.asked(), ["ready", "load", "infer", "unload"]);
    assert!(empty(&tree));
}

#[tokio::test]
async fn every_failure_unloads_and_removes() {
    type Case = (
        &'static [(&'static str, u16, &'static str)],
        fn(&Failed) -> bool,
    );
    let cases: [Case; 4] = [
        (
            &[("ready", 200, ""), ("load", 500, "no"), ("unload", 404, "")],
            |f| matches!(f, Failed::Load(why) if why.contains("500") && why.contains("no")),
        ),
        (
            &[("ready", 200, ""), ("unload", 200, "")],
            |f| matches!(f, Failed::Load(why) if why.contains("no answer within")),
        ),
        (
            &[
                ("ready", 200, ""),
                ("load", 200, ""),
                ("infer", 200, "{}"),
                ("unload", 200, ""),
            ],
            |f| matches!(f, Failed::Ask(_)),
        ),
        (
            &[
                ("ready", 200, ""),
                ("load", 200, ""),
                ("infer", 500, "x"),
                ("unload", 200, ""),
            ],
            |f| matches!(f, Failed::Ask(_)),
        ),
    ];
    for (answers, expected) in cases {
        let tree = Tree::new();
        let server = Standin::new(answers).await;
        let failed = server.probe(&tree).await.unwrap_err();
        assert!(expected(&failed), "{failed}");
        assert!(empty(&tree), "{failed}");
        assert_eq!(server.asked().last().unwrap(), "unload");
    }
}

#[tokio::test]
async fn a_server_that_is_not_ready_is_left_alone() {
    let tree = Tree::new();
    let server = Standin::new(&[("ready", 400, "")]).await;
    assert_eq!(server.probe(&tree).await, Err(Failed::Busy));
    assert_eq!(server.asked(), ["ready"]);
    assert!(empty(&tree));
}

#[tokio::test]
async fn the_files_stay_while_the_model_may_be_loaded_and_go_with_the_next_probe() {
    let tree = Tree::new();
    let stuck = Standin::new(&[("ready", 200, ""), ("load", 200, ""), ("infer", 200, SAID)]).await;
    let answer = stuck.probe(&tree).await.unwrap();
    assert!(answer.left_behind.unwrap().contains("no answer within"));
    assert!(tree.path().join(NAME).join("model-settings.json").exists());
    let server = Standin::new(&[("unload", 404, ""), ("ready", 503, "")]).await;
    assert_eq!(server.probe(&tree).await, Err(Failed::Busy));
    assert_eq!(server.asked(), ["unload", "ready"]);
    assert!(empty(&tree));
}

#[tokio::test]
async fn what_is_not_the_shims_is_never_touched() {
    let server = Standin::new(&[("ready", 200, ""), ("unload", 200, "")]).await;
    let tree = Tree::new();
    tree.file(&format!("{NAME}/model.joblib"), "precious");
    assert!(matches!(server.probe(&tree).await, Err(Failed::Foreign(_))));
    let linked = Tree::new();
    tree.file("elsewhere/agent_shim_probe.py", "");
    let target = tree.path().join("elsewhere");
    linked.link(NAME, target.to_str().unwrap());
    assert!(matches!(
        server.probe(&linked).await,
        Err(Failed::Foreign(_))
    ));
    assert!(tree.path().join(NAME).join("model.joblib").exists());
    assert!(target.join("agent_shim_probe.py").exists());
    let nowhere = probe(&Client::new(), &server.base, Path::new("/proc/none"), LIMIT).await;
    assert!(matches!(nowhere, Err(Failed::Place(_))), "{nowhere:?}");
    assert!(!server.asked().contains(&"load".to_string()));
}
