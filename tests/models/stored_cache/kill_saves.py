"""Kills saves at random moments: after each, the folder must be whole, of one save or none.

    python tests/models/stored_cache/kill_saves.py [kills]

A kill in two comes to the first save, into a folder that is not there.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))
from tiny_models import tiny

from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.stored_cache.load import load_cache
from videonsa.models.stored_cache.save import save_cache


def numbered(number: int) -> VideoNSACache:
    """A cache of 2 MB whose every value is the number of its save."""
    cache = VideoNSACache()
    rows = torch.full((1, 2, 8_000, 16), float(number))
    for layer in range(2):
        cache.update(rows, rows, layer)
    return cache


def save_until_killed(folder: Path, model: object, first: int) -> None:
    for number in count(first):
        save_cache(folder, numbered(number), model, state={"number": number})


def main() -> None:
    kills, rng, model = int((sys.argv[1:] or ["100"])[0]), random.Random(0), tiny()
    whole = 0
    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name) / "saved", 0
        begun = time.perf_counter()
        save_cache(folder, numbered(0), model, state={"number": 0})
        usual = time.perf_counter() - begun
        for kill in range(kills):
            if kill % 2:
                shutil.rmtree(folder, ignore_errors=True)
            there = folder.exists()
            if (child := os.fork()) == 0:
                save_until_killed(folder, model, number + 1)
            time.sleep(rng.uniform(0, 2.5 * usual))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            try:
                loaded = load_cache(folder, model)
            except UsageError:
                assert not there, "a folder that was there is gone"
                assert not folder.exists(), "a folder that is not whole"
                continue
            assert loaded.state["number"] >= number
            number, whole = loaded.state["number"], whole + 1
            for layer in loaded.cache.layers:
                assert (layer.keys == number).all()
                assert (layer.values == number).all()
        save_cache(folder, numbered(0), model)
        left = [path.name for path in folder.parent.iterdir()]
        assert left == ["saved"], left
    print(f"{kills} killed, {whole} left a whole folder, {kills - whole} none")


if __name__ == "__main__":
    main()
