"""The documentation site builds, its links lead somewhere, and its pages fetch nothing."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import lr_gym.optim

pytest.importorskip("material", reason="needs the extra docs")
pytest.importorskip("mkdocstrings", reason="needs the extra docs")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# What makes a browser fetch something, by the name of the element; a link of an <a> does not.
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """Links, fetched addresses and anchors of a page.

    Attributes:
        links: where its <a> lead.
        fetched: what a browser fetches with it.
        anchors: ids, and names of <a>.
        classes: classes of its elements.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.classes |= set(values.get("class", "").split())
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if FETCHED.get(tag) in values:
            self.fetched.append(values[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    """Every built page by its file."""
    return {file: Page(file.read_text()) for file in site.rglob("*.html")}


def test_the_site(site, pages):
    """One test, since every worker of pytest-xdist would build the site again for another one."""
    every_page_is_built(site)
    every_link_leads_somewhere(site, pages)
    nothing_is_fetched_from_elsewhere(site, pages)
    the_pages_of_the_code_show_what_is_public(site)


def every_page_is_built(site: Path) -> None:
    built = {file.relative_to(site).with_suffix("") for file in site.rglob("*.html")}
    written = {file.relative_to(DOCS).with_suffix("") for file in DOCS.rglob("*.md")}
    assert written <= built
    shown = Page((site / "index.html").read_text()).links
    missing = [page for page in written if f"{page}.html" not in shown]
    assert not missing, f"not in the nav of mkdocs.yml: {missing}"


def every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for file, page in pages.items():
        for link in (*page.links, *page.fetched):
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            path = unquote(target.path)
            # only 404.html, which may be shown for any address, has links from the root
            folder = site if path.startswith("/") else file.parent
            to = (folder / path.lstrip("/")).resolve() if path else file
            anchors = pages[to].anchors if to in pages else set()
            if not to.exists() or (target.fragment and unquote(target.fragment) not in anchors):
                broken.append((str(file.relative_to(site)), link))
    assert not broken


def nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        away = [address for address in page.fetched if re.match(r"(https?:)?//", address)]
        assert not away, (file, away)
        # the theme's script would load mermaid from a CDN for a page that has a diagram
        assert "mermaid" not in page.classes, file
    for style in site.rglob("*.css"):
        addresses = re.findall(
            r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]*)", style.read_text()
        )
        assert not addresses, (style, addresses)


def the_pages_of_the_code_show_what_is_public(site: Path) -> None:
    anchors = Page((site / "api" / "optim.html").read_text()).anchors
    shown = {anchor.rpartition(".")[2] for anchor in anchors if anchor.startswith("lr_gym.optim.")}
    assert set(lr_gym.optim.__all__) <= shown


def test_links_to_files_outside_docs():
    hooks = pytest.importorskip("mkdocs_hooks")
    assert doctest.testmod(hooks).failed == 0
    assert doctest.testmod(hooks).attempted > 0
    text = "One line.\n\n>>> 1 + 1\n2\n\nMore."
    assert hooks.with_doctests(text) == "One line.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore."
