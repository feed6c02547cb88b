//! `agent-shim inject`: manifests from files or stdin, with the shim in place, to stdout or back.
//!
//! A thin loop around [`crate::inject::manifest`]. Nothing is written unless every document of
//! every file was understood. Manifests go to stdout, all that is said about them to stderr.
//! Exit codes: 0 as asked, 1 failed or, with `--check`, incomplete, 2 usage.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use similar::TextDiff;

use super::{USAGE, failed, print};
use crate::inject::manifest::{self, Found, Outcome, Refused};
use crate::inject::{self, Kind, Options};

mod args;

pub use args::InjectArgs;

/// One input.
struct Input {
    /// `None`: stdin.
    path: Option<PathBuf>,
    text: String,
}

impl Input {
    fn name(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "stdin".into(),
        }
    }
}

/// Runs the command.
pub fn main(args: &InjectArgs) -> ExitCode {
    let mut options = match args.what.options() {
        Ok(options) => options,
        Err(why) => return usage(&why),
    };
    let inputs = match read(&args.files) {
        Ok(inputs) => inputs,
        Err(why) => return failed(&why),
    };
    if args.in_place && inputs.iter().any(|i| i.path.is_none()) {
        return usage("--in-place: expected files, not stdin");
    }
    if !args.remove {
        options.injected_configs = configs(&inputs, &options);
    }
    let work = |text: &str| -> Result<Outcome, Refused> {
        if args.remove {
            manifest::remove(text, &options)
        } else {
            manifest::inject(text, &options)
        }
    };
    let mut done: Vec<(Input, Outcome)> = Vec::new();
    let mut refused = false;
    for input in inputs {
        match work(&input.text) {
            Ok(outcome) => done.push((input, outcome)),
            // Every file's first mistake is shown, not only the first file's.
            Err(why) => {
                print::said(&format!("agent-shim: {}, {why}", input.name()));
                refused = true;
            }
        }
    }
    if refused {
        return ExitCode::FAILURE;
    }
    if !args.quiet {
        for (input, outcome) in &done {
            comment(&input.name(), outcome);
        }
        if !done.iter().any(|(_, outcome)| outcome.applies()) {
            print::said(&format!(
                "note: nothing to do: no pod with containers {} and {}, no Server and no ServerConfig",
                options.agent, options.inference
            ));
        }
    }
    let mut said = String::new();
    if args.diff {
        for (input, outcome) in &done {
            said += &unified(&input.name(), &input.text, &outcome.text);
        }
    }
    if args.check {
        let code = check(&done, &options, &mut said);
        return print::out(&said, code);
    }
    if args.diff {
        return print::out(&said, ExitCode::SUCCESS);
    }
    write(args, &done)
}

/// The `ServerConfig`s among the inputs that the shim goes into. What cannot be read is reported
/// when it is worked on.
fn configs(inputs: &[Input], options: &Options) -> Vec<String> {
    let texts = inputs.iter().filter_map(|i| manifest::values(&i.text).ok());
    texts
        .flatten()
        .filter(|object| Kind::of(object) == Some(Kind::ServerConfig))
        .filter(|object| inject::inject(&mut object.clone(), options).is_ok_and(|r| r.applies()))
        .filter_map(|object| Some(object.pointer("/metadata/name")?.as_str()?.to_string()))
        .collect()
}

fn usage(why: &str) -> ExitCode {
    print::said(&format!("agent-shim: {why}"));
    ExitCode::from(USAGE)
}

fn read(files: &[PathBuf]) -> Result<Vec<Input>, String> {
    let stdin = [PathBuf::from("-")];
    let files = if files.is_empty() { &stdin[..] } else { files };
    files
        .iter()
        .map(|path| {
            let (path, bytes) = if path.as_os_str() == "-" {
                let mut bytes = Vec::new();
                let read = std::io::stdin().read_to_end(&mut bytes);
                read.map_err(|error| format!("stdin: {error}"))?;
                (None, bytes)
            } else {
                let bytes = std::fs::read(path);
                let bytes = bytes.map_err(|error| format!("{}: {error}", path.display()))?;
                (Some(path.clone()), bytes)
            };
            let name = || path.as_deref().unwrap_or(Path::new("stdin")).display();
            match String::from_utf8(bytes) {
                Ok(text) => Ok(Input { path, text }),
                Err(error) => Err(format!(
                    "{}: expected UTF-8 text, found another byte at {}",
                    name(),
                    error.utf8_error().valid_up_to()
                )),
            }
        })
        .collect()
}

fn place(file: &str, found: &Found) -> String {
    format!("{file}:{}: {}", found.line, found.report.name)
}

/// Says what was seen, on stderr.
fn comment(file: &str, outcome: &Outcome) {
    for found in &outcome.reports {
        let at = place(file, found);
        if let Some(skipped) = &found.report.skipped {
            print::said(&format!("note: {at} is left alone: {skipped}"));
        }
        for warning in &found.report.warnings {
            print::said(&format!(
                "warning[{}]: {at}: {}\n  fix: {}",
                warning.id, warning.text, warning.fix
            ));
        }
    }
}

/// What is missing, line by line, and what that comes to.
fn check(done: &[(Input, Outcome)], options: &Options, said: &mut String) -> ExitCode {
    let mut complete = true;
    let mut seen = 0;
    for (input, _) in done {
        // Cannot be refused: the same text has just been injected.
        let Ok(outcome) = manifest::check(&input.text, options) else {
            return ExitCode::FAILURE;
        };
        for found in outcome.reports.iter().filter(|f| f.report.applies()) {
            seen += 1;
            let at = place(&input.name(), found);
            if found.report.missing.is_empty() {
                *said += &format!("{at}: complete\n");
            }
            for difference in &found.report.missing {
                complete = false;
                *said += &format!("{at}: {difference}\n");
            }
        }
    }
    if complete && seen > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn unified(name: &str, before: &str, after: &str) -> String {
    if before == after {
        return String::new();
    }
    // `patch -p1` in the folder that the name starts from.
    let name = name.trim_start_matches('/');
    let (old, new) = (format!("a/{name}"), format!("b/{name}"));
    TextDiff::from_lines(before, after)
        .unified_diff()
        .header(&old, &new)
        .to_string()
}

fn write(args: &InjectArgs, done: &[(Input, Outcome)]) -> ExitCode {
    let to_file = |path: &Path, text: &str| {
        replace(path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    if args.in_place {
        for (input, outcome) in done {
            if let Some(path) = &input.path
                && outcome.text != input.text
                && let Err(why) = to_file(path, &outcome.text)
            {
                return failed(&why);
            }
        }
        return ExitCode::SUCCESS;
    }
    let mut text = String::new();
    for (_, outcome) in done {
        if !text.is_empty() && !outcome.text.starts_with("---") {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str("---\n");
        }
        text.push_str(&outcome.text);
    }
    match &args.output {
        Some(path) => match to_file(path, &text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => failed(&why),
        },
        None => print::out(&text, ExitCode::SUCCESS),
    }
}

/// Whole or not at all: a file beside it, renamed over it. Through a link to what it points at.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mut beside = path.clone().into_os_string();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = std::fs::write(&beside, text).and_then(|()| {
        if let Ok(there) = std::fs::metadata(&path) {
            std::fs::set_permissions(&beside, there.permissions())?;
        }
        std::fs::rename(&beside, &path)
    });
    if written.is_err() {
        // The first error is the one that matters.
        let _ = std::fs::remove_file(&beside);
    }
    written
}
