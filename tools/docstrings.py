"""Docstrings as the reference shows them: griffe reads Markdown, and ours are plain text."""

import ast
import re

from griffe import Docstring, Extension, Module, Object

ROLE = re.compile(r":(?:class|func|meth|mod|attr):`~?([^`]+)`")
CODE = re.compile(r"(``.+?``|`[^`\n]+`)")
TOGETHER = re.compile(r"(?m)^( {4})(\w+(?:, \w+)+): (.*(?:\n {8}.*)*)")
LITERAL = re.compile(r"(?m)^(.*)::$")


class PlainText(Extension):
    """Makes names that are marked for Sphinx links or code, and keeps *, < and _ as they are."""

    def on_module_members(self, *, node: ast.AST, mod: Module, **_: object) -> None:
        """Takes in the docstrings of registries, which are assigned: ``REGISTRY.__doc__ = ...``."""
        for line in getattr(node, "body", ()):
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]).endswith(".__doc__"):
                member = mod.members[ast.unparse(line.targets[0]).removesuffix(".__doc__")]
                text = as_markdown(ast.literal_eval(line.value).strip())
                member.docstring = Docstring(text, parent=member, lineno=line.lineno)

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Rewrites a docstring; indented code stays."""
    text = LITERAL.sub(lambda m: f"{m[1]}:" if m[1].strip() else "", text)
    head, args, rest = text.partition("\nArgs:\n")
    text = head + args + TOGETHER.sub(_one_by_one, rest)
    lines, is_code = [], False
    for line in text.splitlines():
        is_code = line.startswith("    ") and (is_code or (not lines or not lines[-1].strip()))
        lines.append(line if is_code else _line_as_markdown(line))
    return "\n".join(lines)


def _one_by_one(match: re.Match) -> str:
    """The lines of arguments that are described together, such as "q, k: ..."."""
    return "\n".join(f"{match[1]}{name}: {match[3]}" for name in match[2].split(", "))


def _line_as_markdown(line: str) -> str:
    line = ROLE.sub(lambda m: _reference(m[1]), line)
    parts = CODE.split(line)
    parts[::2] = [re.sub(r"([*<])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _reference(name: str) -> str:
    """A link to a full name of this package; code for any other."""
    return f"[`{name}`][{name}]" if name.startswith("groupdetr_d2.") else f"`{name}`"
