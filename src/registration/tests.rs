use super::*;
use crate::proto::scheduler::{Model, ModelSpec, ModelStatus, ModelVersionStatus};
use crate::subscription::status::Wanted;

const GI: u64 = 1 << 30;

fn status(phase: Phase) -> Status {
    Status {
        phase,
        server: "mlserver".into(),
        scheduler: Some("scheduler:9005".into()),
        reported: Some(Wanted {
            memory: 8 * GI,
            capabilities: ["mlserver", "sklearn", "scikit-learn", "spark-mllib"]
                .map(Into::into)
                .into(),
            workers: None,
        }),
        available: Some(5 * GI),
        ..Default::default()
    }
}

fn believed(total: u64, available: u64) -> Check {
    Check::Read(Some(Believed {
        total,
        available,
        models: 1,
        replicas: 1,
        expected: 1,
    }))
}

fn shown(status: &Status, check: &Check) -> Vec<(&'static str, bool)> {
    conditions(status, check, true, Duration::from_secs(9), &[])
        .into_iter()
        .map(|c| (c.name, c.holds))
        .collect()
}

#[test]
fn only_what_could_be_checked_is_claimed() {
    let open = status(Phase::Open);
    for check in [
        Check::NotConfigured,
        Check::Pending,
        Check::Failed("refused".into()),
    ] {
        assert_eq!(shown(&open, &check), [("subscribed", true)]);
    }
    assert_eq!(
        shown(&open, &Check::Read(None)),
        [("subscribed", true), ("registered", false)]
    );
    assert_eq!(
        shown(&open, &believed(8 * GI, 5 * GI)),
        [
            ("subscribed", true),
            ("registered", true),
            ("capacity-agrees", true)
        ]
    );
    let held = status(Phase::Held("the server".into()));
    assert_eq!(shown(&held, &Check::Pending), [("subscribed", false)]);
}

#[test]
fn a_belief_that_differs_is_named_with_both_figures() {
    let reason = |status: &Status, check: &Check| {
        let all = conditions(status, check, true, Duration::ZERO, &[]);
        let found = all
            .into_iter()
            .find(|c| c.name == "capacity-agrees" && !c.holds);
        found.map(|c| c.reason)
    };
    let mut open = status(Phase::Open);
    assert_eq!(
        reason(&open, &believed(0, 0)).unwrap(),
        "the scheduler believes in 0 bytes and was told 8.0Gi"
    );
    let lags = believed(8 * GI, 6 * GI);
    assert_eq!(
        reason(&open, &lags).unwrap(),
        "the scheduler believes that 6.0Gi are free and was told 5.0Gi"
    );
    // What was told after a reading is no difference until the next one.
    let before = conditions(&open, &believed(8 * GI, 5 * GI), true, Duration::ZERO, &[]);
    let after = conditions(&open, &lags, false, Duration::ZERO, &before);
    assert_eq!(after, before);
    open.balance.loading = 1;
    assert_eq!(reason(&open, &lags), None);
}

fn answer(requirements: &[&str], memory: u64, state: ModelState) -> ModelStatusResponse {
    ModelStatusResponse {
        model_name: "iris".into(),
        versions: vec![ModelVersionStatus {
            version: 2,
            state: Some(ModelStatus {
                state: state.into(),
                reason: "no matching servers".into(),
                ..Default::default()
            }),
            model_defn: Some(Model {
                model_spec: Some(ModelSpec {
                    requirements: requirements.iter().map(ToString::to_string).collect(),
                    memory_bytes: Some(memory),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }],
        deleted: false,
    }
}

#[test]
fn a_model_in_trouble_says_what_it_lacks_and_what_is_nearest() {
    let status = status(Phase::Open);
    let Check::Read(believed) = believed(8 * GI, 5 * GI) else {
        panic!()
    };
    let failed = |requirements: &[&str], memory| {
        let answer = answer(requirements, memory, ModelState::ScheduleFailed);
        trouble(&status, believed.as_ref(), &answer).unwrap()
    };
    for (spelled, nearest) in [
        ("sk-learn", Some("sklearn")),
        ("Scikit_Learn", Some("scikit-learn")),
        ("sklearn==1.4", Some("sklearn")),
        ("spark-mlib", Some("spark-mllib")),
        ("tensorflow", None),
    ] {
        let missing = failed(&["mlserver", spelled], GI).requirements;
        assert_eq!(missing.len(), 1, "{spelled}");
        assert_eq!(missing[0].nearest.as_deref(), nearest, "{spelled}");
    }
    let large = failed(&[" sklearn "], 7 * GI);
    assert!(large.requirements.is_empty());
    assert_eq!(large.memory, Some(2 * GI));
    let fine = answer(&["tensorflow"], 0, ModelState::ModelAvailable);
    assert_eq!(trouble(&status, None, &fine), None);
}
