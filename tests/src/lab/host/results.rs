//! What came of the cases, as a table.

use std::time::Duration;

use anyhow::Result;

/// One case, over all its boots.
struct Row {
    name: &'static str,
    took: Duration,
    failures: Vec<String>,
}

/// All cases that were run.
#[derive(Default)]
pub struct Results {
    rows: Vec<Row>,
}

impl Results {
    /// What came of a case in a boot. Said at once: a run takes minutes.
    pub fn note(&mut self, name: &'static str, boot: usize, took: Duration, outcome: Result<()>) {
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("  {name}, boot {boot}: {word}, {:.1} s", took.as_secs_f64());
        self.row(name).took += took;
        self.judge(name, outcome);
    }

    /// What a check on the host says of a case.
    pub fn judge(&mut self, name: &'static str, outcome: Result<()>) {
        let row = self.row(name);
        row.failures.extend(outcome.err().map(|error| format!("{error:#}")));
    }

    /// Those of two runs together.
    pub fn and(mut self, mut other: Results) -> Results {
        self.rows.append(&mut other.rows);
        self
    }

    fn row(&mut self, name: &'static str) -> &mut Row {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row { name, took: Duration::ZERO, failures: Vec::new() });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// Prints the table; answers whether all passed.
    pub fn print(&self) -> bool {
        println!();
        for row in &self.rows {
            let word = if row.failures.is_empty() { "pass" } else { "FAIL" };
            println!("{word}  {:<20} {:>6.1} s", row.name, row.took.as_secs_f64());
            for failure in &row.failures {
                println!("      {}", failure.replace('\n', "\n      "));
            }
        }
        let failed = self.rows.iter().filter(|row| !row.failures.is_empty()).count();
        println!("{} passed, {failed} failed", self.rows.len() - failed);
        failed == 0
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_case_that_failed_once_has_failed() {
        let mut results = Results::default();
        results.note("a", 0, Duration::ZERO, Ok(()));
        assert!(results.print());
        results.judge("a", Err(anyhow!("the volume is not clean")));
        results.note("a", 1, Duration::ZERO, Ok(()));
        assert_eq!(results.rows.len(), 1);
        assert!(!results.print());
    }
}
