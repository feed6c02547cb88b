//! The properties of the fuzz targets on the stable compiler: every file of the corpora, and some
//! thousand changes of them that are in the same order in every run. `make fuzz` looks further.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

// The one place of the properties; the fuzz crate is no part of this build.
#[path = "../../fuzz/src/lib.rs"]
mod properties;

/// How long each target's corpus is changed for: over two minutes of processor time for all.
const LIMIT: Duration = Duration::from_secs(10);

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut all: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    all.sort();
    let read = |path: PathBuf| (path.clone(), fs::read(&path).unwrap());
    all.into_iter().map(read).collect()
}

/// One small change, as a fuzzer makes them.
fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Rng) {
    let at = random.usize(..=bytes.len());
    let end = (at + random.usize(1..32)).min(bytes.len());
    match random.u8(..8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
        1 if at < bytes.len() => {
            bytes[at] = random
                .choice([0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'{'])
                .unwrap_or(0)
        }
        2 => bytes.insert(at, random.u8(..)),
        3 => drop(bytes.drain(at..end)),
        4 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        5 => bytes.truncate(at),
        _ if !other.is_empty() => {
            let from = random.usize(..other.len());
            let to = (from + random.usize(1..64)).min(other.len());
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        _ => {}
    }
}

/// Checks one input; where it fails, it is kept and named.
fn holds(target: &properties::Target, input: &[u8], from: &str) {
    if catch_unwind(AssertUnwindSafe(|| properties::check(target.name, input))).is_err() {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let kept = folder.join(format!("fuzz-{}", target.name));
        fs::write(&kept, input).unwrap();
        panic!(
            "{}: a property does not hold for {from}; the input is in {}",
            target.name,
            kept.display()
        );
    }
}

fn replay(name: &str) {
    let target = properties::TARGETS.iter().find(|t| t.name == name).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let corpus = files(&folder);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for (path, input) in &corpus {
        holds(target, input, &path.display().to_string());
    }
    let begun = Instant::now();
    for seed in (0..).take_while(|_| begun.elapsed() < LIMIT) {
        let mut random = Rng::with_seed(seed);
        let mut input = corpus[random.usize(..corpus.len())].1.clone();
        let other = &corpus[random.usize(..corpus.len())].1;
        for _ in 0..random.usize(1..6) {
            change(&mut input, other, &mut random);
        }
        holds(target, &input, &format!("seed {seed}"));
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        /// A target that is not replayed would be looked at by nobody.
        #[test]
        fn every_target_has_a_fuzz_target_a_corpus_and_a_test() {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
            let names: Vec<&str> = properties::TARGETS.iter().map(|t| t.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
            let stems = |folder: &str| -> Vec<String> {
                let all = files_of(&root.join(folder));
                all.iter().map(|p| p.file_stem().unwrap().to_str().unwrap().to_string()).collect()
            };
            assert_eq!(stems("fuzz_targets"), names);
            assert_eq!(stems("corpus"), names);
            let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
            for name in names {
                assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
            }
        }
    };
}

fn files_of(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    all.sort();
    all
}

targets! { admission environment exposition frames heads http2 installed kubernetes manifest requests scheduler server subscribe }

/// Small, and nothing in them of the machine that they were made on.
#[test]
fn corpora_are_small_and_say_nothing_of_where_they_were_made() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let here = env!("CARGO_MANIFEST_DIR");
    let mut count = 0;
    for folder in files_of(&corpora) {
        for (path, input) in files(&folder) {
            count += 1;
            assert!(input.len() <= 8192, "{} is large", path.display());
            let text = String::from_utf8_lossy(&input);
            let machine = [here, "/.cargo/", "/home/"];
            let said = machine.iter().find(|part| text.contains(**part));
            assert_eq!(said, None, "{}", path.display());
        }
    }
    assert!(count < 600, "{count} files are too many to keep");
}

/// `unsafe` is forbidden for every target of the package, and nothing takes that back.
#[test]
fn no_line_of_the_project_is_unsafe() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let text = fs::read_to_string(root.join(manifest)).unwrap();
        assert!(text.contains("unsafe_code = \"forbid\""), "{manifest}");
    }
    let mut folders: Vec<PathBuf> = ["src", "tests", "benches", "fuzz/src", "fuzz/fuzz_targets"]
        .map(|f| root.join(f))
        .into();
    folders.push(root.join("build.rs"));
    let word = ["un", "safe"].concat();
    let mut read = 0;
    while let Some(path) = folders.pop() {
        if path.is_dir() {
            folders.extend(files_of(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            read += 1;
            let text = fs::read_to_string(&path).unwrap();
            let code = text
                .lines()
                .map(|line| line.split("//").next().unwrap_or_default());
            for line in code {
                for after in ["", "(", ")"] {
                    let forms = [
                        format!("{word} {{"),
                        format!("{word} fn"),
                        format!("{word} impl"),
                        format!("{word} extern"),
                        format!("({word}_code{after}"),
                        format!("{word}(no_mangle"),
                    ];
                    assert!(
                        !forms.iter().any(|form| line.contains(form.as_str())),
                        "{}: {line}",
                        path.display()
                    );
                }
            }
        }
    }
    assert!(read > 200, "{read}");
}
