"""What a scenario found: figures, and the guarantees that did not hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        at_most: beyond it, the figure is missed; None where nothing is demanded.
    """

    name: str
    value: float | str
    unit: str = ""
    at_most: float | None = None

    @property
    def missed(self) -> bool:
        return self.at_most is not None and not float(self.value) <= self.at_most


@dataclass(slots=True)
class Report:
    """Grows while the scenario runs."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figure(
        self, name: str, value: float | str, unit: str = "", *, at_most: float | None = None
    ) -> None:
        self.figures.append(Figure(name, value, unit, at_most))

    def note(self, text: str) -> None:
        """What has to be read rather than measured."""
        self.notes.append(text)

    def demand(self, holds: bool, otherwise: str) -> bool:
        """A guarantee; ``otherwise`` is the violation, with its evidence."""
        if not holds:
            self.violations.append(otherwise)
        return holds

    @property
    def sound(self) -> bool:
        """Every guarantee held and every figure is within its limit."""
        return not self.violations and not any(figure.missed for figure in self.figures)

    def show(self, console: Console) -> None:
        table = Table("figure", "measured", "demanded", title=self.title, title_justify="left")
        for figure in self.figures:
            demanded = "" if figure.at_most is None else f"<= {figure.at_most:g} {figure.unit}"
            style = "bold red" if figure.missed else None
            table.add_row(figure.name, _measured(figure), demanded, style=style)
        console.print(table)
        for note in self.notes:
            console.print(note, markup=False, highlight=False)
        for violation in self.violations[:_SHOWN]:
            console.print(f"VIOLATED: {violation}", style="bold red", markup=False)
        if len(self.violations) > _SHOWN:
            console.print(f"... and {len(self.violations) - _SHOWN} more violations")
        if self.sound:
            console.print("every guarantee held", style="green")
        elif not self.violations:
            console.print("a figure is beyond what is demanded", style="bold red")


def _measured(figure: Figure) -> str:
    if isinstance(figure.value, str):
        return figure.value
    number = f"{figure.value:,}" if isinstance(figure.value, int) else f"{figure.value:,.1f}"
    return f"{number} {figure.unit}".rstrip()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all do not exceed; NaN without any, which misses every limit."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
