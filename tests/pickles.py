"""Find pickles in whatever a run has written, by their content: names say nothing."""

import base64
import bz2
import contextlib
import gzip
import io
import lzma
import pickletools
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

# Protocols 4 and 5 begin with a frame; shorter beginnings are met by chance in compressed data.
FRAMED = re.compile(rb"\x80[\x04\x05]\x95.{6}\x00\x00", re.DOTALL)
# What \x80\x02 to \x80\x05 begin with there; in the middle of a picture it is met by chance, once in 16,000 letters.
IN_BASE64 = re.compile(rb"(?<![A-Za-z0-9+/])gA[I-X][A-Za-z0-9+/\n]{6,}={0,2}")
PACKED = (gzip.decompress, zlib.decompress, bz2.decompress, lzma.decompress)


def pickles_in(folder: Path) -> list[str]:
    """The files below a folder that are or hold pickles, and where inside."""
    return [
        f"{path.relative_to(folder)}{inside}"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
        for inside in held(path.read_bytes(), path)
    ]


def held(content: bytes, path: Path | None = None) -> Iterator[str]:
    """Where in some bytes there are pickles; the empty place is all of them."""
    if is_pickle(content) or any(_runs_to_its_end(content[match.start() :]) for match in FRAMED.finditer(content)):
        yield ""
    for match in IN_BASE64.finditer(content):
        text = match[0].replace(b"\n", b"")
        if is_pickle(base64.b64decode(text.rstrip(b"=")[: len(text) // 4 * 4] + b"==")):
            yield " in base64"
    for unpack in PACKED if content else ():
        with contextlib.suppress(OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
            yield from (f" unpacked{inside}" for inside in held(unpack(content)))
    if content.startswith(b"\x93NUMPY"):
        try:
            np.load(io.BytesIO(content), allow_pickle=False)
        except ValueError:
            yield " (an array of objects)"
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            for name in packed.namelist():
                yield from (f"!{name}{inside}" for inside in held(packed.read(name)))
    if content.startswith(b"PAR1"):
        yield from _in_parquet(content)
    if content.startswith(b"SQLite format 3") and path:
        yield from _in_database(path)


def is_pickle(content: bytes) -> bool:
    """Whether some bytes are a pickle of any protocol, from the first to the last."""
    return len(content) > 1 and _runs_to_its_end(content, exactly=content[:1] != b"\x80")


def _runs_to_its_end(content: bytes, *, exactly: bool = False) -> bool:
    """Whether opcodes come up to the last, STOP, or to one that names code: joblib then puts raw arrays in between.

    The old protocols are text, which must have nothing behind its end.
    """
    with contextlib.suppress(Exception):  # what is no opcode, or lacks what the opcode needs
        for opcode, _, position in pickletools.genops(content):
            if opcode.name == "STOP":
                return not exactly or position == len(content) - 1
            if not exactly and opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                return True
    return False


def _in_parquet(content: bytes) -> Iterator[str]:
    table = pa.parquet.read_table(io.BytesIO(content))
    for key, value in (table.schema.metadata or {}).items():
        yield from (f"!{key.decode()}{inside}" for inside in held(value))
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type) or pa.types.is_string(column.type):
            for value in column.unique().to_pylist():
                found = held(value if isinstance(value, bytes) else (value or "").encode())
                yield from (f"!{name}{inside}" for inside in found)


def _in_database(path: Path) -> Iterator[str]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        database.text_factory = bytes
        for (table,) in database.execute("select name from sqlite_master where type = 'table'").fetchall():
            for row in database.execute(f'select * from "{table.decode()}"'):
                for value in row:
                    if isinstance(value, bytes):
                        yield from (f"!{table.decode()}{inside}" for inside in held(value))
