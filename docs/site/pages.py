"""A Sphinx extension that makes the Markdown pages of the repository the pages of the site.

The pages are written for GitHub. Five things are different on the site:

- the tables of ``index.md`` become the navigation;
- the examples are pages, with their output, and a Jupyter notebook to download;
- links to files outside of ``docs/`` lead to GitHub;
- links that name a file, ``[guide.md](guide.md)``, name the title of the page or section;
- a comment such as ``<!-- capabilities -->`` or ``<!-- public-api: snn_single_spike.losses -->``
  is replaced by generated text.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from docs.site import capabilities, public_api

SECTION = re.compile(r"^## (.*?)\n(.*?)(?=^## |\Z)", re.M | re.S)
ROW = re.compile(r"^\| \[.*?\]\((?:\.\./(?=examples/0))?(?!\.\./)(.*?)\.(?:md|py)\) \|", re.M)
OUTWARD = re.compile(r"(?<!!)(\[[^\]]*\])\((\.\./[^)\s]*)\)")
FILE_NAME = re.compile(r"(?<!!)\[[\w/.-]+\.md\]\((?![a-z]+:)")
COMMENT = re.compile(r"^<!-- ([a-z-]+):? ?(.*?) -->$", re.M)
ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
"""The examples, which are programs in cells. Their pages are named as in the repository."""


def changes() -> str:
    """The changelog without its title."""
    return (ROOT / "CHANGELOG.md").read_text().partition("\n")[2].replace("](docs/", "](")


GENERATORS: dict[str, Callable[..., str]] = {
    "public-api": public_api.entries,
    "module": public_api.description,
    "capabilities": capabilities.table,
    "changelog": changes,
}


def navigation(index: str) -> str:
    """Hidden tables of contents, one for each section of ``index.md`` with a table of pages."""
    sections = ((title, ROW.findall(body)) for title, body in SECTION.findall(index))
    return "\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```\n"
        for title, pages in sections
        if pages
    )


def link_to(repository: str, page: str, text: str) -> str:
    """Replace links to files outside of ``docs/`` by links to the repository."""

    here = join("docs", dirname(page))

    def replaced(link: re.Match[str]) -> str:
        path = normpath(join(here, link[2]))
        if ROOT / path in EXAMPLES:
            return f"{link[1]}({relpath(join('docs', path), here)})"
        return link[0] if path.startswith("docs/") else f"{link[1]}({repository}{path})"

    return OUTWARD.sub(replaced, text)


def generate(text: str) -> str:
    """Replace comments that name a generator by the text that it makes."""

    def replaced(comment: re.Match[str]) -> str:
        make = GENERATORS.get(comment[1])
        return make(*comment[2].split()) if make else comment[0]

    return COMMENT.sub(replaced, text)


def copy_examples(app: Any) -> None:
    """Copy the examples to where Sphinx reads pages. An unchanged one does not run again."""
    folder = Path(app.srcdir) / "examples"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in EXAMPLES:
        shutil.copy2(path, folder / path.name)


def example(repository: str, page: str, text: str) -> str:
    """An example, and where to get it, in a last cell."""
    file = f"[{page}.py]({repository}{page}.py)"
    notebook = f"{{nb-download}}`{Path(page).name}.ipynb`"
    return f"{text}\n# %% [markdown]\n# ---\n# Source: {file}. With its output: {notebook}.\n"


def read(app: Any, page: str, source: list[str]) -> None:
    """Sphinx calls this function with the text of every page."""
    if dirname(page) == "examples":
        source[0] = example(app.config.repository, page, source[0])
        return
    text = link_to(app.config.repository, page, generate(source[0]))
    contents = navigation(source[0]) if page == app.config.root_doc else ""
    source[0] = f"{FILE_NAME.sub('[](', text)}\n{contents}"


def setup(app: Any) -> dict[str, bool]:
    app.add_config_value("repository", "", "env")
    app.connect("builder-inited", copy_examples)
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
