"""What every page is made of: header, tiles, sections, figures, tables and one stylesheet.

A page needs no network, no JavaScript and no other file, so it can be mailed as it is.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.figure import Figure

from ..atomic import write_atomically
from .figures import STYLE
from .text import escaped

STYLESHEET = Path(__file__).parent.parent / "assets" / "report.css"
RECONSTRUCTION = "msgdas reconstructs MSG-DAS from the abstract of arXiv 2107.04324; no figure here is the paper's."
# At this scale the text of a wide figure is as large as that of the charts.
PX_PER_INCH = 105

# (id, heading, HTML) of a section; (name, value, note) of a tile.
Section = tuple[str, str, str]
Tile = tuple[str, str, str]


def page_html(
    title: str, badge: str, tiles: Sequence[Tile], sections: Sequence[Section], footer: str, *, wide: bool = False
) -> str:  # fmt: skip
    """A whole page.

    Args:
        title, footer: plain text.
        badge: plain text beside the title, "" for none.
        tiles: plain text, what came out.
        sections: headings are plain text, their content is HTML.
        wide: whether it may fill a large screen.
    """
    links = "".join(f'<a href="#{name}">{escaped(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escaped(heading)}</h2>{content}</section>' for name, heading, content in sections
    )
    mark = f'<span class="badge">{escaped(badge)}</span>' if badge else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLESHEET.read_text(encoding='utf-8')}</style></head>"
        f'<body><div class="page{" wide" if wide else ""}"><header><h1>{escaped(title)}{mark}</h1>'
        f'<p class="faint">{escaped(RECONSTRUCTION)}</p>{_tiles(tiles)}<nav>{links}</nav></header>'
        f"<main>{body}</main><footer>{escaped(footer)}</footer></div></body></html>\n"
    )


def save_page(text: str, path: Path) -> None:
    """Write a page.

    Raises:
        OSError: where it cannot be written.
    """
    # Lone surrogates, as in paths that are not UTF-8, have no place in a page.
    write_atomically(path, text.encode("utf-8", "replace").decode("utf-8"))


def _tiles(tiles: Sequence[Tile]) -> str:
    parts = "".join(
        f"<div><dt>{escaped(name)}</dt><dd><strong>{escaped(value)}</strong><span>{escaped(note)}</span></dd></div>"
        for name, value, note in tiles
    )
    return f'<dl class="outcome">{parts}</dl>' if tiles else ""


def figure_html(figure: Figure, name: str, label: str, caption: str, *, wide: bool = False) -> str:
    """A figure with its caption (HTML); a wide one keeps its size on a phone and scrolls."""
    svg = inline_svg(figure, name, escaped(label))
    width_px = round(PX_PER_INCH * figure.get_size_inches()[0])
    box = f'<div class="scroll" style="--natural: {width_px}px">{svg}</div>' if wide else svg
    return f"<figure>{box}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def charts_html(*charts: str, size: Literal["", "small", "large"] = "") -> str:
    """Figures side by side where there is room."""
    return f'<div class="{f"charts {size}".strip()}">{"".join(charts)}</div>' if charts else ""


def table_html(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1, numbers: Sequence[int] | None = None,
    strong: Sequence[int] = (),
) -> str:  # fmt: skip
    """A table of plain text; nothing without rows.

    Args:
        texts: leading columns that are words, the others are numbers.
        numbers: the columns of numbers instead, counted from 0.
        strong: rows that stand out, counted from 0.
    """
    if not rows:
        return ""
    right = range(texts, len(head)) if numbers is None else numbers
    looks = [' class="number"' if column in right else ' class="word"' for column in range(len(head))]
    cells = "".join(f'<th scope="col"{look}>{escaped(name)}</th>' for name, look in zip(head, looks, strict=True))
    lines = []
    for number, row in enumerate(rows):
        values = "".join(f"<td{look}>{escaped(value)}</td>" for value, look in zip(row[1:], looks[1:], strict=True))
        mark = ' class="strong"' if number in strong else ""
        lines.append(f'<tr{mark}><th scope="row"{looks[0]}>{escaped(row[0])}</th>{values}</tr>')
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def folded(title: str, content: str) -> str:
    """Content (HTML) that opens at a click; nothing without content."""
    return f"<details><summary>{escaped(title)}</summary>{content}</details>" if content else ""


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element for an HTML page: no address in it, ids that begin with `name`.

    Args:
        name: unique in the page.
        label: what a screen reader says; already safe for an attribute.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None, head
    # A style element would rule the whole page; the page's own stylesheet says the same for figures.
    body = re.sub(r"<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"\n\s*", "\n", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', body).replace("xlink:href", "href")
    body = body.replace("url(#", f"url(#{name}-")
    body = re.sub(r'(?<= d=")[^"]*', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match.group()), body)
    return f'<svg {view.group()} role="img" aria-label="{label}">{body}'
