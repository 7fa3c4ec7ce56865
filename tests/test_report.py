"""The report holds every figure; a browser draws all plots without errors and without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import evaluate
from lr_gym.benchmark.figures import write_figures
from lr_gym.benchmark.markdown import tables as tables_of
from lr_gym.benchmark.report import write_report
from lr_gym.benchmark.results import plain
from lr_gym.benchmark.scores import Interval

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LR_GYM_CACHE", str(folder / "cache"))
        args = evaluate.Args(
            folder / "out",
            policy=("builtin:mnist1d",),
            optimizers="adam,sgd",
            task=("quadratic", "logistic"),
            seeds=2,
            budget=2,
            tuning_seeds=1,
            horizon=20,
            workers=1,
            misset=True,
            wandb="disabled",
        )
        evaluate.main(args)
    return json.loads((folder / "out" / "results.json").read_text())


@pytest.fixture(scope="module")
def report(results, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(results, path)
    return path


def tables(html: str) -> str:
    """The part of the page that needs no scripts."""
    return html[html.index("<body>") :]


def test_losses_are_as_plain_as_wins(results, tmp_path):
    pair = {
        "first": "policy mnist1d",
        "second": "sgd",
        "difference": -0.5,
        "p": 0.001,
        "p_holm": 0.01,
        "better": "sgd",
    }
    others = [p for p in results["pairs"] if {p["first"], p["second"]} != {"policy mnist1d", "sgd"}]
    write_report({**results, "pairs": [pair, *others]}, tmp_path / "worse.html")
    html = tables((tmp_path / "worse.html").read_text())
    assert "policy worse" in html
    assert "-0.500" in html


def test_one_seed_has_no_intervals_and_says_so(results, tmp_path):
    row = {**results["ranking"][0], "score": {"mean": 0.25, "low": 0.25, "high": 0.25}}
    write_report({**results, "ranking": [row, *results["ranking"][1:]]}, tmp_path / "one.html")
    html = tables((tmp_path / "one.html").read_text())
    assert "<td>+0.250</td><td>-</td>" in html


def test_the_certificate_is_shown_or_missed(results, tmp_path):
    about = {
        key: value
        for key, value in results["policies"]["builtin:mnist1d"].items()
        if key != "certificate"
    }
    write_report({**results, "policies": {"builtin:mnist1d": about}}, tmp_path / "without.html")
    assert "No feedback certificate was made" in (tmp_path / "without.html").read_text()
    gaps = {"replay": Interval(-0.021, -0.03, -0.012), "shuffled": Interval(0.5, 0.4, 0.6)}
    gaps["untrained"] = Interval(-0.1, -0.3, 0.1)
    certificate = {"task": "mnist1d-mlp", "seeds": 20, "differences": plain(gaps)}
    policies = {"builtin:mnist1d": {**about, "certificate": certificate}}
    write_report({**results, "policies": policies}, tmp_path / "certified.html")
    html = tables((tmp_path / "certified.html").read_text())
    rows = {
        line.split("</td>")[0]: line
        for line in html.splitlines()
        if "replayed" in line or "itself with" in line
    }
    assert "policy better" in rows["<tr><td>its replayed mean schedule"]
    assert "-0.0210" in rows["<tr><td>its replayed mean schedule"]
    assert "policy worse" in rows["<tr><td>itself with another run&#39;s observations"]
    assert "No feedback certificate" not in html


def test_figures_are_in_tables_too(results, report):
    html = tables(report.read_text())
    for entry in results["ranking"]:
        assert f"{entry['score']['mean']:+.3f}" in html
    for task in results["tasks"].values():
        for row in task["rows"]:
            if row["test_loss"]["mean"] is not None:
                assert f"{row['test_loss']['mean']:.4g}" in html


def test_figures_are_explained(results, report):
    html = tables(report.read_text())
    assert "0.7 half the loss" in html
    (line,) = (line for line in results["summary"] if line.startswith("policy mnist1d against"))
    assert "against the best baseline" in line
    assert "of 2 tasks" in line
    assert html.count("against the best baseline") == 2


def test_names_cannot_inject_markup(results, tmp_path):
    write_report({**results, "command": "<script>alert(1)</script>"}, tmp_path / "r.html")
    assert "<script>alert(1)" not in (tmp_path / "r.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_in_a_browser(report, tmp_path):
    api = pytest.importorskip("playwright.sync_api")
    troubles, requests = [], []
    with api.sync_playwright() as browsers:
        profile = str(tmp_path / "profile")
        browser = browsers.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS
        )
        for width in (1280, 390):
            page = browser.new_page()
            page.on("console", lambda message: troubles.append(message.text))
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(report.as_uri())
            plots = page.locator(".plotly-graph-div")
            assert (
                plots.count() == report.read_text().count('class="plotly-graph-div"') == 3 + 2 * 3
            )
            for i in range(plots.count()):
                plots.nth(i).locator("svg.main-svg .scatterlayer .trace").first.wait_for(
                    state="attached", timeout=60_000
                )
                box = plots.nth(i).bounding_box()
                assert box["x"] >= 0.0
                assert box["x"] + box["width"] <= width
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.close()
        browser.close()
    assert troubles == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}


def test_markdown_holds_the_same_figures(results):
    text = tables_of(results)
    for entry in results["ranking"]:
        assert f"| {entry['name']} | {entry['score']['mean']:+.3f}" in text
    for task in results["tasks"].values():
        for row in task["rows"]:
            assert f"| {row['name']} | {row['lr']:.3g} | {row['test_loss']['mean']:.4g}" in text
    for policy, others in results["speed_up"].items():
        assert f"### {policy} against each baseline" in text
        assert all(f"{figure['mean']:.2f}" in text for figure in others.values())
    assert text.count("\n### ") == len(results["tasks"]) + len(results["speed_up"]) + 1


def test_figures_are_written_for_documents(results, tmp_path):
    files = write_figures(results, tmp_path / "new" / "figures")
    assert {file.name for file in files} == {
        f"{n}.{e}" for n in ("ranking", "profiles", "misset") for e in ("png", "svg")
    }
    for file in files:
        content = file.read_bytes()
        assert content.startswith(b"\x89PNG" if file.suffix == ".png" else b"<?xml")
    svg = (tmp_path / "new" / "figures" / "ranking.svg").read_text()
    assert all(
        entry["name"] in svg for entry in results["ranking"]
    )  # drawn in the order of the ranking
    assert len(write_figures({**results, "misset": []}, tmp_path)) == 4
