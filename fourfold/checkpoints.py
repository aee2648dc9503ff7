"""What a fit needs to go on where it was, kept on disk so that neither a cut off write nor a changed bit does harm.

A checkpoint is two files: `000012.safetensors`, and `000012.sha256`, the manifest, which names the other's hash as the
tool sha256sum writes it. Each is written under another name, flushed to the disk and renamed, the manifest last: a
checkpoint is whole when its manifest is there and true. The one before is kept beside the newest.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as as_bytes
from torch import Tensor

from fourfold.durable import write_whole
from fourfold.errors import CheckpointError, first_line

KEPT = 2
MOST_OF_THE_TIME = 0.02  # that saving may take
_PLAIN = (type(None), bool, int, float, str)
_REST = "rest"  # the tensor that holds, as JSON, everything but the tensors

State = dict[str, Any]


class CheckpointFolder:
    """The newest checkpoints of one fit.

    States are dictionaries of tensors, numbers, texts and what can be built from these; nothing is pickled.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint; those before the last one go when it is whole.

        Raises:
            CheckpointError: the state holds what cannot be kept.
            OSError: the disk is full, say; the checkpoints before are untouched.
        """
        tensors: dict[str, Tensor] = {}
        rest = json.dumps(_packed(state, tensors)).encode()
        tensors[_REST] = torch.frombuffer(bytearray(rest), dtype=torch.uint8)
        content = as_bytes(tensors)
        numbers = self._numbers()
        data, manifest = self._files(max(numbers, default=0) + 1)
        write_whole(data, content)
        write_whole(manifest, _manifest(content, data))
        for old in sorted(numbers)[: 1 - KEPT]:
            for file in reversed(self._files(old)):  # a checkpoint without a manifest is none
                file.unlink(missing_ok=True)

    def load(self) -> State | None:
        """Read the newest whole checkpoint; None where none was ever written.

        Raises:
            CheckpointError: there are checkpoints, and none is whole; says why.
        """
        faults = []
        for number in sorted(self._numbers(), reverse=True):
            data, manifest = self._files(number)
            try:
                return _read(data, manifest)
            except (OSError, ValueError, SafetensorError) as error:
                faults.append(f"{data.name}: {first_line(error)}")
        if faults:
            raise CheckpointError(f"no checkpoint in {self.path} is whole ({'; '.join(faults)})")
        return None

    def _numbers(self) -> set[int]:
        """Of every checkpoint of which anything is there."""
        names = (re.fullmatch(r"(\d{6,})\.(?:safetensors|sha256)", file.name) for file in self.path.iterdir())
        return {int(name[1]) for name in names if name}

    def _files(self, number: int) -> tuple[Path, Path]:
        data = self.path / f"{number:06}.safetensors"
        return data, data.with_suffix(".sha256")


class Keeper:
    """When a fit saves, and what it goes on from.

    The time between two checkpoints is at least fifty times what writing the last one took.

    Args:
        folder: for the checkpoints.
        every: seconds between two; infinite for none but the last.
        identity: what must be the same when the fit goes on: the hash of the data, say.
    """

    def __init__(self, folder: CheckpointFolder, every: float, identity: Mapping[str, str]) -> None:
        self.folder, self.every, self.identity = folder, every, dict(identity)
        self.stop: Callable[[], None] | None = None
        self._next = time.monotonic() + every

    def due(self) -> bool:
        """Whether to save now."""
        return self.stop is not None or time.monotonic() >= self._next

    def save(self, state: State) -> None:
        """Write a checkpoint; does not return where the fit was told to `stop`."""
        started = time.monotonic()
        self.folder.save({"identity": self.identity, "fit": state})
        ended = time.monotonic()
        self._next = ended + max(self.every, (ended - started) / MOST_OF_THE_TIME)
        if self.stop is not None:
            self.stop()

    def load(self) -> State | None:
        """Give the state to go on from, None to begin anew.

        Raises:
            CheckpointError: none is whole, or it belongs to another fit; says what differs.
        """
        kept = self.folder.load()
        if kept is None:
            return None
        for name, here in self.identity.items():
            if (before := kept["identity"].get(name)) != here:
                raise CheckpointError(
                    f"the checkpoint in {self.folder.path} was written with another {name}: {before}, not {here}; "
                    "from here on the fit would end elsewhere"
                )
        fit: State = kept["fit"]
        return fit


def _read(data: Path, manifest: Path) -> State:
    content = data.read_bytes()
    if manifest.read_bytes() != _manifest(content, data):
        raise ValueError("its bytes are not those that its manifest names")
    tensors = tensors_of(content)
    state: State = _unpacked(json.loads(tensors.pop(_REST).numpy().tobytes()), tensors)
    return state


def _manifest(content: bytes, data: Path) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {data.name}\n".encode()


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What JSON can say of a value; its tensors go into `tensors`, each under a number."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # shared memory is refused
        return {"tensor": name, "device": str(value.device)}
    if isinstance(value, Mapping):
        items = [[_packed(key, tensors), _packed(item, tensors)] for key, item in value.items()]
        return {"counter" if isinstance(value, Counter) else "items": items}
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_packed(item, tensors) for item in value]
    if isinstance(value, _PLAIN):
        return value
    raise CheckpointError(
        f"a {type(value).__name__} cannot be kept in a checkpoint; --checkpoint-seconds 0 trains without"
    )


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].to(value["device"])
    if "tuple" in value:
        return tuple(_unpacked(value["tuple"], tensors))
    ((kind, items),) = value.items()
    pairs = dict(_pairs(items, tensors))
    return Counter(pairs) if kind == "counter" else pairs


def _pairs(items: list[list[Any]], tensors: Mapping[str, Tensor]) -> Iterator[tuple[Any, Any]]:
    for key, item in items:
        yield _unpacked(key, tensors), _unpacked(item, tensors)
