import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ambient_diffusers.evaluation.report import report


class Page(HTMLParser):
    """The texts, the cells of the summary, and everything that a page refers to."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.references, self.open, self.rows = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # well formed

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def estimate(value, spread=0.1):
    return {"value": value, "low": value - spread, "high": value + spread}


def write_results(folder, distance, auc, p):
    share = {"threshold": 0.9, "train": 0.25, "held_out": 0.05, "expected": 0.15, "p": p}
    scores = {"auc": estimate(auc), "true_positive_rate_at_1_percent": estimate(0.3)}
    results = {
        "quality": {"measures": {"frechet_distance": {"name": "Frechet distance, <Lite0>"} | estimate(distance, 2.0)}},
        "memorisation": {"shares": [share], "settings": {"seed": 11}},
        "membership": {"scores": {"loss": scores, "relative": scores}},
        "attack_noise": {"shares": [share], "membership": {"similarity": scores}},
        "restoration": {"settings": {}},
    }
    for part, content in results.items():
        (folder / part).mkdir(parents=True)
        (folder / part / f"{part}.json").write_text(json.dumps(content))
        Image.new("RGB", (700, 300), "navy").save(folder / part / f"{part}.png")
    Image.new("RGB", (900, 500), "olive").save(folder / "attack_noise" / "attack_noise_top.png")
    return folder


@pytest.fixture
def page_file(tmp_path):
    folders = {
        "clean & tuned": write_results(tmp_path / "clean", 50.0, 0.9, 0.001),
        "ambient 500": write_results(tmp_path / "ambient", 55.0, 0.6, 0.4),
    }
    return report(folders, tmp_path / "report.html", title="A <report>")


def test_the_page_shows_every_figure_and_needs_no_other_file(page_file):
    page = Page(page_file.read_text())
    assert not page.open
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows[""] == ["clean & tuned", "ambient 500"]
    assert rows["Frechet distance, <Lite0>"] == ["50 [48, 52]", "55 [53, 57]"]
    assert rows["membership AUC, relative"] == ["0.9 [0.8, 1]", "0.6 [0.5, 0.7]"]
    assert rows["generated, similarity ≥ 0.9"][0] == "25.0% train, 5.0% held-out, p = 0.001"
    assert "A <report>" in page.texts and any('"seed": 11' in text for text in page.texts)
    # The scatter, and 6 pictures of each model.
    assert len(page.references) == 1 + 2 * 6
    for reference in page.references:
        kind, data = reference.split(",", 1)
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).load()
    assert not re.search(r"https?://", page_file.read_text())


def test_parts_that_are_missing_are_left_out(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "quality.json").write_text(
        json.dumps({"measures": {"recall": {"name": "recall", "value": 0.5, "low": None, "high": None}}})
    )
    folders = {"a": write_results(tmp_path / "full", 1.0, 0.7, 0.1)}
    (folders["a"] / "quality" / "quality.json").unlink()
    page = Page(report(folders | {"b": folder}, tmp_path / "report.html").read_text())
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["recall"] == ["–", "0.5"] and rows["membership AUC, loss"][1] == "–"
    assert "Quality against memorisation" not in page.texts


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="models must name at least one folder"):
        report({}, tmp_path / "report.html")
    with pytest.raises(ValueError, match="folder of 'x' must hold results"):
        report({"x": tmp_path}, tmp_path / "report.html")
    write_results(tmp_path / "a", 1, 0.5, 1)
    write_results(tmp_path / "b", 1, 0.5, 1)
    with pytest.raises(ValueError, match="must hold one quality.json, got a/quality/quality.json, b/quality"):
        report({"x": tmp_path}, tmp_path / "report.html")


@pytest.mark.parametrize("width", [360, 1280])
def test_screenshot_in_headless_chromium(page_file, tmp_path, width):
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    browser = next((path for path in map(shutil.which, names) if path), None)
    if browser is None:
        pytest.skip("no Chromium")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path}",
    ]
    shot = tmp_path / "shot.png"
    url = page_file.as_uri()
    subprocess.run([*command, f"--window-size={width},1600", f"--screenshot={shot}", url], check=True, timeout=120)
    picture = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert picture.shape[1] == width
    # The scatter and the table are there: neither blank nor one colour, and nothing touches the right edge.
    assert picture.std() > 10 and picture[:200].std() > 5
    assert picture[:, -8:].std() < 1
    dom = subprocess.run([*command, "--dump-dom", url], check=True, timeout=120, capture_output=True, text=True).stdout
    assert "membership AUC, relative" in dom and "0.9 [0.8, 1]" in dom
