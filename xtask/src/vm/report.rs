//! What came out on each kernel, as a page of docs: what the agent chose to do there, and how its tests ended.

use super::debian::Kernel;
use super::machine::Ended;
use super::tests::{self, Choices};
use anyhow::{Context, Result};
use std::fmt::{self, Write};

/// What the test `choices` writes before the findings of `accountant check`.
const MARK: &str = "choice ";

/// One kernel's.
pub(super) struct Findings {
    release: String,
    suite: String,
    /// What `accountant check` said.
    pub(super) choices: Choices,
    /// How tests ended.
    pub(super) outcomes: Vec<(&'static str, Outcome)>,
}

/// How a test ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// So many of its tests passed, and all that ran.
    Passed(u32),
    /// With this exit status.
    Failed(i32),
    /// The agent cannot do there what it is a test of, for this reason.
    NotRun(String),
}

impl Outcome {
    /// By what the test binary printed. One in which nothing ran did not pass.
    pub(super) fn of(ended: &Ended) -> Self {
        let result = ended.log.lines().rev().find_map(|line| line.strip_prefix("test result: ok. "));
        let passed = result.and_then(|result| result.split_once(' ')?.0.parse().ok()).unwrap_or(0);
        if ended.status == 0 && passed > 0 { Self::Passed(passed) } else { Self::Failed(ended.status) }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(tests) => write!(f, "{tests} passed"),
            Self::Failed(status) => write!(f, "FAILED ({status})"),
            Self::NotRun(reason) => write!(f, "not run: {reason}"),
        }
    }
}

impl Findings {
    /// None yet.
    pub(super) fn new(kernel: &Kernel) -> Self {
        let (release, suite) = (kernel.release.clone(), kernel.suite.clone());
        Self { release, suite, choices: Choices::new(), outcomes: Vec::new() }
    }

    /// Takes what a test told of `accountant check`.
    pub(super) fn learn(&mut self, log: &str) -> Result<()> {
        for told in log.lines().filter_map(|line| line.strip_prefix(MARK)) {
            let (rules, said) = told.split_once(' ').context("a choice without findings")?;
            self.choices.insert(rules.into(), serde_json::from_str(said)?);
        }
        Ok(())
    }

    /// Tests that failed.
    pub(super) fn failures(&self) -> Vec<String> {
        let failed = self.outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
        failed.map(|(name, _)| format!("{name} on {}", self.release)).collect()
    }

    /// What the agent does here: by what is asked, and its answer.
    fn chosen(&self) -> Vec<(String, String)> {
        let mut chosen = Vec::new();
        for (rules, said) in &self.choices {
            let reading = match rules.as_str() {
                tests::CALICO_BPF => tests::of_calico_bpf(said),
                _ => tests::text(&tests::counting(Some(said))["reading"]),
            };
            chosen.push((rules.clone(), reading));
        }
        if let Some(said) = self.choices.values().next() {
            for hook in said["kernel_programs"]["hooks"].as_array().into_iter().flatten() {
                let reason = hook["reason"].as_str().map(|reason| format!("cannot be: {reason}"));
                chosen.push((tests::text(&hook["hook"]), reason.unwrap_or_else(|| "can be".into())));
            }
            let interfaces = &said["kernel_programs"]["interfaces"];
            if interfaces.is_object() {
                let reason = interfaces["reason"].as_str().map(|reason| format!("is not counted: {reason}"));
                let said = reason.unwrap_or_else(|| "is counted instead".into());
                chosen.push(("traffic at endpoints' interfaces".into(), said));
            }
        }
        chosen
    }
}

/// The page.
pub(super) fn markdown(all: &[Findings]) -> String {
    let mut page = String::from(
        "# Kernels\n\nMade by `cargo xtask vm-test --docs`: the agent on kernels of Debian's releases, each in a \
         virtual machine with two\nprocessors. The tests are those of this project's real traffic; on each kernel \
         those have to pass that are of what\n`accountant check` says that the agent can do there.\n\n## Tests\n\n|",
    );
    let mut line = |cells: &mut dyn Iterator<Item = String>| {
        // Writing to a string does not fail.
        let _ = writeln!(page, " {} |", cells.collect::<Vec<_>>().join(" | "));
        page.push('|');
    };
    let names: Vec<_> =
        all.first().into_iter().flat_map(|one| one.outcomes.iter().map(|(name, _)| *name)).collect();
    line(&mut ["".into()].into_iter().chain(all.iter().map(|one| one.release.clone())));
    line(&mut (0..=all.len()).map(|_| "---".into()));
    for name in names {
        let outcome = |one: &Findings| {
            let found = one.outcomes.iter().find(|(other, _)| *other == name);
            match found {
                Some((_, Outcome::NotRun(_))) => "cannot, see below".into(),
                Some((_, outcome)) => outcome.to_string(),
                None => String::new(),
            }
        };
        line(&mut [name.to_string()].into_iter().chain(all.iter().map(outcome)));
    }
    page.pop();
    for one in all {
        let _ = write!(page, "\n## Linux {} (Debian {})\n\n", one.release, one.suite);
        for (what, answer) in one.chosen() {
            let _ = writeln!(page, "* {what}: {answer}");
        }
        for (name, outcome) in &one.outcomes {
            if let Outcome::NotRun(reason) = outcome {
                let _ = writeln!(page, "* test `{name}` was not run: {reason}");
            }
        }
    }
    page
}

#[cfg(test)]
mod unit {
    use super::*;

    fn ended(status: i32, log: &str) -> Ended {
        Ended { status, log: log.into() }
    }

    #[test]
    fn what_did_not_run_did_not_pass() {
        let ok = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 0 ignored\n";
        assert_eq!(Outcome::of(&ended(0, ok)), Outcome::Passed(2));
        assert_eq!(Outcome::of(&ended(101, ok)), Outcome::Failed(101));
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 3 filtered out\n";
        assert_eq!(Outcome::of(&ended(0, none)), Outcome::Failed(0));
        assert_eq!(Outcome::of(&ended(0, "")), Outcome::Failed(0));
    }
}
