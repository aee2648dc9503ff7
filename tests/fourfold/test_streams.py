"""Rows that stay on disk, against the same rows in memory."""

import gc
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from fourfold import streams, tables
from fourfold.datasets import Dataset, make_dataset, read_table, streamed_dataset
from fourfold.errors import RequestError
from fourfold.streams import HELD_OUT, TRAINING, VALIDATION, Stream, choose_parts, open_stream
from fourfold.tables import choose_columns, open_table

ROWS = 1000
PARTS = (TRAINING, VALIDATION, HELD_OUT)


@dataclass(frozen=True)
class Request:
    """What decides the rows."""

    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    seed: int = 3
    missing: str = "error"
    dtype: torch.dtype = torch.float64
    features: tuple[str, ...] = ()

    def split(self) -> dict[str, Any]:
        names = ("test_fraction", "validation_fraction", "seed", "dtype")
        return {name: getattr(self, name) for name in names}

    def stream(self, path: Path) -> Stream:
        file = open_table(path)
        return open_stream(
            file, *choose_columns(file, ("y",), self.features), missing=self.missing, **self.split()
        )  # fmt: skip

    def streamed(self, path: Path) -> Dataset:
        return streamed_dataset("rows", self.stream(path), missing=self.missing)

    def in_memory(self, path: Path) -> Dataset:
        file = open_table(path)
        table = read_table(file, *choose_columns(file, ("y",), self.features), missing=self.missing)
        return make_dataset("rows", table, missing=self.missing, **self.split())


def columns(rows: int = ROWS, *, missing: float = 0.0) -> dict[str, np.ndarray]:
    """Each row can be told by its number, and its target is twice that and a half: the file is sorted by it."""
    random = np.random.default_rng(1)
    number = np.arange(float(rows))
    noise = random.normal(size=rows)
    noise[random.random(rows) < missing] = np.nan
    return {"noise": noise, "number": number, "y": 2 * number + 0.5}


