"""Decoding speed of the embedded engine, several engines and models by turns on one machine.

`python -m ops.bench.decoding --rows 1,8,32 CHECKOUT,MODEL,THREADS ...` loads each in a process of
its own, lets them decode one after the other, again and again, and prints the medians. An older
checkout that knows no threads gets 1. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

QUESTION = "Tom has 3 apples and buys 12 more. How many apples does he have now?"
ROUNDS = 5
SAMPLING: dict[str, Any] = {"max_new_tokens": 32, "temperature": 0.7, "top_p": 0.95}


def serve(model: str, threads: int) -> None:
    """Decode as many rows as each line of standard input says; print seconds as JSON."""
    from marco_search.runtime.embedded.backend import load_model
    from marco_search.runtime.embedded.batch import Batch, GenerationRequest
    from marco_search.runtime.embedded.cache import RadixCache
    from marco_search.runtime.embedded.engine import Engine

    loaded = load_model(Path(model), *([threads] if threads > 1 else []))
    engine = Engine(Batch(loaded.decoder, RadixCache(1 << 28), loaded.tokenizer, 64))
    ids = loaded.tokenizer.encode(QUESTION)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        requests = (GenerationRequest(ids=ids, seed=seed, **SAMPLING) for seed in range(int(line)))
        asked = list(map(engine.submit, requests))
        for row in asked:
            row.result()
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        found["tokens"] = sum(len(row.tokens) for row in asked)
        print(json.dumps(found | {"engine": loaded.info.version}), flush=True)
    engine.close()


def measure(specs: list[str], counts: list[int]) -> None:
    """Print for each engine and number of rows the medians of tokens/s, by clock and by CPU."""
    engines = {spec: _start(*spec.split(",")) for spec in specs}
    found = defaultdict[tuple[str, int], list[dict[str, Any]]](list)
    for _ in range(1 + ROUNDS):
        for rows, (spec, engine) in product(counts, engines.items()):
            assert engine.stdin is not None and engine.stdout is not None
            engine.stdin.write(f"{rows}\n")
            engine.stdin.flush()
            found[spec, rows].append(json.loads(engine.stdout.readline()))
    for engine in engines.values():
        engine.communicate()
    for (spec, rows), (warm_up, *runs) in found.items():
        wall, cpu = (median(r["tokens"] / r[clock] for r in runs) for clock in ("wall", "cpu"))
        print(
            f"{warm_up['engine']} {spec} rows {rows}: {wall:.1f} tokens/s by the clock, "
            f"{cpu:.1f} a processor second"
        )


def _start(checkout: str, model: str, threads: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).resolve()), "--serve", model, threads],
        env=os.environ | {"PYTHONPATH": str(Path(checkout).resolve())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="*", metavar="CHECKOUT,MODEL,THREADS")
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--serve", nargs=2, metavar=("MODEL", "THREADS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve[0], int(given.serve[1]))
        return
    print("load", os.getloadavg())
    measure(given.specs, [int(rows) for rows in given.rows.split(",")])


if __name__ == "__main__":
    main()
