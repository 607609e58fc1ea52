"""``inspectd schema``: the JSON Schemas of the settings files and of the payloads; or the settings
as a page for people.
"""

from __future__ import annotations

import json

import typer

from inspectd import config, payload
from inspectd.config.reference import markdown
from inspectd.config.words import did_you_mean


def schema(which: str | None) -> int:
    """Prints one schema, or all as an object by name; the exit status, 2 for an unknown name.

    The names are ``station``, ``program`` and the topics of the payloads.
    """
    schemas = config.json_schemas() | payload.json_schemas()
    if which is not None and which not in schemas:
        near = did_you_mean(which, schemas)
        known = ", ".join(schemas)
        hint = f" ({near})" if near else ""
        typer.echo(f"there is no schema {which!r}; the names are {known}{hint}", err=True)
        return 2
    chosen = schemas if which is None else schemas[which]
    typer.echo(json.dumps(chosen, indent=2, ensure_ascii=False))
    return 0


def reference() -> int:
    """Prints docs/settings.md."""
    typer.echo(markdown(), nl=False)
    return 0
