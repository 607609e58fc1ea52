"""How ``inspectd focus`` shows a look: a bar a figure on a terminal, else one line a look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from inspectd.commands.inspect import COLOURS
from inspectd.looking import Figure, Look
from inspectd.records import Verdict

Reading = Look | str
"""A look, or why there is none."""

FIRST, LAST = (
    ("brightness", "contrast"),
    ("focus", "match", "shift", "dx", "dy", "rotation", "score"),
)
"""The order of the rows; whatever else the gate measures stands between."""
RELATIVE = ("focus", "contrast")
"""What is told in shares of the references' too."""
LABELS = {"dx": "shift right", "dy": "shift down", "rotation": "turn clockwise"}
FORMATS = {"px": "+.1f", "deg": "+.2f", "": ".3f"}
WORD_COLOURS = {"ok": "green", "low": "red", "high": "red", "": "cyan"}
FULL = {"brightness": 1.0, "contrast": 0.5, "match": 1.0}
"""The largest value that there can be."""
FULL_TURN = 360.0
HEADROOM = 1.25
"""How far a bar reaches beyond what is usual and what is allowed."""
LABEL, NUMBER, WORD, NOTE = 14, 10, 4, 32
"""Characters that the columns beside the bars take."""
SMALLEST_BAR, LARGEST_BAR = 16, 48


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure as a bar.

    Attributes:
        start, end: the values at its ends.
        figure: its bounds are drawn as ``[`` and ``]``, what is usual as ``:``.
        best: drawn as ``|``; None for nothing.
    """

    start: float
    end: float
    figure: Figure
    best: float | None = None

    def drawn(self, width: int, *, ascii_only: bool = False) -> str:
        """The bar, ``width`` characters long."""
        full, allowed, beyond = "#-." if ascii_only else "█─·"
        low = self.start if self.figure.low is None else self.figure.low
        high = self.end if self.figure.high is None else self.figure.high
        end = self._cell(self.figure.value, width)
        origin = self._cell(max(self.start, 0.0), width)
        cells = [
            allowed if self._cell(low, width) <= cell <= self._cell(high, width) else beyond
            for cell in range(width)
        ]
        for cell in range(min(origin, end), max(origin, end) + 1):
            cells[cell] = full
        marks = {":": self.figure.usual, "|": self.best}
        marks |= {"[": self.figure.low, "]": self.figure.high}
        for mark, value in marks.items():
            if value is not None:
                cells[self._cell(value, width)] = mark
        return "".join(cells)

    def _cell(self, value: float, width: int) -> int:
        """The character that a value falls into; the first or last one for what is beyond."""
        share = (value - self.start) / (self.end - self.start)
        return min(max(int(share * width), 0), width - 1)


class FocusView:
    """The latest reading, and the sharpest picture of the session as a yardstick."""

    def __init__(self, program: str) -> None:
        """Args:
        program: its name.
        """
        self._program = program
        self._reading: Reading | None = None
        self._best = 0.0
        self._names: set[str] = set()

    def take(self, reading: Reading) -> None:
        """Show this one from now on."""
        self._reading = reading
        if isinstance(reading, Look):
            self._names |= reading.figures.keys()
            focus = reading.figures.get("focus")
            self._best = max(self._best, focus.value if focus else 0.0)

    # ---- one line --------------------------------------------------------------------------------

    @property
    def line(self) -> str:
        """The reading on one line."""
        look = self._reading
        if not isinstance(look, Look):
            return f"no picture: {look}"
        figures = [
            " ".join(filter(None, [name, _number(figure), self._note(name, figure), figure.word]))
            for name, figure in self._rows(look)
            if figure is not None
        ]
        return "  ".join([f"frame {look.frame}", *figures, _outcome(look)])

    # ---- a terminal ------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What stays in place on the terminal."""
        if self._reading is None:
            yield Text(f"{self._program}: waiting for the first picture")
            return
        look = self._reading if isinstance(self._reading, Look) else None
        yield Text(f"{self._program}  {_camera(look)}" if look else self._program, "bold")
        beside = LABEL + NUMBER + WORD + NOTE + 4
        width = min(max(options.max_width - beside, SMALLEST_BAR), LARGEST_BAR)
        table = Table.grid(padding=(0, 1))
        for least in (LABEL, width, NUMBER, WORD, NOTE):
            table.add_column(min_width=least, no_wrap=True)
        for name, figure in self._rows(look):
            table.add_row(*self._cells(name, figure, width, ascii_only=options.ascii_only))
        yield table
        yield Text("[ ] allowed   : as the references   | the sharpest picture so far", "dim")
        if look:
            yield Text(_outcome(look), COLOURS[Verdict(look.verdict)])
        else:
            yield Text(f"no picture: {self._reading}", "red")

    def _cells(
        self, name: str, figure: Figure | None, width: int, *, ascii_only: bool
    ) -> tuple[Text, ...]:
        label = Text(LABELS.get(name, name))
        if figure is None:
            return label, Text("")
        colour = WORD_COLOURS[figure.word]
        bar = self._bar(name, figure).drawn(width, ascii_only=ascii_only)
        return (
            label,
            Text(bar, colour),
            Text(_number(figure), justify="right"),
            Text(figure.word, colour),
            Text(self._note(name, figure), "dim"),
        )

    # ---- both ------------------------------------------------------------------------------------

    def _rows(self, look: Look | None) -> Iterator[tuple[str, Figure | None]]:
        """All figures that there ever were, so that the rows stay in their places."""
        others = sorted(self._names - {*FIRST, *LAST})
        for name in [*FIRST, *others, *LAST]:
            if name in self._names:
                yield name, look.figures.get(name) if look else None

    def _bar(self, name: str, figure: Figure) -> Bar:
        if figure.unit:  # a place, to either side
            reach = HEADROOM * figure.high if figure.high else FULL_TURN / 2
            return Bar(-reach, reach, figure)
        best = self._best or None if name == "focus" else None
        known = [HEADROOM * value for value in (figure.usual, figure.high) if value]
        end = max([*known, best or 0.0]) or 1.0
        return Bar(0.0, min(end, FULL.get(name, end)), figure, best)

    def _note(self, name: str, figure: Figure) -> str:
        """The figure in shares of what it is measured by."""
        shares = []
        if name == "focus" and self._best:
            shares.append(f"{figure.value / self._best:.0%} of best")
        if figure.usual and name in RELATIVE:
            shares.append(f"{figure.value / figure.usual:.0%} of references")
        return ", ".join(shares)


def _number(figure: Figure) -> str:
    return f"{figure.value:{FORMATS[figure.unit]}} {figure.unit}".rstrip()


def _camera(look: Look) -> str:
    """What the camera says of its picture."""
    words = [f"frame {look.frame}", f"{look.width} x {look.height} pixels"]
    if look.view:
        view = look.view
        words.append(f"of {view.width:g} x {view.height:g} from {view.x:g}, {view.y:g} on")
    measured = look.exposure
    if measured and measured.exposure_us is not None:
        words.append(f"{measured.exposure_us:.0f} us")
    if measured and measured.gain is not None:
        words.append(f"gain {measured.gain:.2f}")
    if measured and measured.digital_gain is not None:
        words.append(f"digital gain {measured.digital_gain:.2f}")
    if measured and measured.temperature_c is not None:
        words.append(f"{measured.temperature_c:.0f} °C")
    return "  ".join(words)


def _outcome(look: Look) -> str:
    """What the picture would be given, and why."""
    why = f" {look.reason}: {look.detail}" if look.reason else ""
    return f"{look.verdict}{why}"
