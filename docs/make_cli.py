"""Writes `docs/cli.md`: every command of `flsys` with its help. A test compares the two.

python docs/make_cli.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# The command line

Written by `python docs/make_cli.py` from what `flsys ... --help` prints; `tests/docs` compares the two.
What the commands are for, in order of use: [the guide](guide.md).

Every command exits with 0 when it did what it says, with 1 and one line on stderr when it could not, and with 2 when it
was called in a wrong way. `--json` prints figures as JSON on stdout, and nothing else.
"""


def pages() -> Iterator[tuple[str, str]]:
    """Yield each command in order of the tree, as it is called, and its help."""
    from typer.main import get_command

    from flsys_ray.cli import app

    yield from _below("flsys", get_command(app), None)


def _below(path: str, command: Any, parent: Any) -> Iterator[tuple[str, str]]:
    with command.make_context(path.rpartition(" ")[2], [], parent=parent, resilient_parsing=True) as context:
        context.terminal_width = context.max_content_width = 100
        yield path, context.get_help().strip()
        for name, inner in getattr(command, "commands", {}).items():
            yield from _below(f"{path} {name}", inner, context)


def page() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for path, help_ in pages():
        parts.append(f"\n## {path}\n\n```text\n{help_}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
