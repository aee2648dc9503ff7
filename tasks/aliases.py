"""Who is champion of a registered model, and how that changes: by one run at a time. Needs no torch."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tasks import services
from tasks.steps import step
from tasks.tracking import RunRecord
from tasks.waiting import SECONDS_OF_SILENCE, told_after

NOT_THERE = "RESOURCE_DOES_NOT_EXIST"  # as MLflow spells it
CHAMPION, CHALLENGER = "champion", "challenger"
MOST_TRIES = 5
UNDECIDED = "undecided"  # a tag of a version on a server, from its making until its alias is set
SECONDS_FOR_ANOTHER, SECONDS_BETWEEN_LOOKS = 60.0, 0.2


@dataclass(frozen=True)
class Ruling:
    """What a version is to be, and why.

    Attributes:
        decision: the reason, in one sentence.
        tags: the numbers behind it, for the version.
    """

    alias: str
    decision: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Promotion:
    """A version that a person made champion.

    Attributes:
        name: of the registered model.
        former: the version that was champion before, None where there was none.
        version: the one that is champion now.
        time: of the change, ISO 8601 in UTC; None where it was champion already.
    """

    name: str
    former: str | None
    version: str
    time: str | None

    def as_json(self) -> dict[str, str | None]:
        """The same under the names of the machine-readable result."""
        return {"model": self.name, "from": self.former, "to": self.version, "time": self.time}

    def in_words(self) -> str:
        """From which version to which."""
        if self.time is None:
            return f"version {self.version} of {self.name}, which was champion already"
        before = f"version {self.former}, now {CHALLENGER}," if self.former else "no version"
        return f"from {before} to version {self.version} of {self.name}"


def champion_of(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version of a registered model that is champion now, None where none is."""
    # Asked for by the name's aliases first: of a missing alias MLflow speaks as of any other wrong request.
    if CHAMPION not in client.get_registered_model(name).aliases:
        return None
    return client.get_model_version_by_alias(name, CHAMPION)


def award(
    client: MlflowClient,
    name: str,
    version: str,
    judge: Callable[[ModelVersion | None], Ruling],
    tags: Mapping[str, str],
) -> Ruling:
    """Give a version the alias it deserves beside the present champion, and the tags that say why.

    Judging may take a while, so it begins before it is this version's turn, and is repeated then only where somebody
    else became champion meanwhile: of two runs, the second decides against the first one's result.

    On a server, people and runs that were given up keep to no turn. So the champion is read once more after the tags
    are written, just before the alias moves; the milliseconds between that reading and the move are not covered. Where
    it changed five times, the version becomes challenger.

    Args:
        client: of the store.
        name: of the registered model.
        version: to be judged.
        judge: makes the ruling from the champion, or from None where there is none.
        tags: for the version, besides the ruling's.
    """
    seen = champion_of(client, name)
    ruling = judge(seen)
    with _turn(client, name, version):
        for _ in range(MOST_TRIES):
            now = champion_of(client, name)
            if _number(now) != _number(seen):
                seen, ruling = now, judge(now)
            _tag(client, name, version, {**tags, **ruling.tags, "decision": ruling.decision})
            if _number(champion_of(client, name)) == _number(seen):
                break
        else:
            ruling = replace(
                ruling, alias=CHALLENGER, decision=f"the champion changed {MOST_TRIES} times while it was compared"
            )
            _tag(client, name, version, {"decision": ruling.decision})
        client.set_registered_model_alias(name, ruling.alias, version)
    return ruling


@step(name="promote")
def promote(name: str, version: str, record: RunRecord) -> Promotion:
    """Make a version champion, whatever it was judged to be, and the former champion challenger.

    Both versions and the run are tagged with the change, its time and the run's id, before the aliases move. On a
    server it waits for all that are being decided; a champion that a run names at the same moment all the same is
    replaced without becoming challenger, or replaces this one.
    """
    client = record.client
    with _turn(client, name):
        former = _number(champion_of(client, name))
        if former == version:
            promotion = Promotion(name, former, version, None)
        else:
            promotion = Promotion(name, former, version, datetime.now(UTC).isoformat(timespec="seconds"))
        record.tags({f"promotion.{key}": value for key, value in promotion.as_json().items()})
        if promotion.time is None:
            return promotion
        by = {"time": promotion.time, "run_id": record.run_id}
        _tag(client, name, version, _prefixed("promoted", {"from": former or "none", **by}))
        # The challenger first: where the second move fails, the same command does both once more.
        if former is not None:
            _tag(client, name, former, _prefixed("demoted", {"to": version, **by}))
            client.set_registered_model_alias(name, CHALLENGER, former)
        elif str(client.get_registered_model(name).aliases.get(CHALLENGER)) == version:
            client.delete_registered_model_alias(name, CHALLENGER)
        client.set_registered_model_alias(name, CHAMPION, version)
    return promotion


def undecided() -> dict[str, str]:
    """The tags of a version that is about to be made, for which later ones wait until it is awarded its alias."""
    return {} if services.sqlite_file(services.tracking_uri()) else {UNDECIDED: "yes"}


@contextmanager
def _turn(client: MlflowClient, name: str, version: str | None = None) -> Iterator[None]:
    """Let one run at a time decide who is champion.

    On a SQLite file a lock sees to that. A server has none, but it numbers the versions: each waits, on whichever
    machine, for those below it that are undecided and whose run is open. One that stays so, as its machine lost power,
    is given up after a minute, by all.

    Args:
        client: of the store.
        name: of the registered model.
        version: to be decided; None waits for all.
    """
    if not undecided():
        with services.store_lock("aliases"):
            yield
        return
    if version is not None:
        client.set_model_version_tag(name, version, UNDECIDED, "yes")  # a run that goes on may have been decided once
    limit = time.monotonic() + SECONDS_FOR_ANOTHER
    line = f"another run decides about {name}: waiting for it, {SECONDS_FOR_ANOTHER:g} s at most"
    with told_after(SECONDS_OF_SILENCE, line):
        while others := _being_decided(client, name, version):
            if time.monotonic() > limit:
                for other in others:
                    client.delete_model_version_tag(name, other, UNDECIDED)
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
    yield
    if version is not None:
        client.delete_model_version_tag(name, version, UNDECIDED)


def _being_decided(client: MlflowClient, name: str, below: str | None) -> list[str]:
    found = client.search_model_versions(f"name = '{name}' and tags.{UNDECIDED} = 'yes'")
    return [
        str(one.version)
        for one in found
        if (below is None or int(one.version) < int(below)) and _is_open(client, one.run_id)
    ]


def _is_open(client: MlflowClient, run_id: str | None) -> bool:
    try:
        return run_id is not None and client.get_run(run_id).info.status == "RUNNING"
    except MlflowException as error:
        if error.error_code != NOT_THERE:
            raise
        return False


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)


def _prefixed(prefix: str, tags: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{key}": value for key, value in tags.items()}


def _tag(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
