//! The names: spellings of capabilities, and the Python distributions behind them.
//!
//! A capability has up to two forms. The *runtime* is MLServer's own package for it and can load
//! models; the *library* is what code in a custom model may import. Where both have one name
//! (`xgboost`) that name is the library's, since either package brings it; where they do not
//! (`sklearn` is the runtime, `scikit-learn` the library) each form keeps its own, so that a
//! library that came as a dependency never promises a runtime.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Which half of a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What code can import.
    Library,
    /// What can load models. Brings the library along.
    Runtime,
}

/// One form of one row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Form {
    row: usize,
    /// Which half.
    pub form: Kind,
}

struct Row {
    /// The runtime's distribution, and by it the pip spellings; empty for a mere library.
    runtime: &'static str,
    /// Names of the runtime, the one that Seldon uses first.
    names_of_runtime: &'static [&'static str],
    /// Distributions that bring the library.
    libraries: &'static [&'static str],
    /// Names of the library.
    names_of_library: &'static [&'static str],
}

const fn runtime(
    runtime: &'static str,
    names_of_runtime: &'static [&'static str],
    libraries: &'static [&'static str],
    names_of_library: &'static [&'static str],
) -> Row {
    Row {
        runtime,
        names_of_runtime,
        libraries,
        names_of_library,
    }
}

const fn library(
    libraries: &'static [&'static str],
    names_of_library: &'static [&'static str],
) -> Row {
    runtime("", &[], libraries, names_of_library)
}

/// Every spelling that is sent. Spellings differ from each other by case or punctuation only
/// where people really write them so: the scheduler compares exact strings.
const ROWS: &[Row] = &[
    // Custom code runs wherever MLServer does.
    runtime("mlserver", &["mlserver"], &[], &[]),
    runtime("mlserver", &["python"], &[], &[]),
    runtime(
        "mlserver-sklearn",
        &["sklearn", "SKLearn"],
        &["scikit-learn"],
        &["scikit-learn", "scikit_learn"],
    ),
    runtime(
        "mlserver-xgboost",
        &[],
        &["xgboost", "xgboost-cpu"],
        &["xgboost", "XGBoost"],
    ),
    runtime(
        "mlserver-lightgbm",
        &[],
        &["lightgbm"],
        &["lightgbm", "LightGBM"],
    ),
    runtime(
        "mlserver-catboost",
        &[],
        &["catboost"],
        &["catboost", "CatBoost"],
    ),
    runtime("mlserver-mlflow", &["mlflow", "MLflow"], &[], &[]),
    runtime(
        "mlserver-huggingface",
        &["huggingface", "HuggingFace"],
        &[],
        &[],
    ),
    // Seldon's list has had the name without the second l from the start.
    runtime(
        "mlserver-mllib",
        &["spark-mlib", "spark-mllib", "spark_mlib", "spark_mllib"],
        &[],
        &[],
    ),
    runtime(
        "mlserver-alibi-detect",
        &["alibi-detect", "alibi_detect"],
        &[],
        &[],
    ),
    runtime(
        "mlserver-alibi-explain",
        &["alibi-explain", "alibi_explain"],
        &[],
        &[],
    ),
    library(&["torch"], &["torch", "pytorch", "PyTorch"]),
    library(
        &[
            "tensorflow",
            "tensorflow-cpu",
            "tensorflow-gpu",
            "tensorflow-intel",
            "intel-tensorflow",
        ],
        &["tensorflow", "TensorFlow"],
    ),
    library(&["numpy"], &["numpy"]),
    library(&["pandas"], &["pandas"]),
    library(&["scipy"], &["scipy"]),
    library(&["transformers"], &["transformers"]),
    library(
        &["sentence-transformers"],
        &["sentence-transformers", "sentence_transformers"],
    ),
    library(&["torchvision"], &["torchvision"]),
    library(&["torchaudio"], &["torchaudio"]),
    library(&["keras"], &["keras"]),
    library(&["jax"], &["jax"]),
    library(&["onnx"], &["onnx"]),
    library(&["onnxruntime", "onnxruntime-gpu"], &["onnxruntime"]),
    library(&["pyspark"], &["pyspark"]),
    library(&["pyarrow"], &["pyarrow"]),
    library(&["polars"], &["polars"]),
    library(&["statsmodels"], &["statsmodels"]),
    library(&["prophet"], &["prophet"]),
    library(&["shap"], &["shap"]),
    library(&["spacy"], &["spacy"]),
    library(&["nltk"], &["nltk"]),
    library(&["gensim"], &["gensim"]),
    library(
        &[
            "opencv-python",
            "opencv-python-headless",
            "opencv-contrib-python",
        ],
        &["opencv-python", "opencv"],
    ),
    library(&["pillow"], &["pillow", "Pillow"]),
    library(&["accelerate"], &["accelerate"]),
    library(&["diffusers"], &["diffusers"]),
    library(&["optimum"], &["optimum"]),
    library(&["joblib"], &["joblib"]),
];

