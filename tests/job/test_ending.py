"""Ending at once, whatever there is to write to. Failures of whole jobs are in test_distributed."""

import os
import sys

import pytest

from hardmine_jax.job import ending


class _Ended(Exception):
    pass


def _raise_ended(code):
    raise _Ended(code)


def test_a_process_without_standard_output_ends_too(monkeypatch):
    # As under pythonw.
    monkeypatch.setattr(sys, "__stdout__", None)
    monkeypatch.setattr(os, "_exit", _raise_ended)
    with pytest.raises(_Ended, match="^2$"):
        ending.exit_now(2)
