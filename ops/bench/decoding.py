"""Decoding speed of the embedded engine, several engines and models by turns on one machine.

`python -m ops.bench.decoding --rows 1,8,32 CHECKOUT,MODEL,THREADS ...` loads each in a process of
its own, lets them decode one after the other, again and again, and prints the medians. An older
checkout that knows no threads gets 1. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

QUESTION = "Tom has 3 apples and buys 12 more. How many apples does he have now?"
ROUNDS, TOKENS = 5, 32
TEMPERATURE, TOP_P = 0.7, 0.95


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
        asked = [
            engine.submit(
                GenerationRequest(
                    ids=ids,
                    max_new_tokens=TOKENS,
                    temperature=TEMPERATURE,
                    top_p=TOP_P,
                    seed=seed,
                )
            )
            for seed in range(int(line))
        ]
        for row in asked:
            row.result()
        found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        found["tokens"] = sum(len(row.tokens) for row in asked)
        print(json.dumps(found | {"engine": loaded.info.version}), flush=True)
    engine.close()


def measure(specs: list[str], counts: list[int]) -> list[dict[str, Any]]:
    """One record for each engine and number of rows: medians of tokens/s, by clock and by CPU."""
    engines = [_start(*spec.split(",")) for spec in specs]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for round_ in range(-1, ROUNDS):  # the first warms up
        for rows in counts:
            for spec, engine in zip(specs, engines, strict=True):
                assert engine.stdin is not None and engine.stdout is not None
                engine.stdin.write(f"{rows}\n")
                engine.stdin.flush()
                measured = json.loads(engine.stdout.readline())
                if round_ >= 0:
                    found.setdefault((spec, rows), []).append(measured)
    for engine in engines:
        engine.communicate()
    return [
        {"engine": runs[0]["engine"], "spec": spec, "rows": rows}
        | {
            f"tokens_per_{key}_s": statistics.median(r["tokens"] / r[key] for r in runs)
            for key in ("wall", "cpu")
        }
        for (spec, rows), runs in found.items()
    ]


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
    for record in measure(given.specs, [int(rows) for rows in given.rows.split(",")]):
        print(
            "{engine} {spec} rows {rows}: {tokens_per_wall_s:.1f} tokens/s by the clock, "
            "{tokens_per_cpu_s:.1f} a processor second".format(**record)
        )


if __name__ == "__main__":
    main()
