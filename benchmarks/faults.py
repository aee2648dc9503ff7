"""Kill real trainings at seeded moments over their whole life, resume them, and judge what is left.

    python benchmarks/faults.py --kills 200

The harness and its judge are those of the tests, tests/faults/harness.py. Ends with 1 where a promise was broken.
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]  # in place of this folder, where `faults` is this file

from faults.harness import MOMENTS, Kill, PrefectOf, kill, moments_by, undisturbed  # noqa: E402
from workplaces import make_prefect_home  # noqa: E402

KILLS_A_CHAIN = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=100)
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
    kills: list[Kill] = []
    faults: list[str] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        make_prefect_home(folder / "prefect-home")
        prefect = PrefectOf(folder / "prefect-home")
        expected = undisturbed(folder / "undisturbed", prefect)
        chains = 0
        while len(kills) < asked.kills:
            seed = asked.seed + chains
            chain = kill(seed, moments_by(seed, KILLS_A_CHAIN), folder / str(seed), prefect, expected)
            kills += chain.kills
            faults += [f"seed {seed}: {fault}" for fault in chain.faults]
            chains += 1
            print(f"{len(kills)} kills, {len(faults)} faults", file=sys.stderr, flush=True)
            for fault in chain.faults:
                print(f"  {fault}", file=sys.stderr, flush=True)
    print(table(kills))
    print(
        f"\n{len(kills)} kills in {chains} chains, {time.monotonic() - started:.0f} s; promises broken: {len(faults)}"
    )
    sys.exit(bool(faults))


def table(kills: list[Kill]) -> str:
    """A row for each moment and signal."""
    groups: dict[tuple[str, str], list[Kill]] = defaultdict(list)
    for one in kills:
        groups[one.moment, one.signal].append(one)
    lines = ["| killed at | by | times | exit codes | seconds to the end, median and most |", "|---|---|---|---|---|"]
    for moment in MOMENTS:
        for how in ("SIGKILL", "SIGTERM", "SIGINT"):
            if some := groups.get((moment.name, how)):
                codes = ", ".join(str(code) for code in sorted({one.code for one in some}))
                seconds = [one.seconds for one in some]
                lines.append(
                    f"| {moment.name} | {how} | {len(some)} | {codes} | {statistics.median(seconds):.2f}, "
                    f"{max(seconds):.2f} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
