"""The finder of pickles finds every kind; that flows write none, tests/flows shows of each."""

import base64
import bz2
import gzip
import io
import json
import pickle
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pickles import pickles_in
from PIL import Image
from safetensors.numpy import save_file

THING = {"a": [1, 2.5, "text"], "b": np.arange(3)}


def in_a_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create table state (data text)")
        database.execute("insert into state values (?)", (json.dumps({"blob": coded(THING)}),))
    database.close()


def of_objects() -> bytes:
    packed = io.BytesIO()
    np.savez(packed, a=np.array([{}, "x"], dtype=object))
    return packed.getvalue()


def coded(value: Any) -> str:
    return base64.b64encode(cloudpickle.dumps(value)).decode()


WITH_PICKLES: dict[str, Callable[[Path], Any]] = {
    **{f"protocol {n}": lambda path, n=n: path.write_bytes(pickle.dumps(THING, protocol=n)) for n in range(6)},
    "cloudpickle": lambda path: path.write_bytes(cloudpickle.dumps(lambda: 1)),
    "joblib": lambda path: joblib.dump(THING, path),
    "joblib, packed": lambda path: joblib.dump(THING, path, compress=("zlib", 3)),
    "gzip": lambda path: path.write_bytes(gzip.compress(pickle.dumps(THING))),
    "bzip2": lambda path: path.write_bytes(bz2.compress(pickle.dumps(THING))),
    "torch": lambda path: torch.save({"w": torch.ones(3)}, path),
    "torch, old": lambda path: torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False),
    "numpy": lambda path: path.write_bytes(of_objects()),
    "JSON": lambda path: path.write_text(json.dumps({"type": "pickle", "blob": coded(THING)})),
    "a column": lambda path: pq.write_table(pa.table({"blob": [pickle.dumps(THING)]}), path, compression="zstd"),
    "a database": in_a_database,
    "somewhere in it": lambda path: path.write_bytes(b"header" * 9 + pickle.dumps(THING) + b"trailer"),
}


@pytest.mark.parametrize("write", WITH_PICKLES.values(), ids=WITH_PICKLES)
def test_a_pickle_is_found_wherever_it_is(write: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "innocent.json")
    assert pickles_in(tmp_path), "it is one"


def test_what_holds_none_is_passed_by(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    numbers = random.normal(size=(200, 300))
    save_file({"w": numbers}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", a=numbers, names=np.array(["x", "y"]))
    pq.write_table(pa.table({"a": numbers[0], "name": ["text"] * 300}), tmp_path / "a.parquet")
    Image.fromarray(random.integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, 2], "b": "gAMBLE" * 9}))
    met_by_chance = base64.b64encode(b"png" + pickle.dumps(THING, protocol=2)).decode()
    (tmp_path / "a.md").write_text(f"![a picture](data:image/png;base64,{met_by_chance})")
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "a.z").write_bytes(zlib.compress(numbers.tobytes()))
    (tmp_path / "empty").touch()
    assert pickles_in(tmp_path) == []


def test_the_drawing_process_takes_no_array_of_objects(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    np.savez(tmp_path / "drawn.npz", loss=np.array([Bomb()], dtype=object), loss_label=np.array("loss"))
    with pytest.raises(AttributeError):  # alive: only numpy's own wish for numbers fails, after the bang
        np.load(tmp_path / "drawn.npz", allow_pickle=True)["loss"].item().x  # noqa: B018
    (tmp_path / "exploded").unlink()
    command = [sys.executable, "-m", "tasks.draw", str(tmp_path / "drawn.npz"), str(tmp_path / "fit.png")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "allow_pickle=False" in ended.stderr
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "fit.png").exists()
