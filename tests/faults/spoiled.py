"""Many spoiled files: ``python -m tests.faults.spoiled NUMBER`` counts what becomes of them, a family a line.

A bit is flipped, a byte of a header replaced, the file cut, a piece copied over another, or the length of the header
changed, at random places. Refused means by ``ModelFileError``; altered, loaded with other numbers.
"""

import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from pyrosplice.errors import ModelFileError
from tests.faults.models import FAMILIES, Family, content_of, put


def spoiled(data: bytes, *, is_json: bool, rng: random.Random) -> bytes:
    made, header = bytearray(data), len(data) if is_json else 8 + int.from_bytes(data[:8], "little")
    kind = rng.randrange(5)
    if kind == 0:
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        made[rng.randrange(header)] = rng.randrange(256)
    elif kind == 2:
        made = made[: rng.randrange(len(made))]
    elif kind == 3:
        source, target = rng.randrange(len(made)), rng.randrange(len(made))
        piece = made[source : source + rng.randrange(1, 64)]
        made[target : target + len(piece)] = piece
    else:
        made[:8] = rng.randrange(2 ** rng.randrange(1, 64)).to_bytes(8, "little")
    return bytes(made)


def fate(family: Family, path: Path) -> str:
    try:
        return "equal" if family.is_model(path, 0) else "altered"
    except ModelFileError:
        return "refused"
    except Exception as error:
        return f"foreign: {error!r}"


def main(number: int) -> None:
    for family in FAMILIES:
        path, rng, longest = Path(tempfile.mkdtemp()) / "model", random.Random(7), 0.0
        family.model(0).save(path)
        whole, before = content_of(path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fates: Counter[str] = Counter()
        for _ in range(number):
            name = rng.choice(list(whole))
            put(path, {**whole, name: spoiled(whole[name], is_json=name.endswith(".json"), rng=rng)})
            begin = time.process_time()
            fates[fate(family, path)] += 1
            longest = max(longest, time.process_time() - begin)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(
            f"{family.kind.__name__} {dict(fates)} longest {longest:.2f} s, memory grew by {grown:.0f} MB", flush=True
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))
