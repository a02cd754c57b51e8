//! What came of a run.

use std::fmt;

use serde_json::{Value, json};

/// What came of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The rule holds.
    Passed,
    /// It does not, or the case could not be carried through.
    Failed(String),
    /// The backend cannot show it, and why.
    Skipped(String),
}

/// One case on one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The case.
    pub case: &'static str,
    /// The rule.
    pub rule: &'static str,
    /// The backend.
    pub backend: String,
    /// What came of it.
    pub verdict: Verdict,
    /// Paths, reasons and triggers it has asserted, also if it was skipped half-way.
    pub asserted: Vec<String>,
    /// How long it took, milliseconds.
    pub took_ms: u64,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order they ran.
    pub lines: Vec<Line>,
}

impl Report {
    /// Passed, failed, skipped.
    pub fn counts(&self) -> [usize; 3] {
        let count = |wanted: fn(&Verdict) -> bool| self.lines.iter().filter(|line| wanted(&line.verdict)).count();
        [
            count(|verdict| matches!(verdict, Verdict::Passed)),
            count(|verdict| matches!(verdict, Verdict::Failed(_))),
            count(|verdict| matches!(verdict, Verdict::Skipped(_))),
        ]
    }

    /// No case failed, and at least one passed.
    pub fn holds(&self) -> bool {
        let [passed, failed, _] = self.counts();
        failed == 0 && passed > 0
    }

    /// The last line.
    pub fn summary(&self) -> String {
        let [passed, failed, skipped] = self.counts();
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let [passed, failed, skipped] = self.counts();
        let lines: Vec<Value> = self.lines.iter().map(Line::json).collect();
        json!({ "cases": lines, "passed": passed, "failed": failed, "skipped": skipped })
    }
}

impl Line {
    fn outcome(&self) -> (&'static str, &str) {
        match &self.verdict {
            Verdict::Passed => ("passed", ""),
            Verdict::Failed(why) => ("FAILED", why),
            Verdict::Skipped(why) => ("skipped", why),
        }
    }

    fn json(&self) -> Value {
        let (result, why) = self.outcome();
        json!({
            "case": self.case, "rule": self.rule, "backend": self.backend, "result": result.to_lowercase(), "why": why,
            "asserted": self.asserted, "took_ms": self.took_ms,
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (result, why) = self.outcome();
        write!(f, "{result:7} {:5} {}: {}", self.backend, self.case, self.rule)?;
        if !self.asserted.is_empty() {
            write!(f, " [{}]", self.asserted.join(", "))?;
        }
        if why.is_empty() { Ok(()) } else { write!(f, " ({why})") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(verdict: Verdict) -> Line {
        Line { case: "a", rule: "b", backend: "image".into(), verdict, asserted: vec!["fallback Hole".into()], took_ms: 1 }
    }

    #[test]
    fn a_skip_is_no_pass() {
        let mut report = Report { lines: vec![line(Verdict::Skipped("no room".into()))] };
        assert!(!report.holds());
        assert_eq!(report.summary(), "0 passed, 0 failed, 1 skipped");
        report.lines.push(line(Verdict::Passed));
        assert!(report.holds());
        report.lines.push(line(Verdict::Failed("why".into())));
        assert!(!report.holds());
        assert_eq!(report.lines[2].to_string(), "FAILED  image a: b [fallback Hole] (why)");
    }
}