def write(folder: Path, values: dict[str, np.ndarray], group: int = 64, name: str = "rows.parquet") -> Path:
    path = folder / name
    if name.endswith("csv"):
        pc.write_csv(pa.table(values), path)
    else:
        pq.write_table(pa.table(values), path, row_group_size=group)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, columns())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let so many rows of three float64 columns be shuffled at once, and chunks be smaller than that."""

    def pool(rows: int) -> None:
        monkeypatch.setattr(streams, "POOL", rows * 24)
        monkeypatch.setattr(streams, "CHUNK_ROWS", 50)
        monkeypatch.setattr(tables, "CHUNK_ROWS", 50)

    return pool


def numbers(x: Tensor) -> list[int]:
    return [int(number) for number in x[:, 1]]


def epoch(stream: Stream, generator: torch.Generator | None = None) -> Tensor:
    """The rows of one epoch, features beside the target."""
    generator = generator or torch.Generator().manual_seed(0)
    return torch.cat([torch.cat(rows, dim=1) for rows in stream.shuffled(generator)])


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(-1e9), b.nan_to_num(-1e9))


class TestParts:
    @pytest.mark.parametrize("missing", ["error", "drop", "mean"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        ("test", "validation", "seed"), [(0.2, 0.1, 3), (0.2, 0.0, 4), (0.0, 0.3, 5), (0.0, 0.0, 6)]
    )
    def test_they_are_those_of_the_rows_in_memory(
        self, missing: str, dtype: torch.dtype, test: float, validation: float, seed: int, tmp_path: Path
    ) -> None:
        path = write(tmp_path, columns(missing=0.0 if missing == "error" else 0.2))
        request = Request(test, validation, seed, missing, dtype)
        stream, data = request.stream(path), request.in_memory(path)
        found: dict[str, list[Tensor]] = {part: [] for part in PARTS}
        for part, x, y in stream.chunks():
            found[part].append(torch.cat([x, y], dim=1))
        for part in PARTS:
            x, y = data.at_hand[part]
            assert stream.count(part) == len(x)
            if len(x):
                there = torch.cat([x, y], dim=1)
                assert same(torch.cat(found[part]), there[there[:, 1].argsort()])  # the file's own order

    def test_rows_without_a_held_out_or_validation_part_keep_their_order(self, path: Path) -> None:
        stream = Request(0.0, 0.0).stream(path)
        assert [number for _, x, _ in stream.chunks() for number in numbers(x)] == list(range(ROWS))

    @pytest.mark.parametrize("missing", ["error", "drop"])
    def test_a_part_may_not_take_everything(self, missing: str, tmp_path: Path) -> None:
        path = write(tmp_path, columns(10))
        with pytest.raises(RequestError, match=r"--test-fraction 0\.9 leaves 1 of 10 rows to train on"):
            Request(0.9, 0.0, missing=missing).stream(path)

    def test_one_row_is_too_few(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"rows\.parquet has 1 row; at least two are needed"):
            Request().stream(write(tmp_path, columns(1)))

    def test_validation_rows_do_not_change_which_are_held_out(self) -> None:
        plain, other = (choose_parts("", 100, {HELD_OUT: 0.2, VALIDATION: share}, 7) for share in (0.0, 0.3))
        assert plain[HELD_OUT].tolist() == other[HELD_OUT].tolist()


class TestAnEpoch:
    @pytest.mark.parametrize("pool", [64, 100, 333, 5000])
    @pytest.mark.parametrize("group", [1, 7, 64, 1000])
    @pytest.mark.parametrize("missing", ["error", "drop", "mean"])
    def test_every_training_row_comes_once_and_no_other(
        self, pool: int, group: int, missing: str, small: Callable[[int], None], tmp_path: Path
    ) -> None:
        small(pool)
        path = write(tmp_path, columns(missing=0.0 if missing == "error" else 0.2), group)
        request = Request(missing=missing)
        data = request.in_memory(path)
        rows = epoch(request.stream(path))
        assert same(rows[rows[:, 1].argsort()], torch.cat([data.x, data.y], dim=1)[data.x[:, 1].argsort()])

    @pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
    @pytest.mark.parametrize("group", [64, ROWS])
    def test_no_piece_is_larger_than_the_pool(
        self, name: str, group: int, small: Callable[[int], None], tmp_path: Path
    ) -> None:
        small(100)
        stream = Request(0.0, 0.0).stream(write(tmp_path, columns(), group, name))
        sizes = [len(x) for x, _ in stream.shuffled(torch.Generator())]
        assert max(sizes) <= 100
        assert len(sizes) <= 2 * ROWS / 100

    def test_pieces_of_small_groups_are_filled(self, small: Callable[[int], None], tmp_path: Path) -> None:
        small(100)
        stream = Request(0.0, 0.0).stream(write(tmp_path, columns(), 3))
        assert min([len(x) for x, _ in stream.shuffled(torch.Generator())][:-1]) > 97

    def test_groups_without_a_training_row_are_passed_over(self, small: Callable[[int], None], tmp_path: Path) -> None:
        small(2)
        request = Request(0.5, 0.3, seed=1)
        rows = epoch(request.stream(write(tmp_path, columns(40), 1)))
        assert sorted(numbers(rows)) == sorted(numbers(request.in_memory(tmp_path / "rows.parquet").x))

    def test_the_order_is_another_each_epoch_and_the_seed_decides_it(self, path: Path) -> None:
        stream = Request().stream(path)
        generator, again = (torch.Generator().manual_seed(8) for _ in range(2))
        first, second = epoch(stream, generator), epoch(stream, generator)
        assert not torch.equal(first, second)
        assert torch.equal(first, epoch(stream, again))
        assert torch.equal(second, epoch(stream, again))
        assert not torch.equal(first, epoch(stream, torch.Generator().manual_seed(9)))

    def test_the_same_request_gives_the_same_bits(self, small: Callable[[int], None], path: Path) -> None:
        small(100)
        one, other = Request().stream(path), Request().stream(path)
        assert epoch(one).numpy().tobytes() == epoch(other).numpy().tobytes()
        assert one.sha256 == other.sha256

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    @pytest.mark.parametrize("group", [10, 64, 1000], ids=["small groups", "groups", "one huge group"])
    def test_a_file_that_is_sorted_by_its_target_does_not_come_sorted(
        self, kind: str, group: int, small: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Correlation of place and target: 1 where it is sorted, and about 0 +- 0.25 of 16 groups in random order."""
        small(100)
        monkeypatch.setattr(tables, "_CSV_BLOCK", 2048)
        stream = Request(0.0, 0.0).stream(write(tmp_path, columns(), group, f"rows.{kind}"))
        generator = torch.Generator().manual_seed(1)
        epochs = []
        for _ in range(20):
            pieces = [numbers(x) for x, _ in stream.shuffled(generator)]
            inside = [np.corrcoef(np.arange(len(piece)), piece)[0, 1] for piece in pieces if len(piece) > 30]
            assert np.max(np.abs(inside)) < 0.7
            rows = np.concatenate(pieces)
            assert np.mean(np.abs(np.diff(rows)) == 1) < 0.1
            epochs.append(np.corrcoef(np.arange(ROWS), rows)[0, 1])
        assert abs(np.mean(epochs)) < 0.2
        assert np.max(np.abs(epochs)) < 0.8

    def test_the_rows_of_small_groups_are_mixed_with_each_other(
        self, small: Callable[[int], None], tmp_path: Path
    ) -> None:
        small(200)
        rows = numbers(epoch(Request(0.0, 0.0).stream(write(tmp_path, columns(), 20))))
        assert len({row // 20 for row in rows[:20]}) > 5

    def test_every_row_may_come_first(self, small: Callable[[int], None], tmp_path: Path) -> None:
        small(8)
        stream = Request(0.0, 0.0).stream(write(tmp_path, columns(20), 5))
        first = {numbers(epoch(stream, torch.Generator().manual_seed(seed)))[0] for seed in range(200)}
        assert first == set(range(20))

    def test_the_global_generator_is_left_alone(self, path: Path) -> None:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        epoch(Request().stream(path))
        assert torch.equal(torch.get_rng_state(), before)


class TestWhatIsKnownOfTheRows:
    @pytest.mark.parametrize("missing", ["error", "drop", "mean"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_profile_is_numpys_of_the_training_rows(
        self, missing: str, dtype: torch.dtype, small: Callable[[int], None], tmp_path: Path
    ) -> None:
        small(64)
        values = columns(missing=0.0 if missing == "error" else 0.2)
        values["noise"] += 1e4  # a sum of squares would lose its digits here
        path = write(tmp_path, values)
        request = Request(missing=missing, dtype=dtype)
        data = request.in_memory(path)
        for profile, rows in zip(request.stream(path).profile, (data.x, data.y), strict=True):
            there = rows.double().numpy()
            assert profile.count.tolist() == np.isfinite(there).sum(axis=0).tolist()
            assert profile.low.tolist() == np.nanmin(there, axis=0).tolist()
            assert profile.high.tolist() == np.nanmax(there, axis=0).tolist()
            assert profile.mean == pytest.approx(np.nanmean(there, axis=0), rel=1e-14)
            assert profile.deviation == pytest.approx(np.nanstd(there, axis=0), rel=1e-12)

    def test_samples_are_rows_of_their_part_evenly_spread(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "SAMPLE_ROWS", 30)
        data = Request().in_memory(path)
        for part, (x, y) in Request().stream(path).samples.items():
            own = sorted(numbers(data.at_hand[part][0]))
            assert len(x) == 30
            assert numbers(x) == [own[int(place)] for place in np.linspace(0, len(own) - 1, 30)]
            assert torch.equal(y[:, 0], 2 * x[:, 1] + 0.5)

    def test_samples_of_small_parts_are_the_parts(self, path: Path) -> None:
        data, stream = Request().in_memory(path), Request().stream(path)
        for part, (x, _) in data.at_hand.items():
            assert numbers(stream.samples[part][0]) == sorted(numbers(x))

    def test_csv_and_parquet_give_the_same(self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tables, "_CSV_BLOCK", 2048)
        one, other = Request().stream(path), Request().stream(write(tmp_path, columns(), name="rows.csv"))
        assert np.array_equal(one.parts, other.parts)
        for part in PARTS:
            assert all(map(torch.equal, one.samples[part], other.samples[part]))
        assert sorted(map(tuple, epoch(one).tolist())) == sorted(map(tuple, epoch(other).tolist()))
        for mine, its in zip(one.profile, other.profile, strict=True):
            assert mine.mean == pytest.approx(its.mean, rel=1e-14)
            assert mine.deviation == pytest.approx(its.deviation, rel=1e-12)

    def test_the_hash_is_of_the_file_and_of_the_columns(self, path: Path, tmp_path: Path) -> None:
        named = b"noise\0number\0y"
        assert Request().stream(path).sha256 == hashlib.sha256(named + path.read_bytes()).hexdigest()
        other = Request(features=("number", "noise")).stream(path)
        assert other.sha256 == hashlib.sha256(b"number\0noise\0y" + path.read_bytes()).hexdigest()

    def test_counts_are_those_of_the_whole_and_not_of_the_samples(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streams, "SAMPLE_ROWS", 10)
        data = Request().streamed(path)
        assert (data.rows, data.count) == (ROWS, {TRAINING: 700, VALIDATION: 100, HELD_OUT: 200})
        assert {len(rows) for at_hand in data.at_hand.values() for rows in at_hand} == {10}
        assert data.judged_on == HELD_OUT


class TestFaults:
    """What is refused in memory is refused here, in the same words."""

    def edited(self, folder: Path, edit: Callable[[dict[str, np.ndarray]], Any], kind: str) -> Path:
        values = columns()
        edit(values)
        return write(folder, values, name=f"rows.{kind}")

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    @pytest.mark.parametrize("missing", ["error", "drop", "mean"])
    @pytest.mark.parametrize(
        "edit",
        [
            lambda values: values["noise"].__setitem__(slice(900, 903), np.inf),
            lambda values: values["y"].__setitem__(slice(900, 903), np.nan),
            lambda values: values["noise"].__setitem__(slice(None), np.nan),
            lambda values: values["noise"].__setitem__(slice(None), 7.0),
            lambda values: values["y"].__setitem__(slice(None), 7.0),
        ],
        ids=["infinite", "no target", "no feature", "constant", "constant target"],
    )
    def test_they_are_those_of_the_rows_in_memory(
        self, kind: str, missing: str, edit: Callable[[dict[str, np.ndarray]], Any], tmp_path: Path
    ) -> None:
        path, request = self.edited(tmp_path, edit, kind), Request(missing=missing)
        said = []
        for read in (request.in_memory, request.stream):
            try:
                read(path)
            except RequestError as refusal:
                said.append(str(refusal))
            else:
                said.append("nothing")
        assert said[0] == said[1]
        assert path.name in said[0] or missing == "drop"

    def test_a_value_beyond_float32_is_told_with_what_to_do(self, tmp_path: Path) -> None:
        path = self.edited(tmp_path, lambda values: values["noise"].__setitem__(5, 1e39), "parquet")
        with pytest.raises(RequestError, match=r"not finite: noise 1 of 1000 rows, first in row 6; .*--dtype float64"):
            Request(dtype=torch.float32).stream(path)
        assert Request().stream(path).profile[0].high[0] == 1e39

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_a_file_without_rows(self, kind: str, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"has no rows; at least two are needed|has 0 row"):
            Request().stream(write(tmp_path, columns(0), name=f"rows.{kind}"))

    def test_a_file_that_is_cut_short_while_it_is_used(self, small: Callable[[int], None], path: Path) -> None:
        """One line, and not a traceback from within a thread."""
        small(100)
        stream = Request().stream(path)
        content = path.read_bytes()
        path.write_bytes(content[:200] + bytes(len(content) // 2))
        with pytest.raises(RequestError, match=r"rows\.parquet cannot be read: "):
            epoch(stream)
        with pytest.raises(RequestError, match=r"rows\.parquet cannot be read: "):
            list(stream.chunks())

    def test_a_temporary_folder_without_room_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path, columns(), name="rows.csv")

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pq.ParquetWriter, "write_batch", full)
        with pytest.raises(RequestError, match=r"rows\.csv cannot be copied to .*No space left.*TMPDIR"):
            Request().stream(path)


class TestWhatIsLeftBehind:
    @pytest.fixture
    def temporary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "temporary"
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        return folder

    @pytest.mark.parametrize("kind", ["csv", "one huge group"])
    def test_the_copy_goes_with_the_stream(
        self, kind: str, small: Callable[[int], None], temporary: Path, tmp_path: Path
    ) -> None:
        small(100)
        name = "rows.csv" if kind == "csv" else "rows.parquet"
        stream = Request().stream(write(tmp_path, columns(), ROWS, name))
        assert len(list(temporary.iterdir())) == 1
        next(iter(stream.shuffled(torch.Generator())))
        del stream
        gc.collect()
        assert list(temporary.iterdir()) == []

    def test_a_file_of_groups_is_not_copied(self, temporary: Path, path: Path) -> None:
        stream = Request().stream(path)
        assert list(temporary.iterdir()) == []
        assert stream.file.path == path

    def test_a_refused_file_leaves_no_copy(self, temporary: Path, tmp_path: Path) -> None:
        path = write(tmp_path, columns(missing=0.1), name="rows.csv")
        with pytest.raises(RequestError, match="missing values: noise"):
            Request().stream(path)
        gc.collect()
        assert list(temporary.iterdir()) == []

    def test_an_epoch_that_is_left_half_way_ends_its_thread(
        self, small: Callable[[int], None], path: Path, threads_end: Callable[[], bool]
    ) -> None:
        small(50)
        stream = Request().stream(path)
        for rows in (stream.shuffled(torch.Generator()), stream.chunks()):
            next(iter(rows))
            rows.close()  # type: ignore[attr-defined]
        assert threads_end()


MEASURE = """
import sys
import torch
from pathlib import Path
from fourfold import streams, tables
from fourfold.tables import choose_columns, open_table

def now():  # of this program alone: ru_maxrss begins with that of whoever started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) * 1024

streams.POOL = 16 * 2**20
streams.CHUNK_ROWS = tables.CHUNK_ROWS = 8192
path = Path(sys.argv[1])
file = open_table(path)
torch.randperm(10)
before = now()
stream = streams.open_stream(
    file, *choose_columns(file, ("c0",)), missing="error", test_fraction=0.2, validation_fraction=0.1, seed=0,
    dtype=torch.float32,
)
for _ in range(2):
    rows = sum(len(x) for x, _ in stream.shuffled(torch.Generator()))
assert rows == stream.count("training")
print(now() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux keeps it")
@pytest.mark.parametrize("group", [50_000, 10**9], ids=["groups", "one huge group"])
def test_a_stream_never_holds_its_file(group: int, tmp_path: Path) -> None:
    """300 MB of 40 columns, read four times through, in less than three quarters of it."""
    rows, width = 1_900_000, 40
    path = tmp_path / "large.parquet"
    column = np.random.default_rng(0).normal(size=rows).astype(np.float32)
    table = pa.table({f"c{number}": np.roll(column, number) for number in range(width)})
    pq.write_table(table, path, row_group_size=group, compression="none", use_dictionary=False)
    size = path.stat().st_size
    assert size > 300e6
    # What glibc keeps for each thread, whatever the file, comes and goes by 100 MB.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parents[2], env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 0.75 * size, int(done.stdout) / size
