"""What counts as hanging, and what does not: processes, their clock and their store played by one."""

import math
import types

import jax
import pytest

from hardmine_jax.job import ending, lookout
from hardmine_jax.job.activity import Activity

PATIENCE = 45.0
IDLE = Activity(None, False, 0.0)


class Ended(Exception):
    """What a process declared."""


class Store(dict):
    def key_value_set(self, key, value, allow_overwrite=False):
        self[key] = value

    def key_value_delete(self, key):
        del self[key]

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.items() if key.startswith(folder)]

    def key_value_try_get(self, key):
        if key not in self:
            raise jax.errors.JaxRuntimeError("NOT_FOUND: no such key")
        return self[key]


class World:
    """Three processes that do what they are told; `run` lets their lookouts look twice a second."""

    def __init__(self, monkeypatch, patience=PATIENCE):
        self.now, self.current, self.store = 0.0, 0, Store()
        self.doing = [IDLE] * 3
        self.frozen = set()
        monkeypatch.setattr(lookout, "client", lambda: self.store)
        monkeypatch.setattr(lookout, "activity", lambda: self.doing[self.current])
        # Not of the module `time`, which other threads read too.
        monkeypatch.setattr(lookout, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(jax, "process_count", lambda: 3)
        monkeypatch.setattr(jax, "process_index", lambda: self.current)
        monkeypatch.setattr(ending, "declare", self.declare)
        self.looks = []
        for number in range(3):
            self.current = number
            self.looks.append(lookout._Lookout(patience, thread=0))

    def declare(self, code, said):
        assert code == 1
        raise Ended(said)

    def does(self, number, what, *, waiting=False, slack=1.0):
        self.doing[number] = Activity(what, waiting, self.now, slack)

    def run(self, seconds):
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            for number in set(range(3)) - self.frozen:
                self.current = number
                self.looks[number]()


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def all_wait_but(world, number):
    for other in {0, 1, 2} - {number}:
        world.does(other, "a step", waiting=True)


def test_one_that_keeps_the_others_waiting_hangs(world):
    all_wait_but(world, 1)
    world.does(1, "reading a batch")
    world.run(PATIENCE + 4)
    with pytest.raises(Ended, match="^process 1 hangs: 5. s in reading a batch, while process 0 waits$"):
        world.run(10)


def test_patience_is_counted_from_when_the_others_wait(world):
    for number in range(3):
        world.does(number, "an evaluation")
    world.run(1000)
    all_wait_but(world, 1)
    world.run(PATIENCE)
    world.does(1, "a step", waiting=True)
    world.run(PATIENCE)


def test_coming_on_is_no_hanging(world):
    all_wait_but(world, 2)
    for _ in range(20):
        world.does(2, "reading a batch")
        world.run(PATIENCE)


@pytest.mark.parametrize("slack, seconds", [(10.0, 9 * PATIENCE), (math.inf, 100 * PATIENCE)])
def test_some_work_may_take_longer(world, slack, seconds):
    all_wait_but(world, 0)
    world.does(0, "compiling", slack=slack)
    world.run(seconds)
    # The others have waited long, and now for a moment all do.
    world.does(0, "a step", waiting=True)
    world.run(PATIENCE)
    world.does(0, "reading a batch")
    world.run(PATIENCE)


def test_nobody_asks_what_is_done_outside_of_training(world):
    all_wait_but(world, 0)
    world.run(100 * PATIENCE)


def test_all_that_wait_for_each_other_hang(world):
    for number in range(3):
        world.does(number, "a step", waiting=True)
    world.run(lookout.ALL_WAIT_SLACK * PATIENCE)
    with pytest.raises(Ended, match="all processes wait for each other, process . 45. s in a step: a device"):
        world.run(20)


@pytest.mark.parametrize("number", range(3))
def test_one_whose_python_stands_still_is_named_by_the_one_before(world, number):
    for other in range(3):
        world.does(other, "training")
    world.run(20)
    world.frozen.add(number)
    all_wait_but(world, number)
    said = f"^process {number} hangs or is gone: its Python has stood still for [45]. s$"
    with pytest.raises(Ended, match=said):
        world.run(PATIENCE + 10)
    assert world.current == (number - 1) % 3


def test_one_that_froze_at_once_is_missed_too(world):
    world.run(3)
    world.does(1, "training")
    world.run(0.5)
    world.frozen.add(1)
    with pytest.raises(Ended, match="process 1 hangs or is gone"):
        world.run(PATIENCE + 10)


def test_a_machine_that_slept_blames_nobody(world):
    for number in range(3):
        world.does(number, "training")
    world.run(20)
    world.now += 1000
    world.run(PATIENCE)


def test_with_no_limit_nothing_hangs(monkeypatch):
    world = World(monkeypatch, patience=math.inf)
    all_wait_but(world, 1)
    world.does(1, "reading a batch")
    world.run(10_000)


class Over:
    """An event that is set after so many looks."""

    def __init__(self, looks):
        self.looks = looks

    def wait(self, seconds):
        self.looks -= 1
        return self.looks < 0


def test_a_call_that_fails_once_is_made_again(monkeypatch):
    failure = ending.Failure(1, 2, "process 1: error: no such file")
    answers = [jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED"), None, failure]
    ended = []

    def declared():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ending, "declared", declared)
    monkeypatch.setattr(ending, "acknowledge", lambda: ended.append("acknowledged"))
    monkeypatch.setattr(lookout, "exit_now", lambda code: ended.append(code))
    monkeypatch.setattr(lookout, "_LAST_SECONDS", 0.0)
    lookout.watch(Over(3), PATIENCE, thread=0)
    assert ended == ["acknowledged", 2] and not answers
