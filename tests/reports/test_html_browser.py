"""What a browser makes of the HTML page: its layout without scripts, its colours, and what axe-core finds."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from dilrewrite.reports.content.answer import answer as answered
from dilrewrite.reports.formats import html as page_format
from tests.reports.test_html import ALL, plain, render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome")


def browse(folder: Path, page: Path, *options: str) -> str:
    """Run a browser on a page and return what it prints. A second try, for a browser that does not start."""
    assert BROWSER is not None
    fixed = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    for attempt in range(2):
        command = [BROWSER, *fixed, f"--user-data-dir={folder / f'profile{attempt}'}", *options, page.as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return done.stdout.decode("utf-8")
    pytest.skip("the browser does not run here")


def shoot(folder: Path, name: str, width: int, height: int, *options: str) -> tuple[bytes, set[bytes]]:
    """Return the first pixel and all the different lines of a screenshot, which has the size asked for."""
    page, picture = folder / "report.html", folder / "picture.png"
    page.write_text(render(ALL[name]), encoding="utf-8")
    browse(folder, page, f"--window-size={width},{height}", f"--screenshot={picture}", *options)
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = b"", 8
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        chunks += data[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += length + 12
    columns, lines, depth, colours = struct.unpack(">IIBB", data[16:26])
    assert (columns, lines, depth) == (width, height, 8)
    bytes_per_line = 1 + width * {2: 3, 6: 4}[colours]
    raw = zlib.decompress(chunks)
    assert len(raw) == height * bytes_per_line
    return raw[1:4], {raw[i : i + bytes_per_line] for i in range(0, len(raw), bytes_per_line)}


@needs_browser
def test_screenshots(tmp_path):
    """Of a wide light page and a narrow dark one: of the right size, not blank, in the right colours."""
    first, lines = shoot(tmp_path, "charts", 1200, 900)
    assert first == b"\xff\xff\xff"
    assert len(lines) > 300
    first, lines = shoot(tmp_path, "charts", 400, 900, "--blink-settings=preferredColorScheme=0")
    assert first == bytes.fromhex("14181d")
    assert len(lines) > 300


MEASURE = """
const results = [];
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement;
  const folded = root.scrollWidth - root.clientWidth;
  page.querySelectorAll("details").forEach(part => part.open = true);
  const wide = [...page.querySelectorAll("body *")].filter(
    node => !node.closest(".scroll") && node.getBoundingClientRect().right > root.clientWidth + 0.5);
  results.push({
    folded, unfolded: root.scrollWidth - root.clientWidth, wide: wide.map(node => node.outerHTML.slice(0, 80)),
    heading: page.querySelector("h1").textContent, shown: page.querySelector("h1").getBoundingClientRect().height,
    small: Math.min(...[...page.querySelectorAll("p, td, .says, .label")].map(
      node => parseFloat(frame.contentWindow.getComputedStyle(node).fontSize))),
    foreign: page.querySelectorAll("script[src], button, img, iframe, link, object, embed").length,
    hints: [...page.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth).map(
      box => frame.contentWindow.getComputedStyle(box).backgroundAttachment),
    spilt: [...page.querySelectorAll(".graph text")].filter(text => {
      const box = text.previousElementSibling, inner = text.getBoundingClientRect();
      if (box.tagName != "rect") return false;
      const outer = box.getBoundingClientRect();
      return inner.left < outer.left || inner.right > outer.right || inner.bottom > outer.bottom;
    }).map(text => text.textContent),
    loaded: frame.contentWindow.performance.getEntriesByType("resource").length,
    bars: [...page.querySelectorAll("figure")].map(figure => [...figure.querySelectorAll(".plot")].map(plot => {
      const bar = plot.querySelector("rect");
      return [plot.getBoundingClientRect().width, bar ? bar.getBoundingClientRect().width : 0,
        bar ? parseFloat(bar.getAttribute("width")) : 0];
    })),
  });
}
document.body.innerHTML = "";
document.body.textContent = JSON.stringify(results);
"""


def measured_in_browser(folder: Path, shown: Sequence[tuple[str, int]]) -> list[dict[str, object]]:
    """Return what a browser makes of pages in frames of some widths, in which no script can run."""
    frames = "".join(
        f'<iframe sandbox="allow-same-origin" style="width:{width}px;height:900px;border:0" '
        f'srcdoc="{html.escape(render(ALL[name]))}"></iframe>'
        for name, width in shown
    )
    page = folder / "frames.html"
    script = f"<script>addEventListener('load', () => {{{MEASURE}}});</script>"
    page.write_text(f'<!doctype html><meta charset="utf-8"><body>{frames}{script}</body>', encoding="utf-8")
    dumped = browse(folder, page, "--dump-dom")
    found = json.loads(parse_body(dumped))
    assert len(found) == len(shown)
    return found


def parse_body(dumped: str) -> str:
    return html.unescape(re.search(r"<body>(.*)</body>", dumped, re.DOTALL)[1])  # type: ignore[index]


@needs_browser
def test_layout_without_scripts(tmp_path):
    """Nothing is wider than the window, folded or not; bars are as wide as they say; nothing is loaded."""
    names = [name for name in ALL if name != "charts-many"]
    shown = [(name, 360) for name in names] + [("charts", 1200), ("charts-many", 360)]
    for (name, width), found in zip(shown, measured_in_browser(tmp_path, shown), strict=True):
        where = f"{name} at {width} px"
        assert plain(str(found["heading"])) == plain(answered(ALL[name])), where
        assert found["shown"] > 20, where
        assert (found["folded"], found["unfolded"], found["wide"]) == (0, 0, []), where
        assert (found["foreign"], found["loaded"]) == (0, 0), where
        assert found["small"] >= 12, where
        assert set(found["hints"]) <= {"local, local, scroll, scroll"}, where  # type: ignore[call-overload]
        assert bool(found["hints"]) or name not in ("charts", "regions") or width > 360, where
        assert found["spilt"] == [], where
        for figure in found["bars"]:  # type: ignore[attr-defined]
            for plot, bar, length in figure:
                assert plot > (250 if width == 360 else 500), where
                assert bar == pytest.approx(plot * length / page_format.WIDTH, abs=1), where


AXE = [Path(folder) / "axe-core" / "axe.min.js" for folder in ("node_modules", os.environ.get("NODE_PATH") or ".")]
LOOKED_AT = ("charts", "regions", "measured-inconclusive", "differs", "measured-inspected", "bench", "built")
RUN_AXE = """
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(part => part.open = true);
  axe.run().then(found => {
    const told = found.violations.flatMap(one => one.nodes.map(node => `${one.id}: ${node.html.slice(0, 200)}`));
    document.body.textContent = JSON.stringify(told);
  });
});
"""


@needs_browser
@pytest.mark.skipif(not any(map(Path.is_file, AXE)), reason="no axe-core in node_modules or in $NODE_PATH")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    "name", ["charts", "regions", "measured-inconclusive", "differs", "measured-inspected", "built"]
)
def test_axe_finds_nothing(name, dark, tmp_path):
    axe = next(path for path in AXE if path.is_file()).resolve().as_uri()
    source = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", render(ALL[name]))
    page = tmp_path / "report.html"
    script = f'<script src="{axe}"></script><script>{RUN_AXE}</script></head>'
    page.write_text(source.replace("</head>", script), encoding="utf-8")
    colours = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    dumped = browse(tmp_path, page, "--virtual-time-budget=30000", "--dump-dom", *colours)
    assert json.loads(parse_body(dumped)) == []
