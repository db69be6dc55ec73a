"""Options of trainings: their values are checked, and a command has one for each field."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from aim_mlx.cli.options import options_of
from aim_mlx.errors import UsageError
from aim_mlx.lit_training.config import TrainConfig
from aim_mlx.probe.config import ProbeConfig
from aim_mlx.training.options import check_options, option


@dataclass(frozen=True)
class Config:
    kind: str = option("one", "Which.", among=("one", "two"))
    count: int = option(3, "How many.", 1, 10)
    rate: float = option(0.5, "How fast.", 0)
    rates: tuple[float, ...] = option((0.1,), "Each tried.", 0, 1)
    norm: tuple[bool, ...] = option((True,), "off or on.")
    limit: int | None = option(None, "At most.", 1)
    quick: bool = option(False, "Be quick.")
    flip: bool = option(True, "Mirror.")

    def __post_init__(self):
        check_options(self)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "three"}, "kind must be one of one, two, got 'three'"),
        ({"count": 0}, "count must be a whole number from 1 to 10, got 0"),
        ({"count": 2.0}, "count must be a whole number"),
        ({"count": True}, "count must be a whole number"),
        ({"count": [3]}, "count must be a whole number"),
        ({"rate": math.nan}, "rate must be from 0 to inf, got nan"),
        ({"rate": math.inf}, "rate must be from 0 to inf, got inf"),
        ({"rates": 0.1}, r"rates must be a list, such as .0\.1., got no list"),
        ({"rates": [0.1, 2]}, "rates must be from 0 to 1, got 2"),
        ({"limit": 0}, "limit must be a whole number from 1 to inf, got 0"),
        ({"quick": 1}, "quick must be true or false, got 1"),
    ],
)
def test_values_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        Config(**wrong)


def test_lists_become_tuples():
    assert Config(rates=[0, 0.2]).rates == (0, 0.2)  # pyright: ignore[reportArgumentType]


def given(defaults: bool, *arguments: str) -> dict[str, Any]:
    """What a command takes from its arguments."""
    taken: dict[str, Any] = {}

    @options_of(Config, defaults)
    def command(**options: Any) -> int:
        taken.update(options)
        return 0

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return taken


def test_a_command_has_an_option_for_each_field():
    assert Config(**given(True)) == Config()
    arguments = "--kind two --count 4 --rate 1 --rates 0.1,0.2 --norm both --limit 7 --quick"
    found = Config(**given(True, *arguments.split(), "--no-flip"))
    assert found == Config("two", 4, 1.0, (0.1, 0.2), (False, True), 7, True, False)
    with pytest.raises(UsageError, match="--rates must be numbers such as"):
        given(True, "--rates", "a,b")
    with pytest.raises(UsageError, match="--norm must be off, on or both, got 'maybe'"):
        given(True, "--norm", "maybe")


def test_without_defaults_what_is_not_given_is_none():
    assert given(False, "--count", "4") == {
        **dict.fromkeys(asdict(Config())),
        "count": 4,
        "quick": False,
        "flip": True,
    }


@pytest.mark.parametrize("config", [ProbeConfig, TrainConfig])
def test_every_option_of_a_training_says_what_it_does(config):
    assert all(each.metadata["help"].endswith(".") for each in fields(config))
