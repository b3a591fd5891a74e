"""The study trains, resumes, and writes its tables.

python -m pytest benchmarks/studies/test_gradient_rules.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies import gradient_rules

pytest.importorskip("rich", reason="rich shows the progress")
pytest.importorskip("matplotlib", reason="matplotlib draws the figures")


def test_the_study_writes_its_tables_and_trains_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--tasks", "digits", "--epochs", "1", "--seeds", "2", "--out", str(tmp_path)]
    surrogates = ["--surrogates", "fast_sigmoid:10", "atan:2"]
    monkeypatch.setattr("sys.argv", ["gradient_rules.py", *arguments, *surrogates])
    gradient_rules.main()
    text = (tmp_path / "gradient_rules.md").read_text()
    for rule in gradient_rules.GRADIENT_RULES:
        assert text.count(f"| `{rule}` | ") == 2  # and from a silent network
    assert text.count("| 0.0 | 0.0 | 0.0 |") >= 1  # silent at first
    assert (tmp_path / "report" / "curves-1.png").exists()
    # 4 rules with 2 surrogates, and 4 rules from silence; 2 seeds each
    records = {path: path.read_text() for path in tmp_path.glob("*/run.jsonl")}
    assert len(records) == 2 * (4 * 2 + 4)
    gradient_rules.main()
    assert records == {path: path.read_text() for path in records}
