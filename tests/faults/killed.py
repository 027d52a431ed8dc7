"""Saves that are killed at random moments: ``python -m tests.faults.killed FOLDER KILLS`` prints what is left of them.

A process saves one model after another over the same path, and is killed (signal 9) within the time of two saves.
Whatever is at the path then has to load, as one of the models.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.faults.models import FAMILIES, Family


def kill_one(family: Family, path: Path, after: float) -> None:
    child = os.fork()
    if child == 0:
        while True:
            for seed in (0, 1):
                family.model(seed).save(path)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main(folder: str, kills: int) -> None:
    rng = random.Random(0)
    for family in FAMILIES:
        path = Path(folder) / family.kind.__name__
        family.model(1).save(path)
        begin = time.perf_counter()
        family.model(0).save(path)
        two, whole = 2 * (time.perf_counter() - begin), 0
        for _ in range(kills):
            kill_one(family, path, rng.uniform(0.0, two))
            whole += family.is_model(path, 0, 1)
        print(f"{family.kind.__name__} {whole}/{kills}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
