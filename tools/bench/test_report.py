"""The report of saved results. Run by `cargo xtask test`."""

import os, subprocess, sys, tempfile, unittest
import xml.etree.ElementTree as xml

import report

FIXTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "results.json")
SVG = "{http://www.w3.org/2000/svg}"


class Report(unittest.TestCase):
    def setUp(self):
        self.results = report.load(FIXTURE)

    def test_tables_have_median_and_spread(self):
        text = report.markdown(self.results)
        self.assertEqual(sum(line.startswith("| ") for line in text.splitlines()), 2 + len(self.results["jobs"]) + 2 + 3)
        job = self.results["jobs"][0]
        job["rates"] = {"peerfs": [10, 30, 20], "ext4": [10, 10, 10]}
        self.assertIn("| 2.00 (1.00 to 3.00) | - | - | 20 (10 to 30) | 10 (10 to 10) | - | - |", report.markdown(self.results))

    def test_chart_shows_every_job_and_tells_losses(self):
        chart = xml.fromstring(report.chart(self.results))
        words = [text.text for text in chart.iter(SVG + "text")]
        bars = [bar.get("fill") for bar in chart.iter(SVG + "rect")][1:]
        self.assertTrue(all(job["name"] in words for job in self.results["jobs"]))
        self.assertEqual(bars, [report.WIN, report.LOSS, report.LOSS, report.WIN])
        places = [float(bar.get("x", 0)) + float(bar.get("width")) for bar in chart.iter(SVG + "rect")]
        self.assertLessEqual(max(places), float(chart.get("width")))

    def test_one_run_has_no_spread(self):
        for job in self.results["jobs"]:
            job["rates"] = {name: values[:1] for name, values in job["rates"].items()}
        jobs = report.markdown(self.results).split("Mapped reads")[0].splitlines()[4:]
        self.assertFalse([line for line in jobs if " to " in line])
        xml.fromstring(report.chart(self.results))

    def test_axis_spans_the_ratios(self):
        for low, high in [(0.06, 1.4), (0.5, 2.0), (0.001, 1000.0), (1.0, 2.0)]:
            marks = report.ticks(low, high)
            self.assertTrue(marks[0] <= low * 1.001 and marks[-1] >= high * 0.999, marks)

    def test_page_loads_nothing_and_escapes(self):
        page = report.page(self.results)
        self.assertIn("Example CPU &lt;1&gt;", page)
        self.assertNotIn("<1>", page)
        self.assertFalse([word for word in ("src=", "href=", "@import", "url(") if word in page])

    def test_files_are_written_from_saved_results(self):
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, report.__file__, "--from", FIXTURE, "--report", directory]
            subprocess.run(command, check=True)
            self.assertEqual(sorted(os.listdir(directory)), ["chart.svg", "report.html", "report.md", "results.json"])
            again = subprocess.run([*command[:3], os.path.join(directory, "chart.svg"), *command[4:]], capture_output=True, text=True)
            self.assertEqual((again.returncode, "no results" in again.stderr), (1, True))


if __name__ == "__main__":
    unittest.main()
