"""What a process is at: the innermost counts, anew from when something was entered or left."""

import math
import time

import pytest

from hardmine_jax.job.activity import activity, waiting, working


def test_the_innermost_counts_and_what_is_around_it_begins_anew():
    assert activity().what is None
    with working("training"):
        begun = activity()
        assert begun[:2] == ("training", False) and begun.slack == 1.0
        time.sleep(0.02)
        with waiting():
            assert activity().waiting and activity().since >= begun.since + 0.02
            with working("compiling", slack=math.inf):
                assert activity()[:2] == ("compiling", False) and activity().slack == math.inf
            assert activity().waiting
        after = activity()
        assert after[:2] == ("training", False) and after.since >= begun.since + 0.02
    assert activity().what is None


def test_an_error_leaves_nothing_behind():
    with pytest.raises(KeyError), working("training"), waiting():
        raise KeyError
    assert activity().what is None