const PIP_PREFIX: &str = "mlserver-";

impl Row {
    /// `sklearn` for `mlserver-sklearn`; nothing for MLServer itself and for libraries.
    fn extra(&self) -> Option<&'static str> {
        self.runtime.strip_prefix(PIP_PREFIX)
    }

    fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::Library => !self.names_of_library.is_empty(),
            Kind::Runtime => !self.runtime.is_empty(),
        }
    }
}

impl Form {
    /// The forms that are the same thing to people who write requirements: this and the other
    /// half of its row.
    pub fn aliases(self) -> impl Iterator<Item = Form> {
        let row = self.row;
        [Kind::Library, Kind::Runtime]
            .into_iter()
            .filter(move |kind| ROWS[row].has(*kind))
            .map(move |form| Form { row, form })
    }

    /// Every spelling of this form that is sent.
    pub fn spellings(self) -> impl Iterator<Item = String> {
        let row = &ROWS[self.row];
        let (names, extra) = match self.form {
            Kind::Library => (row.names_of_library, None),
            Kind::Runtime => (row.names_of_runtime, row.extra()),
        };
        let pip = extra.map(|extra| [format!("mlserver[{extra}]"), format!("{PIP_PREFIX}{extra}")]);
        names
            .iter()
            .map(|name| (*name).to_string())
            .chain(pip.into_iter().flatten())
    }
}

/// The forms that a name stands for, however it is spelled: any case, dashes or underscores, pip
/// extras, a version after it. Empty for a name that the table does not know.
pub fn lookup(name: &str) -> &'static [Form] {
    let known = |key: &str| INDEX.names.get(key).map_or(&[][..], Vec::as_slice);
    match extra(name) {
        Some(extra) => known(&format!("{PIP_PREFIX}{}", fold(extra))),
        None => known(&fold(name)),
    }
}

/// The forms that an installed distribution brings. A runtime depends on its library.
pub fn provided_by(distribution: &str) -> &'static [Form] {
    let name = normalise(distribution);
    INDEX.distributions.get(&name).map_or(&[], Vec::as_slice)
}

/// Whether two names are halves of one capability: the runtime and the library that it serves.
pub fn related(a: &str, b: &str) -> bool {
    let of_b = lookup(b);
    let mut halves = lookup(a).iter().flat_map(|form| form.aliases());
    halves.any(|form| of_b.contains(&form))
}

/// The distributions that would bring what a name stands for, the usual one first; empty for a
/// name that the table does not know.
pub fn providers(name: &str) -> Vec<&'static str> {
    let mut all = Vec::new();
    for form in lookup(name) {
        let row = &ROWS[form.row];
        let usual = match form.form {
            Kind::Runtime => Some(row.runtime),
            // Where both have one name, the runtime is what can load a model.
            Kind::Library if row.names_of_runtime.is_empty() && !row.runtime.is_empty() => {
                Some(row.runtime)
            }
            Kind::Library => row.libraries.first().copied(),
        };
        if let Some(distribution) = usual.filter(|d| !d.is_empty() && !all.contains(d)) {
            all.push(distribution);
        }
    }
    all
}

/// The table from both ends, made once.
struct Index {
    names: HashMap<String, Vec<Form>>,
    distributions: HashMap<String, Vec<Form>>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index {
        names: HashMap::new(),
        distributions: HashMap::new(),
    };
    let put = |map: &mut HashMap<String, Vec<Form>>, key: String, form: Form| {
        let forms = map.entry(key).or_default();
        if !forms.contains(&form) {
            forms.push(form);
        }
    };
    for form in forms() {
        let row = &ROWS[form.row];
        for spelling in form.spellings().filter(|s| !s.contains('[')) {
            put(&mut index.names, fold(&spelling), form);
        }
        if !row.runtime.is_empty() {
            put(&mut index.distributions, row.runtime.into(), form);
        }
        if form.form == Kind::Library {
            for library in row.libraries {
                put(&mut index.distributions, (*library).into(), form);
            }
        }
    }
    index
});

fn forms() -> impl Iterator<Item = Form> {
    (0..ROWS.len()).flat_map(|row| {
        [Kind::Library, Kind::Runtime]
            .into_iter()
            .filter(move |kind| ROWS[row].has(*kind))
            .map(move |form| Form { row, form })
    })
}

/// The name of a distribution as PEP 503 has it: lower case, runs of `-`, `_` and `.` as one dash.
pub fn normalise(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.trim().chars() {
        match c {
            '-' | '_' | '.' if out.ends_with('-') => {}
            '-' | '_' | '.' => out.push('-'),
            c => out.extend(c.to_lowercase()),
        }
    }
    out
}

/// A name without what people put around it: extras, a version, a marker, case and punctuation.
pub fn fold(name: &str) -> String {
    let end = name.find(['=', '<', '>', '!', '~', ';', '@']);
    normalise(name[..end.unwrap_or(name.len())].trim())
}

