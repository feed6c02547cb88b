//! The environment: a mistake names its variable, and what is accepted is what `config` prints.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use agent_shim::config::scheduler::SELDON_VARIABLES;
use agent_shim::config::{POD_VARIABLES, VARIABLES, load_from};

/// Lines of `NAME=value`.
pub fn check(input: &[u8]) {
    let lines = input.split(|b| *b == b'\n').take(64);
    let variables: Vec<(OsString, OsString)> = lines
        .filter_map(|line| {
            let equals = line.iter().position(|b| *b == b'=')?;
            let part = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
            Some((part(&line[..equals]), part(&line[equals + 1..])))
        })
        .collect();
    let known = |name: &str| {
        let all = VARIABLES.iter().map(|v| v.name);
        all.chain(POD_VARIABLES)
            .chain(SELDON_VARIABLES)
            .any(|n| n == name)
    };
    let loaded = match load_from(variables.clone()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            assert!(!problems.0.is_empty());
            for problem in &problems.0 {
                let no_text = problem.expected == "UTF-8 text";
                assert!(known(&problem.variable) || no_text, "{problem}");
                assert!(!problem.expected.is_empty());
                assert!(problems.to_string().contains(&problem.variable));
            }
            return;
        }
    };
    let shown = loaded.effective();
    assert_eq!(shown.len(), VARIABLES.len());
    // What is printed says all there is to say: it can be set instead.
    let printed = shown
        .iter()
        .map(|(variable, value, _)| (variable.name.into(), value.into()));
    let seldon = variables
        .into_iter()
        .filter(|(name, _)| SELDON_VARIABLES.iter().any(|s| name == s));
    let all: Vec<(OsString, OsString)> = printed.chain(seldon).collect();
    let again =
        load_from(all).unwrap_or_else(|problems| panic!("what is printed is refused: {problems}"));
    assert_eq!(
        again.config, loaded.config,
        "what is printed is not what holds"
    );
    for ((variable, first, origin), (_, second, _)) in shown.iter().zip(again.effective()) {
        assert_eq!(*first, second, "{}", variable.name);
        let stated = loaded.from_environment.contains(&variable.name);
        assert_eq!(*origin, if stated { "environment" } else { "default" });
    }
}
