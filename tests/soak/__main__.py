"""`python -m soak [SCENARIO] [--option ...]`: prints the figures; status 1 where one is missed."""

import functools
from collections.abc import Callable

import typer
from rich.console import Console

from soak.chaos import chaos
from soak.faults import faults
from soak.fuzz import fuzz
from soak.load import load
from soak.outage import outage
from soak.report import Report
from soak.switch import switch

SCENARIOS: tuple[Callable[..., Report], ...] = (chaos, outage, fuzz, load, switch, faults)
WIDTH = 100

app = typer.Typer(help="The station's guarantees at full length; without a scenario, all of them.")


def _shown(scenario: Callable[..., Report]) -> Callable[..., None]:
    @functools.wraps(scenario)
    def command(**options: float) -> None:
        report = scenario(**options)
        report.show(Console(width=WIDTH))
        if not report.sound:
            raise typer.Exit(1)

    return command


@app.callback(invoke_without_command=True)
def every_scenario(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return
    reports = [scenario() for scenario in SCENARIOS]
    for report in reports:
        report.show(Console(width=WIDTH))
    if not all(report.sound for report in reports):
        raise typer.Exit(1)


for _scenario in SCENARIOS:
    app.command(_scenario.__name__)(_shown(_scenario))

app()
