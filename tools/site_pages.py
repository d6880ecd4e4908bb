"""The pages of the site that are no files of docs/: MkDocs calls the functions on_* below.

- README.md is the first page;
- the reference has the public names of the package, its commands, and a page of every room;
- a file outside docs/ that a page links to, such as a script of examples/, is a page that shows it.

Links stay as they are in the repository, where GitHub follows them.
"""

import ast
import os
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

import groupdetr_d2
from groupdetr_d2.commands import build_parser

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "groupdetr_d2"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
ANCHOR = re.compile(r'id="?(groupdetr_d2[\w.]*)')
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".json": "json"}
REFERENCE = "reference"
HELP_WIDTH = "96"  # columns of the help of commands


def on_config(config: MkDocsConfig) -> None:
    """Puts the pages of the reference into the navigation."""
    pages = [f"{REFERENCE}/{name}.md" for name in reference_pages()]
    for entry in config.nav or []:
        if isinstance(entry, dict) and entry.get("Reference"):
            entry["Reference"] = pages


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that are made."""
    made = {"index.md": (ROOT / "README.md").read_text()}
    made |= {f"{REFERENCE}/{name}.md": text for name, text in reference_pages().items()}
    texts = {"README.md": made["index.md"]}
    texts |= {f"docs/{f.src_uri}": f.content_string for f in files.documentation_pages()}
    for source, text in texts.items():
        for path in filter(is_shown_as_source, targets(source, text)):
            made |= source_pages(path)
    for uri, content in made.items():
        file = File.generated(config, uri, content=content)
        if uri.startswith("source/"):
            file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links of the repository into links of the site."""
    uri = page.file.src_uri
    if uri.startswith((f"{REFERENCE}/", "source/")):
        return markdown
    source = "README.md" if uri == "index.md" else f"docs/{uri}"

    def rewritten(link: re.Match) -> str:
        path, hash_, anchor = link[2].partition("#")
        target = resolved(source, path)
        if not path or not (ROOT / target).exists():
            return link[0]  # MkDocs warns of links that lead to nothing
        relative = os.path.relpath(site_uri(target), PurePosixPath(uri).parent)
        return f"{link[1]}{relative}{hash_}{anchor}{link[3]}"

    return LINK.sub(rewritten, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Checks that everything public is in the reference.

    Raises:
        PluginError: naming what is missing.
    """
    folder = Path(config.site_dir, REFERENCE)
    ids = {x for page in folder.glob("*.html") for x in ANCHOR.findall(page.read_text())}
    missing = sorted(public_names() - ids)
    if missing:
        raise PluginError(f"the reference lacks {', '.join(missing[:20])}")


def public_names() -> set[str]:
    """The full names of all modules, and of their functions and classes without underscore."""
    names = set()
    for module, path in modules():
        names.add(module)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_":
                names.add(f"{module}.{node.name}")
    return names


def targets(source: str, text: str) -> list[str]:
    """Paths in the repository that a page's relative links lead to."""
    paths = [match[2].partition("#")[0] for match in LINK.finditer(text)]
    return [resolved(source, p) for p in paths if p and ":" not in p]


def resolved(source: str, path: str) -> str:
    """The path in the repository of a link in a file."""
    return os.path.normpath(os.path.join(os.path.dirname(source), path))


def is_shown_as_source(path: str) -> bool:
    """Whether a path has a page that shows it: folders, and files outside docs/."""
    if path == "README.md":
        return False
    return (ROOT / path).is_dir() or ((ROOT / path).is_file() and not path.startswith("docs/"))


def site_uri(path: str) -> str:
    """The page or file of the site that a path of the repository has."""
    if path == "README.md":
        return "index.md"
    return f"source/{path}.md" if is_shown_as_source(path) else path.removeprefix("docs/")


def source_pages(path: str) -> dict[str, str]:
    """The page of a file, or of a folder and of the files in it."""
    place, head = ROOT / path, f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n"
    if place.is_file():
        language = LANGUAGES.get(place.suffix, "text")
        text = place.read_text()
        return {f"source/{path}.md": f"{head}````{language}\n{text.rstrip()}\n````\n"}
    pages, lines = {}, []
    for file in sorted(p for p in place.iterdir() if p.is_file()):
        inside = file.relative_to(ROOT).as_posix()
        if is_shown_as_source(inside):
            pages |= source_pages(inside)
        here = PurePosixPath("source", path).parent
        lines.append(f"- [{file.name}]({os.path.relpath(site_uri(inside), here)})")
    return {**pages, f"source/{path}.md": head + "\n".join(lines) + "\n"}


def reference_pages() -> dict[str, str]:
    """The pages of the reference by their names, in the order of the navigation."""
    return {"index": public_page(), "commands": commands_page(), **room_pages()}


def public_page() -> str:
    """The names that `import groupdetr_d2` has."""
    lines = [
        "# Python\n",
        "The names of `import groupdetr_d2`; [commands](commands.md) do the same.\n",
    ]
    for name in groupdetr_d2.__all__:
        home = groupdetr_d2._HOMES.get(name)
        full = f"groupdetr_d2.{name}"
        lines.append(f"::: {full if home is None else f'groupdetr_d2{home}.{name}'}")
        # the page of its room is the one that other pages link to
        options = f"heading: {full}\n      toc_label: {name}\n      skip_local_inventory: true\n"
        lines.append(f"    options:\n      {options}")
    return "\n".join(lines)


def commands_page() -> str:
    """What `groupdetr-d2 NAME --help` prints, for every command."""
    lines = ["# Commands\n", "`groupdetr-d2 NAME`, or `python -m groupdetr_d2 NAME`.\n"]
    with mock.patch.dict(os.environ, COLUMNS=HELP_WIDTH):
        return "\n".join([*lines, *helps(build_parser(), "##")])


def helps(parser: ArgumentParser, heading: str) -> list[str]:
    """A section for every command of a parser, and below it for those of the command itself."""
    lines = []
    for action in parser._actions:  # argparse has no other way to them
        for name, own in action.choices.items() if isinstance(action.choices, dict) else ():
            text = f"```text\n{own.format_help().rstrip()}\n```\n"
            lines += [f"{heading} {name}\n", text, *helps(own, f"{heading}#")]
    return lines


def modules() -> Iterator[tuple[str, Path]]:
    """Yields the modules of the rooms with their files; commands have a page of their own."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if len(parts) > 1 and parts[1] not in ("commands", "__main__"):
            yield ".".join(parts), path


def room_pages() -> dict[str, str]:
    """A page of every room of the package with its modules, see docs/design.md."""
    rooms: dict[str, list[str]] = {}
    for module, _ in modules():
        rooms.setdefault(module.split(".")[1], []).append(module)
    return {room: room_page(room, names) for room, names in rooms.items()}


def room_page(room: str, names: list[str]) -> str:
    """A page that shows every public thing of these modules."""
    lines = [f"# {room}\n"]
    for module in names:
        options = "    options:\n      heading_level: 2\n      show_submodules: false\n"
        lines.append(f"::: {module}\n{options}      toc_label: {module.rpartition('.')[2]}\n")
    return "\n".join(lines)
