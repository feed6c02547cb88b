use super::*;
use proptest::prelude::*;

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}

fn policy(mode: Mode) -> Policy {
    Policy {
        mode,
        list: Vec::new(),
    }
}

fn installed(names: &[&str]) -> Observation {
    Observation {
        source: Source::Distributions,
        distributions: names
            .iter()
            .map(|n| Distribution {
                name: n.to_string(),
                version: "1".into(),
            })
            .collect(),
        settled: true,
        ..Observation::default()
    }
}

/// Seldon's default list.
const SELDON: [&str; 10] = [
    "mlserver",
    "alibi-detect",
    "alibi-explain",
    "huggingface",
    "lightgbm",
    "mlflow",
    "python",
    "sklearn",
    "spark-mlib",
    "xgboost",
];

/// The real server with the sklearn runtime.
const REAL: [&str; 6] = [
    "mlserver",
    "mlserver-sklearn",
    "scikit-learn",
    "numpy",
    "pandas",
    "requests",
];

#[test]
fn a_requirement_spelled_six_ways_is_satisfied() {
    let out = reconcile(&list(&SELDON), &installed(&REAL), &policy(Mode::Add));
    for requirement in [
        "sklearn",
        "scikit-learn",
        "scikit_learn",
        "mlserver[sklearn]",
        "mlserver-sklearn",
        "SKLearn",
        " sklearn ",
        "numpy",
        "spark-mllib",
        "mlserver[mlflow]",
    ] {
        assert_eq!(
            check(requirement, &out.reported),
            Verdict::Satisfied,
            "{requirement}"
        );
    }
}

#[test]
fn the_lists_of_the_complaint_meet() {
    let server = [
        "mlserver",
        "mlserver-mlflow",
        "torch",
        "numpy",
        "scikit-learn",
    ];
    let out = reconcile(&list(&SELDON), &installed(&server), &policy(Mode::Add));
    for requirement in ["mlflow", "torch", "numpy", "scikit-learn", "pytorch"] {
        assert_eq!(
            check(requirement, &out.reported),
            Verdict::Satisfied,
            "{requirement}"
        );
    }
    // Declared and not installed: said, and left alone.
    assert!(out.missing_but_declared.contains(&"sklearn".to_string()));
    assert!(out.reported.contains(&"sklearn".to_string()));
    assert!(out.dropped.is_empty());
}

#[test]
fn strict_drops_what_is_known_and_not_installed_and_nothing_else() {
    let mut declared = list(&SELDON);
    declared.push("gpu-a100".into());
    let out = reconcile(&declared, &installed(&REAL), &policy(Mode::Strict));
    assert_eq!(out.kept, ["gpu-a100", "mlserver", "python", "sklearn"]);
    assert_eq!(
        out.dropped,
        [
            "alibi-detect",
            "alibi-explain",
            "huggingface",
            "lightgbm",
            "mlflow",
            "spark-mlib",
            "xgboost"
        ]
    );
    assert_eq!(out.dropped, out.missing_but_declared);
    assert!(!out.reported.iter().any(|n| n.contains("xgboost")));
}

#[test]
fn strict_drops_nothing_while_nothing_is_known() {
    let out = reconcile(
        &list(&SELDON),
        &Observation::default(),
        &policy(Mode::Strict),
    );
    assert!(out.dropped.is_empty() && out.missing_but_declared.is_empty());
    assert_eq!(out.kept.len(), SELDON.len());
}

#[test]
fn a_library_that_came_along_promises_no_runtime() {
    let only = installed(&["mlserver", "scikit-learn", "xgboost"]);
    for declared in [&[][..], &["scikit-learn"][..]] {
        let out = reconcile(&list(declared), &only, &policy(Mode::Add));
        assert!(out.reported.contains(&"scikit_learn".into()));
        assert!(
            !out.reported.contains(&"sklearn".into()),
            "{:?}",
            out.reported
        );
        assert!(!out.reported.contains(&"mlserver[xgboost]".into()));
        assert!(out.reported.contains(&"xgboost".into()));
    }
    // Without knowledge both are meant.
    let out = reconcile(
        &list(&["scikit-learn"]),
        &Observation::default(),
        &policy(Mode::Add),
    );
    assert!(out.aliased.contains(&"sklearn".into()));
}

