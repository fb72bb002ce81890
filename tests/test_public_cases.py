"""Every situation of `public_cases.py` ends as it must."""

import pytest

from public_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.report}: {case.situation}")
def test_public_case(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        found = case.feed(tmp_path)
    except Exception as error:
        found = error
    case.outcome(found)
