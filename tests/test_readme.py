"""README.md: what it names exists, what it tells to type is accepted, and it is short."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from inspectd import cli, config
from inspectd.records import Reason
from inspectd.settings import Program, Station
from inspectd.state import State

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
TO_TYPE = re.findall(r"^ {4,}((?:sudo -u inspectd )?inspectd .*)$", TEXT, re.MULTILINE)
IN_WORDS = re.findall(r"`((?:sudo (?:-u inspectd )?)?inspectd [^`]*)`", TEXT)
STAND_INS = {
    "PROGRAM": "block",
    "IMAGE...": "a.png",
    "FILE": "f",
    "DIR": "d",
    "N": "1",
    "NAME": "n",
}


def test_it_is_a_front_page():
    assert len(TEXT.splitlines()) <= 250


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", TEXT))))
def test_link_leads_somewhere(link: str):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("line", sorted({*TO_TYPE, *IN_WORDS}))
def test_command_line_is_understood(line: str):
    words = shlex.split(re.sub(r"^sudo (-u inspectd )?", "", line))[1:]
    group = typer.main.get_command(cli.app)
    name = words[0]
    assert name in group.commands
    arguments = [STAND_INS.get(word, word) for word in words[1:]]
    command = group.commands[name]
    # In the table of commands the arguments may be left out.
    resilient = not arguments
    command.make_context(name, arguments, resilient_parsing=resilient)


def test_make_has_what_it_is_asked_for():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = set(re.findall(r"\bmake ((?:demo|test|bench|evaluate)[a-z-]*)", TEXT))
    assert asked
    assert asked <= targets


def test_the_installation_is_asked_for_what_it_knows():
    options = set(re.findall(r"deploy/install\.sh (--\S+)", TEXT))
    assert options
    known = (ROOT / "deploy" / "install.sh").read_text()
    assert all(f"{option})" in known for option in options)


def block_after(comment: str) -> str:
    """The indented lines below a comment, to the next empty one."""
    found = re.search(rf"^    # {re.escape(comment)}\n((?:    .+\n)+)", TEXT, re.MULTILINE)
    assert found is not None
    return re.sub(r"^    ", "", found[1], flags=re.MULTILINE)


def test_example_files_are_accepted():
    station = config.parse(block_after("station.yaml"), Station)
    program = config.parse(block_after("programs/transistor.yaml"), Program)
    assert station.program == "transistor"
    assert program.description


def rows_of_trouble() -> list[str]:
    section = TEXT.partition("## When something is wrong")[2].partition("\n## ")[0]
    return [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]


def test_every_reason_and_every_fault_has_an_answer():
    told = " ".join(rows_of_trouble())
    assert {reason for reason in Reason if f'"{reason}"' not in told} == set()
    faults = {State.NOT_READY, State.CAMERA_FAULT, State.JOURNAL_FAULT}
    assert {fault for fault in faults if f"`{fault}`" not in told} == set()


def test_words_of_the_program_are_its_own():
    sources = "".join(path.read_text() for path in (ROOT / "inspectd").rglob("*.py"))
    quoted = re.findall(r'"([^"\n]{12,}?)(?:: …)?"', TEXT.partition("## When something")[2])
    assert quoted
    assert {words for words in quoted if words not in sources} == set()
