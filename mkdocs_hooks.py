"""What mkdocs.yml does to pages: links to files outside docs/, and doctests of docstrings.

On GitHub a link such as `../agents/table.py` opens the file. The site holds no other files, so here
it leads to the repository, where pyproject.toml names one, and otherwise becomes the file's path.

Markdown takes the `>>>` of a doctest for a quotation, so doctests are shown as blocks of code.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

import griffe

__all__ = ["Doctests", "linked_page", "on_page_markdown", "with_doctests"]

PYPROJECT = Path(__file__).parent / "pyproject.toml"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)\s]*)\)")
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)  # up to an empty line


def repository() -> str | None:
    """Address of the repository, None where pyproject.toml has none."""
    urls = tomllib.loads(PYPROJECT.read_text())["project"].get("urls", {})
    return next((urls[name] for name in ("Repository", "Source", "Homepage") if name in urls), None)


def linked_page(markdown: str, source: str, address: str | None) -> str:
    """The text of a page whose links to files outside docs/ are replaced.

    >>> linked_page("See [the table](../agents/table.py).", "page.md", None)
    'See the table (`agents/table.py`).'
    >>> linked_page("See [the table](../agents/table.py).", "page.md", "https://example.org/x")
    'See [the table](https://example.org/x/blob/main/agents/table.py).'
    >>> linked_page("See [the log](../log.md).", "results/page.md", None)
    'See [the log](../log.md).'

    Args:
        markdown: the text of the page.
        source: path of the page within docs/.
        address: address of the repository, None where there is none.
    """

    def replaced(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), target))
        if path.startswith("docs/"):
            return link[0]
        if address is not None:
            return f"[{text}]({address.rstrip('/')}/blob/main/{path})"
        name = path.partition("#")[0]
        return f"`{name}`" if text.strip("`") == name else f"{text} (`{name}`)"

    return LINK.sub(replaced, markdown)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What mkdocs calls with the Markdown of each page."""
    return linked_page(markdown, page.file.src_uri, repository())


def with_doctests(docstring: str) -> str:
    """The text of a docstring whose doctests are blocks of code."""
    return DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", docstring)


class Doctests(griffe.Extension):
    """What mkdocstrings calls with each object whose docstring it shows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Make blocks of code of the doctests of an object."""
        if obj.docstring is not None:
            obj.docstring.value = with_doctests(obj.docstring.value)
