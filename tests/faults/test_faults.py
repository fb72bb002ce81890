"""Some cases of each part of the soak, and the soak's own books."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from faults import long, table
from faults.commands import End
from faults.journal import Journal
from faults.parts import Miss, NotRun, Part, difference, expect
from faults.registry import PARTS
from sfumato.methods import METHODS

SOME = {
    "kills": [3, 5],
    "damage": [1, 6],
    "disk": [0, 1, 2],
    "hostile": [*range(9)],
    "mix": [*range(len(METHODS))],
    "workers": [0],
}


@pytest.mark.parametrize("name", SOME)
def test_some_cases_of_a_part(name, tmp_path):
    part: Part = PARTS[name](tmp_path)
    for case in SOME[name]:
        try:
            part.case(case, part.random(case))
        except NotRun as error:
            pytest.skip(str(error))


def end(code: int | None, err: str = "") -> End:
    return End(code, err, 0.0, 0, 0.0)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (end(None), r"hung"),
        (end(1, "Traceback (most recent call last):\nKeyError: 3\n"), "a traceback: KeyError: 3"),
        (end(-11), "exit code -11"),
        (end(2, "sfumato: no.\nsfumato: no.\n"), r"2 lines in place of one"),
        (end(2, ""), "0 lines in place of one"),
        (end(2, "sfumato: no.\nmore\n"), "no sentence of the command: more"),
        (end(1, "sfumato: no.\n"), "exit code 1: sfumato: no."),
    ],
)
def test_an_end_that_breaks_a_promise_is_a_miss(found, sentence):
    with pytest.raises(Miss, match=sentence):
        expect(found, 0, 2)


def test_an_end_in_one_line_is_none():
    for found in (end(0), end(0, "sfumato: note: a\n"), end(2, "sfumato: note: a\nsfumato: b.\n")):
        assert expect(found, 0, 2) is found


def test_growth_is_a_miss():
    looks = [{"step": 500 * i, "memory": 1000, "files": 9} for i in range(5)]
    long.check(looks)
    for change in ({"memory": 1021}, {"files": 10}):
        with pytest.raises(Miss, match=r"more memory|10 open files"):
            long.check([*looks[:3], looks[3] | change, looks[4]])


def test_folders_differ_where_a_file_does():
    assert difference({"a": "1"}, {"a": "1"}) is None
    assert difference({"a": "1"}, {"a": "2"}) == "a differs"
    assert difference({}, {"a": "2"}) == "a is on one side only"


def test_a_cut_journal_goes_on(tmp_path):
    journal = Journal(tmp_path / "journal", 3, "a")
    row = {"part": "kills", "case": 0, "seed": 3, "code": "a"}
    journal.add(row)
    with (tmp_path / "journal").open("a") as stream:
        stream.write('{"part": "ki')
    again = Journal(tmp_path / "journal", 3, "a")
    assert ("kills", 0) in again and ("kills", 1) not in again
    again.add(row | {"case": 1})
    found = Journal(tmp_path / "journal", 3, "a")
    assert [*found.of("kills", range(3))] == [row, row | {"case": 1}]
    assert ("kills", 0) not in Journal(tmp_path / "journal", 3, "other code")
    with pytest.raises(SystemExit, match="seed 3"):
        Journal(tmp_path / "journal", 4)


def test_the_table_is_placed_again(tmp_path):
    """The record is read back from JSON; a page that has a table gets the new one."""
    row = {"part": "kills", "about": "SIGKILL", "cases": 1200, "passed": 2, "missed": 1}
    row |= {"not_run": 3, "counts": {"kills": 2000}, "minutes": 4.2, "peak_mib": 1500}
    record = {"seed": 0, "processor": "x", "torch": "2", "parts": [row]}
    (tmp_path / "soak.json").write_text(json.dumps(record))
    page = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    found = table.placed(page, table.read(tmp_path / "soak.json"))
    assert "| kills | SIGKILL: 2,000 kills | 1200 | 2 | 1 | 3 | 4.2 | 1,500 MiB |" in found
    assert found.startswith("before\n") and found.endswith("\nafter\n") and "old" not in found
    assert table.placed(found, record) == found
    assert table.UNMEASURED in table.placed(found, table.read(Path("nothing")))
