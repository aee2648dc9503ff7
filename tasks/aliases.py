"""Who is champion of a registered model, and how that changes: by one run at a time. Needs no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from tasks import services
from tasks.steps import step
from tasks.tracking import RunRecord

CHAMPION, CHALLENGER = "champion", "challenger"
MOST_TRIES = 5


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

    Judging may take a while, so it begins before the lock is taken, and is repeated under it only where somebody else
    became champion meanwhile: of runs on one SQLite file, the second decides against the first one's result.

    A store that is a server offers no lock and no compare-and-set. There the champion is read once more after the tags
    are written, just before the alias moves. What is not promised, across hosts: that nobody moves it in the
    milliseconds between that reading and the move. Where it changed five times, the version becomes challenger.

    Args:
        client: of the store.
        name: of the registered model.
        version: to be judged.
        judge: makes the ruling from the champion, or from None where there is none.
        tags: for the version, besides the ruling's.
    """
    seen = champion_of(client, name)
    ruling = judge(seen)
    with services.store_lock("aliases"):
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

    Both versions and the run are tagged with the change, its time and the run's id, before the aliases move. The
    lock is the one of `award`, with what is not promised there: on a server, a champion that another run names at
    the same moment is replaced without becoming challenger.
    """
    client = record.client
    with services.store_lock("aliases"):
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


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)


def _prefixed(prefix: str, tags: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{key}": value for key, value in tags.items()}


def _tag(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
