"""What is said reaches a stdout of any encoding. Oracle: its bytes."""

import io
import sys

import pytest

from torchspec.console import console, speak_anywhere


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("ascii", b"tau 1.92 -> 1.31x ## ?\n"), ("latin-1", b"tau 1.92 -> 1.31\xd7 ## ?\n"), ("utf-8", "τ 1.92 → 1.31× ██ 月\n".encode())],
)
def test_signs_that_a_stdout_does_not_know_are_said_otherwise(monkeypatch, encoding, said):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    speak_anywhere()
    console.print("τ 1.92 → 1.31× ██ 月")
    stream.flush()
    assert stream.buffer.getvalue() == said
