"""The pages in the repository as GitHub shows them, and the parts of the site that need no build.

`make docs` builds the site, where every warning is an error.
"""

import importlib.util
import re

import pytest
import yaml

from groupdetr_d2 import __all__ as public
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(path):
    """The lines of a page outside its fenced code."""
    is_code = False
    for line in path.read_text().splitlines():
        is_fence = line.lstrip().startswith("```")
        is_code ^= is_fence
        if not is_code and not is_fence:
            yield line


def anchors(path):
    """The anchors that GitHub gives to the headings of a page."""
    heads = (line.lstrip("#").strip() for line in prose(path) if re.match("#+ ", line))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page):
    for link in LINK.findall("\n".join(prose(page))):
        target, _, anchor = link.partition("#")
        if not re.match(r"[a-z]+:", target):
            found = page.parent / target if target else page
            assert found.exists(), link
            assert not anchor or anchor in anchors(found), link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_github_and_the_site_read_a_page_alike(page):
    """Python-Markdown wants an empty line before a list, and four spaces for what is in an item."""
    before, is_loose = "", False  # whether an empty line has come since the last item
    for line in prose(page):
        if re.match(r"([-*]|\d+\.) ", line):
            follows = not before or before.startswith(("#", " ", "- ", "* ")) or before[0].isdigit()
            assert follows and not (before and is_loose), line
            is_loose = False
        is_loose |= not line
        assert before or not re.match(r" {1,3}\S| {5,7}\S", line), line
        before = line.rstrip()


def navigation():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    return yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]


def test_every_page_is_in_the_navigation():
    """A new page stands in mkdocs.yml."""
    listed = re.findall(r"[\w/]+\.md", str(navigation()))
    assert sorted(listed) == sorted(["index.md", *(path.name for path in PAGES[1:])])


def tool(name):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_public_names_commands_and_every_room():
    pages = tool("site_pages").reference_pages()
    for name in public:
        assert re.search(rf"::: groupdetr_d2\.\S*\b{name}\n", pages["index"]), name
    for heading in ("## train", "## predict", "## analyze", "### queries"):
        assert f"{heading}\n\n```text\nusage: groupdetr-d2" in pages["commands"]
    modules = {module for text in pages.values() for module in re.findall(r"::: (\S+)", text)}
    assert modules >= {"groupdetr_d2.tasks.task", "groupdetr_d2.registry", "groupdetr_d2.groups"}
    names = tool("site_pages").public_names()
    assert names >= {"groupdetr_d2.tasks.task.Task", "groupdetr_d2.engine.loggers.build_loggers"}
    assert all(any(name == m or name.startswith(f"{m}.") for m in modules) for name in names)


def test_links_of_the_repository_become_links_of_the_site():
    pages = tool("site_pages")
    assert pages.site_uri("README.md") == "index.md"
    assert pages.site_uri(pages.resolved("README.md", "docs/config.md")) == "config.md"
    assert pages.site_uri("docs/images/demo.jpg") == "images/demo.jpg"
    shown = pages.source_pages(pages.resolved("docs/detectron2.md", "../examples"))
    assert "- [own_head.py](examples/own_head.py.md)" in shown["source/examples.md"]
    assert "````python\n" in shown["source/examples/own_head.py.md"]


def test_a_registry_is_in_the_reference():
    extension = tool("docstrings").PlainText()
    griffe = importlib.import_module("griffe")
    path = ROOT / "groupdetr_d2/registry.py"
    loaded = griffe.visit(
        "registry", path, path.read_text(), extensions=griffe.load_extensions(extension)
    )
    assert "MODEL.DETR.VARIANT" in loaded["VARIANT_REGISTRY"].docstring.value


def test_docstrings_are_shown_as_they_are_meant():
    convert = tool("docstrings").as_markdown
    assert (
        convert("Rows (K*N, C) of `K*N`, AP-<class>.") == r"Rows (K\*N, C) of `K*N`, AP-\<class>."
    )
    assert convert("See :func:`get` and :class:`groupdetr_d2.groups.QueryGroups`.") == (
        "See `get` and [`groupdetr_d2.groups.QueryGroups`][groupdetr_d2.groups.QueryGroups]."
    )
    assert convert("Like this::\n\n    a = b * c\n\nor a * b.") == (
        "Like this:\n\n    a = b * c\n\nor a \\* b."
    )
    assert convert("Adds.\n\nArgs:\n    q, k: two of\n        them.\n    v: one.") == (
        "Adds.\n\nArgs:\n    q: two of\n        them.\n    k: two of\n        them.\n    v: one."
    )
