"""Whose something is: which process made it, and whether that process is gone. Light to import."""

import hashlib
import math
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

TEMPORARY = "fourfold-"
# The kernel counts from boot in hundredths, and psutil adds and takes away the boot time in whole seconds.
SECONDS_OF_TOLERANCE = 2.0
_INITIAL_NAMESPACE = "pid:[4026531836]"  # fixed in Linux: the machine itself, and no container


@dataclass(frozen=True)
class ProcessIdentity:
    """One process among all that ever were.

    Attributes:
        namespace: stands for the host and the set of processes on it that can be seen: two containers may share a
            host's name, or a process id.
        pid: its id there.
        begun: seconds from boot to its start, which tell it from a later process of the same id. Not the time of
            day, which somebody may set.
    """

    namespace: str
    pid: int
    begun: float

    @classmethod
    def own(cls) -> "ProcessIdentity":
        """That of this process."""
        return cls(_namespace(), os.getpid(), _begun(psutil.Process()))

    @property
    def spelled(self) -> str:
        """In one word of letters, digits and hyphens, for names of files and tags."""
        return f"{self.namespace}-{self.pid}-{self.begun:.0f}"

    @classmethod
    def read(cls, text: str) -> "ProcessIdentity | None":
        """What `spelled` gives; None for anything else."""
        match = re.fullmatch(r"([0-9a-f]{12})-([0-9]{1,10})-([0-9]{1,12})", text)
        return cls(match[1], int(match[2]), float(match[3])) if match else None

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> "ProcessIdentity | None":
        """The process that `process_tags` told of; None where a tag is missing or cannot be read."""
        try:
            begun = float(tags["process_started"]) - float(tags["process_booted"])
            pid = int(tags["process_id"])
            return cls(tags["process_namespace"], pid, begun) if math.isfinite(begun) else None
        except (KeyError, ValueError):
            return None

    def is_gone(self) -> bool:
        """Whether it has ended for certain: of a process that cannot be seen from here nothing is certain."""
        if self.namespace != _namespace():
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            return abs(_begun(process) - self.begun) > SECONDS_OF_TOLERANCE
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, ValueError, OverflowError):
            return False


def process_tags() -> dict[str, str]:
    """Tell, as tags of what this process makes, whose that is; `ProcessIdentity.of_tags` reads them."""
    booted = psutil.boot_time()  # before the start: psutil adds the one that it read last
    return {
        "host": socket.gethostname(),
        "process_namespace": _namespace(),
        "process_id": str(os.getpid()),
        "process_started": str(psutil.Process().create_time()),
        "process_booted": str(booted),
    }


def temporary_folder() -> Path:
    """A new folder for temporary files, whose name says whose it is."""
    return Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{ProcessIdentity.own().spelled}-"))


def remove_left_folders() -> list[Path]:
    """Remove the temporary folders that this user's processes left because they were killed; gives those removed."""
    removed = []
    for name, folder in _names(Path(tempfile.gettempdir())):
        owner = ProcessIdentity.read(name.removeprefix(TEMPORARY).rpartition("-")[0])
        if name.startswith(TEMPORARY) and owner and _is_own_folder(folder) and owner.is_gone():
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def part_of(path: Path) -> Path:
    """A name under which this process writes a file until it is whole: beside it, hidden, and never foreseen.

    Else somebody could put a link there, and have us write where it leads.
    """
    return path.with_name(f"{_of(path)}{ProcessIdentity.own().spelled}-{secrets.token_hex(8)}.part")


def remove_left_parts(path: Path) -> None:
    """Remove what processes that were killed left of that file."""
    for name, part in _names(path.parent):
        if name.startswith(_of(path)) and name.endswith(".part"):
            owner = ProcessIdentity.read(name.removeprefix(_of(path)).rpartition("-")[0])
            if owner and owner.is_gone():
                remove_part(part)


def remove_part(part: Path) -> None:
    """Remove a file that was not finished, and the journal of one that is a SQLite database."""
    part.with_name(f"{part.name}-journal").unlink(missing_ok=True)
    part.unlink(missing_ok=True)


def _of(path: Path) -> str:
    """Stands for a file's name, which may be as long as a name can be already."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}."


def _names(folder: Path) -> Iterator[tuple[str, Path]]:
    try:
        for name in os.listdir(folder):  # noqa: PTH208 - a temporary folder may hold very many
            yield name, folder / name
    except OSError:
        return


def _is_own_folder(path: Path) -> bool:
    """Whether it is a folder of this user's, and no link to one."""
    try:
        return path.is_dir() and not path.is_symlink() and path.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _begun(process: psutil.Process) -> float:
    booted = psutil.boot_time()  # first: psutil adds the one that it read last
    return float(process.create_time() - booted)


@cache
def _namespace() -> str:
    """Twelve digits that stand for this host and its processes.

    A machine's own id outlives a boot. That of a container may be its image's, on many machines: there the boot's.
    """
    processes = _text("/proc/self/ns/pid", link=True)
    machine = _text("/etc/machine-id" if processes == _INITIAL_NAMESPACE else "/proc/sys/kernel/random/boot_id")
    return hashlib.sha256("\n".join((socket.gethostname(), machine, processes)).encode()).hexdigest()[:12]


def _text(path: str, *, link: bool = False) -> str:
    """What stands in a file, or where a link leads; nothing on systems without it."""
    try:
        return str(Path(path).readlink()) if link else Path(path).read_text().strip()
    except OSError:
        return ""