#[test]
fn the_parts_of_the_answer_make_up_the_list() {
    let out = reconcile(
        &list(&[" sklearn", "sklearn ", "", "gpu-a100"]),
        &installed(&["mlserver", "mlserver-sklearn", "torch"]),
        &policy(Mode::Add),
    );
    assert_eq!(out.kept, ["gpu-a100", "sklearn"]);
    assert!(out.added.contains(&"pytorch".into()));
    let mut parts = [out.kept.clone(), out.added.clone(), out.aliased.clone()].concat();
    parts.sort();
    assert_eq!(parts, out.reported);
    assert_eq!(out.source, Source::Distributions);
}

#[test]
fn declared_and_explicit_do_what_they_say() {
    let declared = list(&["xgboost", " b", "b"]);
    let out = reconcile(&declared, &installed(&REAL), &policy(Mode::Declared));
    assert_eq!(out.reported, declared);
    assert_eq!(out.missing_but_declared, ["xgboost"]);
    let explicit = Policy {
        mode: Mode::Explicit,
        list: list(&["z", "a", " z", "xgboost"]),
    };
    let out = reconcile(&declared, &installed(&REAL), &explicit);
    assert_eq!(out.reported, ["z", "a", "xgboost"]);
    assert_eq!(out.dropped, ["b"]);
    assert_eq!(out.added, ["a", "z"]);
    let out = reconcile(&declared, &installed(&REAL), &policy(Mode::Explicit));
    assert_eq!(out.reported, declared, "no list is not an empty list");
}

#[test]
fn a_list_is_taken_at_its_word_with_every_spelling() {
    let observation = Observation {
        source: Source::Explicit,
        names: list(&["scikit-learn", "gpu-a100"]),
        ..Observation::default()
    };
    let out = reconcile(&list(&["mlflow"]), &observation, &policy(Mode::Strict));
    assert_eq!(out.dropped, ["mlflow"]);
    for name in ["sklearn", "scikit-learn", "gpu-a100"] {
        assert!(out.added.contains(&name.into()), "{name}");
    }
}

#[test]
fn requirements_that_fail_are_told_apart() {
    let reported = list(&["sklearn", "xgboost", "gpu-a100"]);
    for (requirement, expected) in [
        ("sklearn", Verdict::Satisfied),
        ("GPU_A100", Verdict::Spelling("gpu-a100".into())),
        ("mlserver[sklearn]", Verdict::Spelling("sklearn".into())),
        ("xgbost", Verdict::Near("xgboost".into())),
        ("tensorflow", Verdict::Absent),
    ] {
        assert_eq!(check(requirement, &reported), expected, "{requirement}");
    }
}

#[test]
fn versions_are_there_for_display() {
    assert_eq!(installed(&REAL).version("Scikit_Learn"), Some("1"));
    assert_eq!(installed(&REAL).version("torch"), None);
}

