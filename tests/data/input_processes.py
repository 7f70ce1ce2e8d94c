"""`python input_processes.py WHAT`: reads batches with two input processes, and something happens to them."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker

import numpy as np

from hardmine_jax.data.stream import endless_batches


class Source:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {"index": index}


def augment(record, rng):
    image = np.full((512, 64, 3), record["index"], np.uint8)
    return {"image": image, "index": np.int32(record["index"])}


def start(num_workers):
    return endless_batches(Source(), augment, batch_size=8, seed=0, num_workers=num_workers)


def indices(batches, count):
    return [next(batches)["index"].tolist() for _ in range(count)]


def workers():
    return [child for child in multiprocessing.active_children() if child.name.startswith("grain")]


def kill_all_the_time():
    while True:
        for child in workers():
            child.kill()
        time.sleep(0.2)


def main(what):
    batches = start(2)
    first = indices(batches, 1)
    assert len(workers()) == 2
    if what == "orphans":
        print(*[child.pid for child in workers()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "killed":
        # A terminal's and Slurm's signals are the trainer's.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            for child in workers():
                os.kill(child.pid, number)
            os.kill(resource_tracker._resource_tracker._pid, number)
        time.sleep(0.5)
        assert len(workers()) == 2
        workers()[0].kill()
        assert first + indices(batches, 29) == indices(start(0), 30)
    elif what == "killed again and again":
        threading.Thread(target=kill_all_the_time, daemon=True).start()
        indices(batches, 100)
    batches.close()
    assert not workers()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except ValueError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
