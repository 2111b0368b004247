"""Hooks of mkdocs: files of the repository that pages link to join the site, and so does the report of the tutorial."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import tutorial  # beside this file
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from dilrewrite.reports.formats import formats

ROOT = Path(__file__).parent.parent
DOCS, OUTSIDE = "docs/", "repository/"
LINK = re.compile(r"(?<=\]\()(?!https?:|#)[^)#\s]+")


def in_repository(uri: str) -> str:
    """The path in the repository of a file of the site."""
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else DOCS + uri


def in_site(path: str) -> str:
    """The file of the site for a path in the repository."""
    return path.removeprefix(DOCS) if path.startswith(DOCS) else OUTSIDE + path


def leads_to(uri: str, link: str) -> str | None:
    """The path in the repository of a file that a page links to, if it is one."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(uri)), link))
    return path if (ROOT / path).is_file() else None


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the report of the tutorial, spelled anew, and what pages link to outside of docs/, page after page."""
    page = formats()["html"].render(tutorial.recorded("report"))
    files.append(File.generated(config, "tutorial/report.html", content=page))
    pages = [file.src_uri for file in files.documentation_pages() if file.abs_src_path]
    for uri in pages:
        for link in LINK.findall((ROOT / in_repository(uri)).read_text(encoding="utf-8")):
            path = leads_to(uri, link)
            if path is None or path.startswith(DOCS) or files.get_file_from_path(in_site(path)):
                continue
            files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
            if path.endswith(".md"):
                pages.append(in_site(path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Makes links between files of the repository links between pages of the site."""
    uri = page.file.src_uri

    def link(match: re.Match[str]) -> str:
        path = leads_to(uri, match.group())
        return match.group() if path is None else posixpath.relpath(in_site(path), posixpath.dirname(uri) or ".")

    return LINK.sub(link, markdown)