#[test]
fn two_thousand_names_and_five_thousand_distributions_are_fast() {
    let names: Vec<String> = (0..2000).map(|n| format!("label-{n}")).collect();
    let dists: Vec<String> = (0..5000).map(|n| format!("dist-{n}")).collect();
    let dists: Vec<&str> = dists.iter().map(String::as_str).collect();
    let started = tokio::time::Instant::now();
    let out = reconcile(&names, &installed(&dists), &policy(Mode::Add));
    assert_eq!(out.reported.len(), 2000);
    // Generous: a debug build on a loaded machine; a quadratic one takes minutes.
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn the_hash_is_the_same_on_every_build_and_fits_a_gauge() {
    assert_eq!(hash(&list(&["a", "b"])), hash(&list(&["a", "b"])));
    assert_ne!(hash(&list(&["a", "b"])), hash(&list(&["ab"])));
    assert_ne!(hash(&list(&["a", "b"])), hash(&list(&["b", "a"])));
    assert!(hash(&list(&SELDON)) < 1 << 52);
    assert_eq!(hash(&[]), 0x2_9ce4_8422_2325 ^ 0xcbf);
}

fn any_name() -> impl Strategy<Value = String> {
    let known = vec![
        "sklearn",
        "SKLearn",
        "scikit-learn",
        "mlserver[sklearn]",
        "mlserver-xgboost",
        "xgboost",
        "torch",
        "pytorch",
        "spark-mlib",
        "mlflow",
        "python",
        "mlserver",
        "numpy==1.2",
    ];
    prop_oneof![
        4 => prop::sample::select(known).prop_map(str::to_string),
        2 => "[a-zA-Z][a-zA-Z0-9-]{0,8}",
        1 => "\\PC{0,12}",
        1 => "gpu-[a-z0-9]{1,4} {0,2}",
    ]
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let dists = vec![
        "mlserver",
        "mlserver-sklearn",
        "scikit-learn",
        "mlserver-xgboost",
        "xgboost",
        "torch",
        "numpy",
        "mlserver-mllib",
        "requests",
    ];
    let names = prop::collection::vec(any_name(), 0..4);
    prop_oneof![
        1 => Just(Observation::default()),
        4 => prop::sample::subsequence(dists, 0..9).prop_map(|d| installed(&d)),
        1 => names.prop_map(|names| Observation { source: Source::File, names, ..Observation::default() }),
    ]
}

proptest! {
    #[test]
    fn reconciling_twice_is_reconciling_once(
        names in prop::collection::vec(any_name(), 0..12),
        seen in any_observation(),
        mode in prop::sample::select(vec![Mode::Add, Mode::Strict, Mode::Declared]),
    ) {
        let once = reconcile(&names, &seen, &policy(mode));
        let twice = reconcile(&once.reported, &seen, &policy(mode));
        prop_assert_eq!(&once.reported, &twice.reported);
        prop_assert_eq!(once.hash, twice.hash);
        prop_assert!(twice.dropped.is_empty());
    }

    #[test]
    fn the_order_of_lists_and_of_installation_does_not_matter(
        (names, shuffled) in prop::collection::vec(any_name(), 0..12)
            .prop_flat_map(|n| (Just(n.clone()), Just(n).prop_shuffle())),
        seen in any_observation(),
        strict: bool,
    ) {
        let mode = policy(if strict { Mode::Strict } else { Mode::Add });
        let mut other = seen.clone();
        other.distributions.reverse();
        other.names.reverse();
        prop_assert_eq!(reconcile(&names, &seen, &mode), reconcile(&shuffled, &other, &mode));
    }

    #[test]
    fn add_never_removes_and_no_mode_removes_a_label(
        names in prop::collection::vec(any_name(), 0..12),
        seen in any_observation(),
    ) {
        let add = reconcile(&names, &seen, &policy(Mode::Add));
        let strict = reconcile(&names, &seen, &policy(Mode::Strict));
        prop_assert!(add.dropped.is_empty());
        for name in names.iter().map(|n| n.trim()).filter(|n| !n.is_empty()) {
            prop_assert!(add.reported.iter().any(|n| n == name));
            if table::lookup(name).is_empty() || name.starts_with("gpu-") {
                prop_assert!(strict.reported.iter().any(|n| n == name));
            }
        }
        // Sorted, trimmed, no repeats, nothing empty; strict says no more than add.
        prop_assert!(add.reported.windows(2).all(|w| w[0] < w[1]));
        prop_assert!(add.reported.iter().all(|n| !n.is_empty() && n.trim() == n));
        prop_assert!(strict.reported.iter().all(|n| add.reported.contains(n)));
    }

    #[test]
    fn everything_that_is_installed_is_reported(seen in any_observation()) {
        let out = reconcile(&[], &seen, &policy(Mode::Strict));
        for dist in &seen.distributions {
            for form in table::provided_by(&dist.name) {
                for spelling in form.spellings() {
                    prop_assert_eq!(check(&spelling, &out.reported), Verdict::Satisfied);
                }
            }
        }
    }
}

#[test]
fn a_list_with_the_server_means_custom_code_as_well() {
    let observation = Observation {
        source: Source::Explicit,
        names: vec!["mlserver".into(), "sklearn".into()],
        ..Observation::default()
    };
    let requested = ["mlserver", "python", "sklearn", "xgboost"].map(String::from);
    let policy = Policy {
        mode: Mode::Strict,
        list: Vec::new(),
    };
    let reconciled = reconcile(&requested, &observation, &policy);
    assert_eq!(reconciled.missing_but_declared, ["xgboost"]);
    assert!(reconciled.reported.contains(&"python".to_string()));
}
