"""Hook of mkdocs.yml: links to files outside docs/, such as `../agents/table.py`.

On GitHub such a link opens the file. The site holds no other files, so here it leads to the
repository, where pyproject.toml names one, and otherwise it becomes the path of the file.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

__all__ = ["linked_page", "on_page_markdown"]

PYPROJECT = Path(__file__).parent / "pyproject.toml"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)\s]*)\)")


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
