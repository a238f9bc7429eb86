"""Resumes are kept in the run folder."""

from __future__ import annotations

from pathlib import Path

from rlkl.tracking.records.resumes import note_resume, read_resumes


def test_resumes_are_listed_and_those_after_the_new_start_are_forgotten(tmp_path: Path):
    assert read_resumes(tmp_path) == []
    for first_step in (4, 4, 9):
        note_resume(tmp_path, first_step)
    assert read_resumes(tmp_path) == [4, 4, 9]
    note_resume(tmp_path, 6)
    assert read_resumes(tmp_path) == [4, 4, 6]
