"""Every public name shows an example in its docstring, and the examples are right."""

import doctest
import runpy
from pathlib import Path

import pytest
import torch

import sfumato as sf

NAMES = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "public_names.py"))
PUBLIC = NAMES["public"]()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(home: str) -> doctest.DocTest:
    """What the docstring of a name shows; `torch` and `sf` are the only names it may assume."""
    text = NAMES["docstring"](home)
    return doctest.DocTestParser().get_doctest(text, {"torch": torch, "sf": sf}, home, home, 0)


def failed(test: doctest.DocTest) -> str:
    """What differs; empty if nothing does."""
    said: list[str] = []
    torch.manual_seed(0)
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=said.append)
    return "".join(said)


def test_every_kind_of_name_is_found():
    assert len(PUBLIC) > 200
    assert PUBLIC["Process"] == "sfumato.corruption.process.Process"
    assert PUBLIC["kernels.HEUN"] == "sfumato.sampling.flow.HEUN"
    assert NAMES["docstring"]("sfumato.sampling.flow.HEUN").startswith("Heun's method")


def test_a_wrong_example_fails():
    text = ">>> sf.schedules.Linear(0, 1)(torch.tensor(0.5))\ntensor(0.6000)\n"
    globs = {"torch": torch, "sf": sf}
    assert "Expected" in failed(doctest.DocTestParser().get_doctest(text, globs, "x", "x", 0))


@pytest.mark.parametrize("home", sorted({*PUBLIC.values()}))
def test_the_examples_of_a_name_are_right(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test = examples(home)
    assert test.examples, f"the docstring of {home} has no >>> example"
    assert any(example.want for example in test.examples), f"{home} shows no value"
    assert not (difference := failed(test)), difference
