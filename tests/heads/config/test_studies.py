"""Studies that ship: the commands in their comment exist, and all their networks can be built."""

from dataclasses import replace
from functools import cache
from importlib import import_module

import click
import pytest

from cli._shared.extraction import config_of
from heads.config.study_file import FOLDER, StudyPlan, read_study, study_names
from pipeline.stages.config import ExtractConfig, with_settings
from pipeline.views.sampling import Sampling
from tests.heads.config.test_recipe_rows import built, no_numbers
from tests.support.recipes_page import verb_of
from tests.support.toml_comments import commands_of, first_comment

assert no_numbers  # a fixture for the whole module: weights without memory are not drawn

# What no extraction of an option's name would fix otherwise.
NOTHING_STORED = {"keep": ("nodes",), "precision": "fp32", "dtype": "float32"}
# The demo makes its own cache (cli/demo.py).
DEMO = ExtractConfig(
    backbone="digit_cnn",
    backbone_options={"width": 64},
    sampling=Sampling(frames=8, size=64),
    proposal_options={"num_boxes": 6},
)


@cache
def plan_of(name: str) -> StudyPlan:
    return read_study(name)


def verb(words: list[str]) -> click.Command:
    return import_module(f"cli.{words[0]}").command


@pytest.mark.parametrize("name", study_names())
def test_a_study_that_ships_says_what_it_makes_and_how_it_is_trained(name):
    plan = plan_of(name)
    assert plan.name == name
    assert len(plan.source) > 10
    assert plan.ours
    # A grid that looks for one learning rate compares no means.
    assert len(plan.seeds) > 1 or name == "attentive_grid"
    commands = [" ".join(words) for words in commands_of(FOLDER / f"{name}.toml")]
    wanted = f"{verb_of(plan)} {name} "
    assert any(f"{command} ".startswith(wanted) for command in commands), (wanted, commands)
    assert first_comment(FOLDER / f"{name}.toml")[0][0] not in "-("


@pytest.mark.parametrize("name", study_names())
def test_the_commands_of_a_study_have_options_that_exist(name):
    for words in commands_of(FOLDER / f"{name}.toml"):
        command, rest = verb(words), words[1:]
        if isinstance(command, click.Group):
            command, rest = command.commands[rest[0]], rest[1:]
        parser = command.make_parser(click.Context(command))
        # Raises for an option that the command has not, and where a value is missing.
        _, arguments, _ = parser.parse_args(rest)
        wanted = [one for one in command.params if isinstance(one, click.Argument)]
        assert len([one for one in arguments if one]) <= len(wanted), words


def extraction(plan: StudyPlan) -> ExtractConfig:
    """What the study's cache is made with, or what it is trained from."""
    if plan.name.startswith("demo"):
        return DEMO
    # The probe of any map: the encoder of its own command needs a network connection.
    if plan.name.startswith("attentive"):
        return replace(DEMO, keep=("conv3",))
    commands = commands_of(FOLDER / f"{plan.name}.toml")
    for words in commands:
        if words[0] == "extract":
            return config_of(verb(words).make_context("extract", words[1:]).params)
    (words,) = (words for words in commands if words[:2] == ["finetune", "--study"])
    return config_of({**verb(words).make_context("finetune", words[1:]).params, **NOTHING_STORED})


@pytest.mark.parametrize("name", study_names())
def test_the_networks_of_all_rows_are_built_in_the_sizes_of_the_commands(name):
    plan = plan_of(name)
    config = extraction(plan)
    for row in plan.rows:
        own = with_settings(config, row.extract)
        options = {key: one for key, one in own.backbone_options.items() if key != "fresh"}
        built(row.recipe, replace(own, backbone_options=options))
