"""The house is as docs/architecture.md and docs/decisions/dependencies.md say."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import ClassVar

from workplaces import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
REASONS = (ROOT / "docs" / "decisions" / "dependencies.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = ("flows", "tasks", "models", "fourfold")
BESIDE = ("tests", "benchmarks", "docs")


def between(name: str) -> str:
    (text,) = re.findall(rf"<!-- {name}:.*?-->\n(.*?)\n<!-- end of {name} -->", PAGE, flags=re.DOTALL)
    return text


def rows(table: str) -> list[list[str]]:
    """The cells of each row of Markdown's tables, headers and rules left out."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rules = [number for number, line in enumerate(lines) if line.startswith("|--")]
    apart = {*rules, *(number - 1 for number in rules)}
    return [[cell.strip() for cell in line.strip("|").split("|")] for n, line in enumerate(lines) if n not in apart]


class TestFiles:
    def listed(self) -> list[str]:
        files = []
        for table in between("files").split("\n\n"):
            (room,) = re.findall(r"^\| (\w+)/ \|", table)
            files += [f"{room}/{name.strip('`')}" for name, _ in rows(table)]
        return files

    def test_every_file_of_the_rooms_is_listed_once_and_no_other(self) -> None:
        there = {f"{room}/{path.name}" for room in ROOMS for path in (ROOT / room).glob("*.py")}
        assert sorted(self.listed()) == sorted(name for name in there if not name.endswith("__init__.py"))

    def test_the_rooms_have_no_folders_that_the_page_could_miss(self) -> None:
        assert [path for room in ROOMS for path in (ROOT / room).glob("*/**/*.py")] == []

    def test_every_file_has_a_purpose_that_no_other_has(self) -> None:
        purposes = [purpose for _, purpose in rows(between("files"))]
        assert all(purposes)
        assert len(purposes) == len(set(purposes))


class TestChanges:
    def test_ten_are_shown_and_the_files_that_they_take_exist(self) -> None:
        """What has a folder in front is a file or a folder."""
        changes = between("changes")
        assert len(re.findall(r"^\| \*\*", changes, flags=re.MULTILINE)) == 10
        named = re.findall(r"`([\w/.]+(?:\.\w+|/))`", changes)
        paths = [name for name in named if "/" in name or name.endswith(".yaml")]
        assert len(paths) > 20
        assert [name for name in paths if not (ROOT / name).exists()] == []

    def test_the_names_in_the_code_that_it_tells_of_are_there(self) -> None:
        """`LOSSES` in `fourfold/losses.py` is a name of that file."""
        pairs = re.findall(r"`([\w.]+)` (?:and `([\w.]+)` )?(?:in|of) `([\w/]+\.py)`", between("changes"))
        assert len(pairs) >= 6
        for *names, path in pairs:
            for name in filter(None, names):
                assert all(part in (ROOT / path).read_text() for part in name.split(".")), f"{name} in {path}"


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*, extras: bool = True) -> set[str]:
    """The packages that pyproject.toml names, without versions."""
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"].values() if extras else ())]
    names = (re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0] for group in groups for requirement in group)
    return {normal(name) for name in names} - {PROJECT["name"]}


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def imported(paths: Iterable[Path]) -> set[str]:
    """The modules that files import, also inside functions, but for the standard library's and our own."""
    found: set[str] = set()
    ours = {path.stem for path in files(*BESIDE)} | {*ROOMS, *BESIDE, "faults", "servers"}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - ours


def table(title: str) -> list[str]:
    """The packages of a table of reasons, in its order; each has a reason."""
    (text,) = re.findall(rf"^## {title}\n\n(.*?)(?:\n\n|\Z)", REASONS, flags=re.DOTALL | re.MULTILINE)
    cells = rows(text)
    assert all(reason for _, reason in cells)
    return [normal(name) for names, _ in cells for name in re.sub(r" \(.*?\)", "", names).split(", ")]


class TestDependencies:
    """Against what the files import, and which installed package each module belongs to."""

    owners: ClassVar = {
        module: {normal(one) for one in packages} for module, packages in packages_distributions().items()
    }

    def packages(self, paths: Iterable[Path]) -> set[str]:
        return set().union(*(self.owners.get(module, set()) for module in imported(paths)))

    def test_every_package_that_is_declared_has_one_line_that_says_why(self) -> None:
        assert sorted(table("Imported") + table("Needed, and not imported")) == sorted(declared())

    def test_those_that_are_said_to_be_imported_are(self) -> None:
        """By the rooms; those of an extra, by the tests at least."""
        always, everywhere = declared(extras=False), self.packages(files(*ROOMS, *BESIDE))
        used = always & self.packages(files(*ROOMS)) | (declared() - always) & everywhere
        assert set(table("Imported")) == used

    def test_what_the_rooms_import_is_declared(self) -> None:
        modules = imported(files(*ROOMS))
        assert len(modules) > 20
        assert {module for module in modules if not self.owners.get(module, set()) & declared()} == set()

    def test_what_is_imported_beside_the_rooms_is_declared(self) -> None:
        modules = imported(files(*BESIDE))
        assert len(modules) > 20
        assert {module for module in modules if not self.owners.get(module, set()) & declared()} == set()

    def test_what_an_extra_brings_is_imported_in_one_file_alone(self) -> None:
        of_extras = declared() - declared(extras=False)
        users = [path for path in files(*ROOMS) if of_extras & self.packages([path])]
        assert users == [ROOT / "tasks" / "workers_dask.py"]
