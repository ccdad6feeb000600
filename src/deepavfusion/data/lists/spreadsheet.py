"""What spreadsheet programs do to a list when they save it: they take ids for formulas, numbers or dates.

The ids are lost, so that such a list is refused; what only looks different (line ends, a byte-order mark, blank lines)
is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

YOUTUBE = 11  # characters of an id
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")  # all of one length, so that none is a prefix of another
PUBLISHED = "put the published file there, and edit it as text, not in a spreadsheet program"
MONTH = "jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|okt|oct|nov|de[cz]"
ERROR = re.compile(r"#(\w+[!?]|N/A|NV|#+)", re.IGNORECASE)  # in some languages #NOM?, #BEZUG!, …
NUMBER = re.compile(r"-?\d+([.,]\d*E[+-]?|E\+)\d+", re.IGNORECASE)
DATE = re.compile(
    rf"({MONTH})\w*\.?[- ]\d{{1,4}}|\d{{1,2}}\.?[- ]({MONTH})\w*([- ]\d{{2,4}})?|\d{{1,4}}([/.-])\d{{1,2}}\4\d{{1,4}}",
    re.IGNORECASE,
)
FROM_EXPORT = {";": "semicolons", "\t": "tabs"}


def fault(cells: Sequence[str]) -> str:
    """What happened to a line of a list, as a clause; empty if it does not look like the work of a spreadsheet program.

    Ids of YouTube, of 11 characters, are never taken for dates: such an id may look like one.
    """
    for cell in cells:
        if ERROR.fullmatch(cell):
            return (
                f"a spreadsheet program took a cell for a formula and left {cell}: an id that begins with '-' is lost"
            )
        if NUMBER.fullmatch(cell):
            return f"a spreadsheet program took a cell for a number and left {cell}"
        if len(cell) != YOUTUBE and DATE.fullmatch(cell):
            return f"a spreadsheet program took a cell for a date and left {cell}"
    for separator, name in FROM_EXPORT.items():
        if cells and separator in cells[0]:
            return f"its columns are separated by {name}, as some spreadsheet programs save them, not by commas"
    if any(quote in cell for cell in cells for quote in "“”„‟«»"):
        return 'its quotes are typographic ones (“ ”), not "'
    if len(cells) == 1 and "," in cells[0]:
        return "the whole line is in double quotes"
    return ""


def looks_changed(identifier: str) -> bool:
    """A fast test of the first cell of a line: whether `fault` may find something in it."""
    return len(identifier) != YOUTUBE or identifier[:1] == "#" or "." in identifier or "," in identifier
