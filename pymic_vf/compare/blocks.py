"""A report as a list of blocks, written as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2
    kind: str = "heading"


@dataclass(frozen=True)
class Text:
    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Items:
    """Short paragraphs in a list."""

    items: Sequence[str]
    kind: str = "items"


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A PNG beside the report."""

    file: str
    caption: str
    kind: str = "picture"


@dataclass(frozen=True)
class Code:
    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until somebody wants them."""

    title: str
    blocks: Sequence[Heading | Text | Items | Table | Picture | Code]
    kind: str = "details"


Block = Heading | Text | Items | Table | Picture | Code | Details


def to_markdown(blocks: Sequence[Block]) -> str:
    """The report as Markdown; pictures are named, not held."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], title: str, folder: Path) -> str:
    """The report as one HTML page, the pictures of `folder` within it."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = lambda file: _data_uri(folder / file)
    return environment.get_template("report.html").render(blocks=blocks, title=title)


def _data_uri(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {block.text}"
        case Text():
            return block.text
        case Items():
            return "\n".join(f"- {item}" for item in block.items)
        case Table():
            lines = [_row(block.head), "|---" + "|---:" * (len(block.head) - 1) + "|", *map(_row, block.rows)]
            return (f"{block.caption}\n\n" if block.caption else "") + "\n".join(lines)
        case Picture():
            return f"![{block.caption}]({block.file})\n\n*{block.caption}*"
        case Code():
            return f"```\n{block.text}\n```"
        case Details():
            return f"### {block.title}\n\n" + "\n\n".join(map(_markdown, block.blocks))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