/// `sklearn` of `mlserver[sklearn]`.
fn extra(name: &str) -> Option<&str> {
    let (base, rest) = name.split_once('[')?;
    let (extra, _) = rest.split_once(']')?;
    (normalise(base) == "mlserver" && !extra.contains(',')).then_some(extra.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spellings(forms: &[Form]) -> Vec<String> {
        let mut all: Vec<String> = forms.iter().flat_map(|f| f.spellings()).collect();
        all.sort();
        all
    }

    #[test]
    fn names_are_known_however_they_are_spelled() {
        let sklearn = lookup("sklearn");
        for name in [
            "SKLearn",
            " sklearn ",
            "mlserver[sklearn]",
            "mlserver [ SKlearn ]",
            "mlserver-sklearn",
            "mlserver_sklearn==1.7.1",
            "mlserver[sklearn]>=1.3",
        ] {
            assert_eq!(lookup(name), sklearn, "{name}");
        }
        let library = lookup("scikit-learn");
        for name in [
            "scikit_learn",
            "Scikit-Learn",
            "scikit.learn",
            "scikit-learn==1.2; x",
        ] {
            assert_eq!(lookup(name), library, "{name}");
        }
        assert_eq!(lookup("pytorch"), lookup("torch>2"));
        assert_eq!(lookup("spark_mllib"), lookup("spark-mlib"));
        for unknown in [
            "gpu-a100",
            "",
            "  ",
            "=",
            "mlserver[nothing]",
            "mlserver[",
            "mlserver[sklearn,mlflow]",
            "[x]",
            "ML",
            "torch-gpu",
        ] {
            assert!(lookup(unknown).is_empty(), "{unknown}");
        }
    }

    #[test]
    fn every_runtime_has_the_name_that_seldon_uses() {
        for (dist, name) in [
            ("mlserver", "mlserver"),
            ("mlserver", "python"),
            ("mlserver-sklearn", "sklearn"),
            ("mlserver-xgboost", "xgboost"),
            ("mlserver_lightgbm", "lightgbm"),
            ("mlserver-catboost", "catboost"),
            ("MLServer-MLflow", "mlflow"),
            ("mlserver-huggingface", "huggingface"),
            ("mlserver-mllib", "spark-mlib"),
            ("mlserver-mllib", "spark-mllib"),
            ("mlserver-alibi-detect", "alibi-detect"),
            ("mlserver-alibi-explain", "alibi-explain"),
            ("torch", "torch"),
            ("torch", "pytorch"),
            ("tensorflow-cpu", "tensorflow"),
            ("scikit-learn", "scikit-learn"),
            ("opencv-python-headless", "opencv-python"),
        ] {
            let names = spellings(provided_by(dist));
            assert!(names.iter().any(|n| n == name), "{dist} gives {names:?}");
        }
        assert_eq!(provided_by("requests"), [] as [Form; 0]);
    }

    #[test]
    fn a_library_does_not_promise_its_runtime() {
        assert_eq!(
            spellings(provided_by("scikit-learn")),
            ["scikit-learn", "scikit_learn"]
        );
        assert_eq!(spellings(provided_by("xgboost")), ["XGBoost", "xgboost"]);
        assert_eq!(
            spellings(provided_by("mlserver-xgboost")),
            [
                "XGBoost",
                "mlserver-xgboost",
                "mlserver[xgboost]",
                "xgboost"
            ]
        );
        assert_eq!(provided_by("transformers").len(), 1);
    }

    #[test]
    fn what_would_bring_a_capability_is_known() {
        for (name, expected) in [
            ("scikit_learn", &["scikit-learn"][..]),
            ("sklearn", &["mlserver-sklearn"]),
            ("pytorch", &["torch"]),
            ("xgboost", &["mlserver-xgboost"]),
            ("gpu-a100", &[]),
        ] {
            let found = providers(name);
            assert!(
                expected.iter().all(|e| found.contains(e)),
                "{name}: {found:?}"
            );
            assert_eq!(found.is_empty(), expected.is_empty(), "{name}");
        }
        assert!(related("scikit_learn", "mlserver[sklearn]") && related("sklearn", "scikit-learn"));
        assert!(!related("sklearn", "xgboost") && !related("gpu", "gpu"));
    }

    #[test]
    fn every_spelling_leads_back_to_its_own_row_and_no_other() {
        for form in forms() {
            for spelling in form.spellings() {
                let found = lookup(&spelling);
                assert!(found.iter().all(|f| f.row == form.row), "{spelling}");
                assert!(!found.is_empty(), "{spelling}");
            }
        }
    }

    #[test]
    fn distributions_are_normalised_as_pep_503_says() {
        for (name, expected) in [
            ("Scikit_Learn", "scikit-learn"),
            ("zope.interface", "zope-interface"),
            ("a-_.b", "a-b"),
            (" MLServer ", "mlserver"),
        ] {
            assert_eq!(normalise(name), expected);
        }
    }
}
