"""Ask for thousands of random things: each must end with 0, 1 or 2 and one line, and leave nothing open.

    .venv/bin/python benchmarks/wrong_requests.py [--cases 5000] [--seed 0] [--only train]

The cases and the judge are those of the suite, `tests/random_requests.py`; here no two runs need be alike. Exits with 1
where a case broke the contract, and shows the shortest one of each sort of complaint.
"""

import argparse
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from random_requests import KINDS, NOBODY_LISTENS, Case, Ending, Kind, Runner, complaints, running, trained

CASES_AT_ONCE = 25


@dataclass
class Tally:
    cases: int = 0
    codes: Counter[int | str | None] = field(default_factory=Counter)
    seconds: float = 0
    slowest: float = 0
    failures: dict[str, tuple[Case, Ending]] = field(default_factory=dict)
    failed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    asked = parser.parse_args()
    tallies: dict[str, Tally] = {}
    with running() as runner:
        kept = trained(runner)
        chosen = [kind for kind in KINDS if asked.only in kind.name]
        shares = sum(kind.share for kind in chosen)
        for kind in chosen:
            tallies[kind.name] = run(runner, kind, kept, -(-asked.cases * kind.share // shares), asked.seed)
            show(kind.name, tallies[kind.name])
    total = Tally()
    for one in tallies.values():
        total.cases, total.seconds, total.failed = (
            total.cases + one.cases, total.seconds + one.seconds, total.failed + one.failed,
        )  # fmt: skip
        total.codes += one.codes
        total.slowest = max(total.slowest, one.slowest)
    show("all", total)
    sys.exit(bool(total.failed))


def run(runner: Runner, kind: Kind, kept: tuple[bytes, bytes], cases: int, start: int) -> Tally:
    tally = Tally()

    def look(case: Case) -> None:
        started = time.perf_counter()
        ending = runner.run(case)
        tally.seconds += time.perf_counter() - started
        tally.slowest = max(tally.slowest, ending.seconds)
        tally.cases += 1
        tally.codes["sound" if f"PREFECT_API_URL={NOBODY_LISTENS} does" in ending.err else ending.code] += 1
        found = complaints(case, ending)
        tally.failed += bool(found)
        for one in found:
            signature = re.sub(r"\d+|fourfold-\w+", "#", one)[:90]
            before = tally.failures.get(signature)
            if before is None or len(repr(case)) < len(repr(before[0])):
                tally.failures[signature] = (case, ending)

    # Hypothesis goes on from what it has tried: beginning anew reaches more.
    for first in range(0, cases, CASES_AT_ONCE):
        limited = settings(
            max_examples=min(CASES_AT_ONCE, cases - first), database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        seed(start * 1_000_000 + first)(limited(given(kind.cases(*kept))(look)))()
    return tally


HEADER = f"{'kind':30}  cases  exit 0  exit 1  exit 2   sound  seconds  slowest  failures"


def show(name: str, tally: Tally) -> None:
    if not show.done:  # type: ignore[attr-defined]
        print(HEADER)
        show.done = True  # type: ignore[attr-defined]
    codes = "".join(f"{tally.codes[code]:8}" for code in (0, 1, 2, "sound"))
    print(f"{name:30}{tally.cases:7}{codes}{tally.seconds:9.1f}{tally.slowest:9.2f}{tally.failed:10}", flush=True)
    for signature, (case, ending) in tally.failures.items():
        files = {name: content for name, content in case.files.items() if name in " ".join(case.arguments)}
        print(f"    {signature}\n        {replace(case, files=files)!r:.600}\n        {ending.err[:400]!r}", flush=True)


show.done = False  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
