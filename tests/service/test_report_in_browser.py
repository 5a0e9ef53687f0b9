"""A report in a real browser, without a screen or a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nncontrol_prune.controllers.bundle import Bundle
from nncontrol_prune.controllers.verdict import Verdict
from nncontrol_prune.runtime.store import BundleStore
from nncontrol_prune.service.report import make_report
from nncontrol_prune.service.report_charts import charts_of
from nncontrol_prune.service.report_files import write_report
from nncontrol_prune.validation.evidence import Evidence

BROWSERS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=1200,6000",
    "--virtual-time-budget=10000",
)


@pytest.mark.skipif(BROWSER is None, reason=f"no browser is installed ({', '.join(BROWSERS)})")
def test_every_plot_is_drawn_without_an_error_or_a_request(
    pendulum: Bundle,
    pendulum_evidence: Evidence,
    make_verdict: Callable[..., Verdict],
    store: BundleStore,
    tmp_path: Path,
) -> None:
    verdict = make_verdict(pendulum).model_copy(update={"against": pendulum.reference})
    store.add(pendulum)
    store.write_verdict(verdict)
    report = make_report(verdict, pendulum, pendulum, store, "it stands", pendulum_evidence)
    write_report(report, tmp_path / "report")
    page = tmp_path / "report" / "report.html"
    # What the page looks like when its scripts have run is for them to say: plots are drawn in shadow roots.
    probe = """<script>addEventListener("load", () => setTimeout(() => {
        const canvases = [];
        const walk = node => {
            if (node.shadowRoot) walk(node.shadowRoot);
            if (node.tagName === "CANVAS") canvases.push(node);
            for (const child of node.children ?? []) walk(child);
        };
        for (const chart of document.querySelectorAll(".chart")) {
            canvases.length = 0;
            walk(chart);
            const drawn = canvases.filter(canvas => {
                if (!canvas.width || !canvas.height) return false;
                const pixels = canvas.getContext("2d")?.getImageData(0, 0, canvas.width, canvas.height).data ?? [];
                return pixels.some((value, index) => index % 4 < 3 && value > 0 && value < 250);
            });
            chart.setAttribute("data-drawn", drawn.length);
        }
        document.body.setAttribute("data-requests", performance.getEntriesByType("resource").length);
    }, 4000))</script>"""
    probed = tmp_path / "probed.html"
    # The page's own policy forbids reading from other files, but not its own canvases.
    probed.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    drawn = dict(re.findall(r'<div class="chart" id="(\w+)" data-drawn="(\d+)"', done.stdout))
    assert drawn.keys() == charts_of(report).keys() >= {"eigenvalues", "responses", "latency"}
    assert all(int(count) > 0 for count in drawn.values()), drawn
    assert 'data-requests="0"' in done.stdout
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "[bokeh" not in line]
    assert console == []
