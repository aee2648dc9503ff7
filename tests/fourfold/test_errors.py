"""The tree of errors, which its module draws."""

import re

import pytest

from fourfold import errors
from fourfold.errors import FourfoldError

DRAWN = dict(re.findall(r"── (\w+) .* exit (\d)", errors.__doc__ or ""))
DEFINED = {error.__name__: error for error in FourfoldError.__subclasses__()}


def test_the_tree_draws_every_error() -> None:
    assert set(DRAWN) == set(DEFINED)


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_an_error_has_the_exit_code_that_the_tree_names(name: str) -> None:
    assert DEFINED[name].exit_code == int(DRAWN[name])


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_an_error_is_told_in_its_own_sentence(name: str) -> None:
    assert str(DEFINED[name]("it went wrong; do this")) == "it went wrong; do this"
