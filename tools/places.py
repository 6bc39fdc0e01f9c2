"""Writes the last section of docs/how-to/deploy.md from the blocks before it: the same commands with other addresses.

Each block of `sh` begins with a comment that says where it is run. A block for the trial alone, or for a run that died, has
no place there. `tests/sites/test_deploy_page.py` runs the blocks that this begins from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/how-to/deploy.md"

BLOCK = re.compile(r"^```sh\n# (.*)\n((?s:.*?))^```$", re.MULTILINE)
BEGIN = "<!-- places: begin -->"
GENERATED = re.compile(r"(?<=<!-- places: begin -->\n).*(?=<!-- places: end -->)", re.DOTALL)

ADDRESSES = (
    ("localhost", "server.example"),
    ("--host 127.0.0.1 --port", "--host 0.0.0.0 --port"),  # the SuperLink's, which sites dial
)
"""What a machine of one's own has in place of loopback; all else is what the one machine has."""


def page(text: str | None = None) -> str:
    """Returns the page with its last section as the blocks before it make it."""
    text = PAGE.read_text(encoding="utf-8") if text is None else text
    return GENERATED.sub(lambda _: "".join(section(text)), text)


def blocks(text: str) -> list[tuple[str, str]]:
    """Returns where each block is run and its commands, in order, up to the generated section."""
    return [(found[1], found[2]) for found in BLOCK.finditer(text.partition(BEGIN)[0])]


def section(text: str) -> Iterator[str]:
    """Yields the blocks of the generated section."""
    for where, commands in blocks(text):
        if where.partition(",")[0] in ("everywhere", "server", "north", "south") and "after a death" not in where:
            yield f"```sh\n# {where}\n{elsewhere(commands)}```\n\n"


def elsewhere(commands: str) -> str:
    """Returns commands for machines of their own."""
    for here, there in ADDRESSES:
        commands = commands.replace(here, there)
    return "\n".join(fetched(line) for line in commands.split("\n"))


def fetched(line: str) -> str:
    """Returns a command; one that copies files of another place fetches them from its machine."""
    if not line.startswith("cp "):
        return line
    *files, to = line.split()[1:]
    return " ".join(["scp", *(f"{file.partition('/')[0]}.example:{file}" for file in files), to])
