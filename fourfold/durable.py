"""Files that are there as a whole or not at all, whenever the process is killed or the power fails."""

import os
from pathlib import Path


def put_in_place(part: Path, path: Path) -> None:
    """Give a file that is written its name: it is there as a whole or not at all, also when the power fails."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        put_in_place(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
