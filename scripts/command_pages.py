"""Write the table of flags into each page of docs/commands, from the command's own signature and docstring.

``python scripts/command_pages.py`` rewrites what lies between the two marks of every page; a test holds that nothing changes.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from pathlib import Path

from cyclopts import Parameter
from docstring_parser import parse

from halocast.cli import COMMANDS

PAGES = Path(__file__).parent.parent / "docs" / "commands"
BEGIN, END = "<!-- flags, from the command itself -->", "<!-- end of flags -->"


def flags_table(command: str) -> str:
    """Markdown: a row a parameter."""
    function = getattr(importlib.import_module(f"halocast.cli.{command}"), command)
    texts = {each.arg_name: " ".join((each.description or "").split()) for each in parse(function.__doc__ or "").params}
    hints = typing.get_type_hints(function, include_extras=True)
    lines = ["| | |", "| --- | --- |"]
    for name, parameter in inspect.signature(function).parameters.items():
        text = texts[name].replace("|", "\\|").replace("``", "`")
        lines.append(f"| `{written_name(name, parameter, hints[name])}` | {text}{default_of(parameter)} |")
    return "\n".join(lines)


def written_name(name: str, parameter: inspect.Parameter, hint: object) -> str:
    """As one types it: ``--ranks``, ``RUN``, ``RUN ...``."""
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"{name.upper()} ..."
    if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        return name.upper()
    given = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Parameter) and each.name]
    return str(given[0].name[0]) if given else f"--{name.strip('_').replace('_', '-')}"


def default_of(parameter: inspect.Parameter) -> str:
    """Said where it is a value of its own."""
    value = parameter.default
    return "" if value is inspect.Parameter.empty or value in (None, False, "") else f" (default: {value})"


def with_flags(page: str, command: str) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{flags_table(command)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    for command in COMMANDS:
        path = PAGES / f"{command}.md"
        path.write_text(with_flags(path.read_text(), command))


if __name__ == "__main__":
    main()
