"""Reads a report's page as a parser does, and opens it as a browser does."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

# What must neither do anything nor burst the page, wherever a user gives a name.
NASTY = "</script><script>alert('&amp;')</script>{{ 7 * 7 }}"
LONG = "a name that goes on and on, " * 4 + "and_one_without_any_space_in_it_" * 3


@dataclass
class Read(HTMLParser):
    """The rows of every table as texts, by the heading above it; and the spans of figures."""

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    figures: list[tuple[str, str]] = field(default_factory=list)
    heading: str = ""
    text: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        css = dict(attrs).get("class") or ""
        if tag in ("h2", "h3", "th", "td"):
            self.text = ""
        if tag == "br":
            self.text += " "
        if tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        self.kind = css if tag == "span" and css.startswith("figure") else ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.kind:
            self.figures.append((self.kind.removeprefix("figure "), data))

    def handle_endtag(self, tag: str) -> None:
        self.kind = ""
        text = " ".join(self.text.split())
        if tag in ("h2", "h3"):
            self.heading = text
        if tag in ("th", "td"):
            self.tables[self.heading][-1].append(text)


def read(page: str) -> Read:
    found = Read()
    found.feed(page)
    return found


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells under a heading, without the head's."""
    return read(page).tables[heading][1:]


NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DARK = "--blink-settings=preferredColorScheme=0"
# Waits for the charts, then writes down what only the page itself knows.
PROBE = """
<pre id="probe"></pre>
<script>
const timer = setInterval(() => {
  const charts = [...document.querySelectorAll(".chart")];
  if (!charts.every((chart) => chart.querySelector("svg.main-svg"))) return;
  clearInterval(timer);
  document.getElementById("probe").textContent = JSON.stringify({
    verdict: document.querySelector(".verdict").innerText,
    charts: charts.map((chart) =>
      [...chart.querySelectorAll(".main-svg")].map((layer) => layer.textContent).join(" ")),
    points: document.querySelectorAll(".scatterlayer .point").length,
    bars: document.querySelectorAll(".barlayer .point").length,
    ink: getComputedStyle(document.body).color,
    chartInk: getComputedStyle(document.querySelector(".main-svg .xtick text")).fill,
    width: innerWidth,
    needed: document.documentElement.scrollWidth,
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
  });
}, 50);
</script>
</body>
"""


@dataclass(frozen=True)
class Opened:
    """What a page said of itself once it was drawn, and what the browser complained about."""

    said: dict[str, Any]
    complaints: list[str]


Browse = Callable[..., Opened]


def open_page(chromium: str, folder: Path, page: str, *options: str, width: int = 1280) -> Opened:
    path = folder / "report.html"
    path.write_text(page.replace("</body>", PROBE), encoding="utf-8")
    done = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"),
            *(f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"),
            *(*options, path.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    found = re.search(r'<pre id="probe">(.+)</pre>', done.stdout)
    assert found, f"the charts were never drawn: {complaints}"
    return Opened(json.loads(found[1].replace("&amp;", "&")), complaints)
