"""Recipes: one parser, nothing but FwvizError out of it, and every way out leads back in."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shlex
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fwviz.cli import recipe_from_arguments
from fwviz.pools.card import load_card
from fwviz.runs.recipe import MAX_BYTES, Recipe, plain_from_text
from fwviz.types import FwvizError

PLAIN = {
    "pool": "vision",
    "checkpoints": ["mnist", "flags-20", "greek.2"],
    "tasks": ["mnist", "flags-20"],
    "method": "task_arithmetic",
    "settings": {"scale": 0.45},
    "seed": 7,
}

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,20}", fullmatch=True)  # what a card may call its parts
METHOD_AND_SETTINGS = st.one_of(
    st.tuples(st.just("weight_average"), st.just({})),
    st.tuples(
        st.just("task_arithmetic"),
        st.fixed_dictionaries({}, optional={"scale": st.floats(0, 2, allow_subnormal=False)}),
    ),
    st.tuples(
        st.just("fw_hard"),
        st.fixed_dictionaries(
            {},
            optional={
                "granularity": st.sampled_from(["model", "layer", "tensor"]),
                "max_steps": st.integers(1, 100),
                "epsilon": st.floats(0, 10),
                "task_scores": st.booleans(),
            },
        ),
    ),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    method, chosen = draw(METHOD_AND_SETTINGS)
    return Recipe.from_dict(
        {
            "pool": draw(IDS),
            "checkpoints": draw(st.lists(IDS, min_size=1, max_size=6, unique=True)),
            "tasks": draw(st.lists(IDS, min_size=1, max_size=6, unique=True)),
            "method": method,
            "settings": chosen,
            "seed": draw(st.integers(0, 2**31 - 1)),
            "device": draw(st.sampled_from(["cpu", "cuda", "cuda:3", "mps"])),
            **draw(st.sampled_from([{}, {"dtype": "bfloat16"}, {"dtype": "float16"}, {"storage": "streamed"}])),
        }
    )


# --- round trips --------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(recipes())
def test_every_way_out_leads_back_in(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_text(recipe.to_yaml()) == recipe
    assert Recipe.from_text(recipe.to_json()) == recipe
    assert Recipe.from_url(recipe.to_url()) == recipe
    assert Recipe.from_url("?" + recipe.to_url() + "&tab=merge&embed=1") == recipe


def test_cli_line_parses_back(tiny_pool_path: Any) -> None:
    for chosen in ({}, {"scale": 1e-7}, {"scale": 1.25}):
        recipe = Recipe.from_dict(
            {
                "pool": str(tiny_pool_path),
                "checkpoints": ["shape", "colour"],
                "tasks": ["shape"],
                "method": "task_arithmetic",
                "settings": chosen,
                "seed": 3,
                "storage": "streamed",
            }
        )
        words = shlex.split(recipe.cli_line())
        assert words[:2] == ["fwviz", "merge"]
        assert recipe_from_arguments(words[2:]) == recipe


def test_settings_are_completed_with_the_defaults() -> None:
    bare = Recipe.from_dict({**PLAIN, "settings": {}})
    explicit = Recipe.from_dict({**PLAIN, "settings": {"scale": 0.3}})
    assert bare.settings == {"scale": 0.3, "scale_search": "off", "scale_points": 10, "scale_most": 1.0}
    assert bare == explicit
    assert bare.fingerprint() == explicit.fingerprint()
    assert bare.changed_settings() == {}


def test_fingerprint_ignores_the_order_of_keys_but_nothing_else() -> None:
    recipe = Recipe.from_dict(PLAIN)
    for _ in range(5):
        items = list(PLAIN.items())
        random.shuffle(items)
        assert Recipe.from_dict(dict(items)).fingerprint() == recipe.fingerprint()
    others = [
        {**PLAIN, "seed": 8},
        {**PLAIN, "settings": {"scale": 0.450001}},
        {**PLAIN, "checkpoints": ["flags-20", "mnist", "greek.2"]},
        {**PLAIN, "storage": "streamed"},
    ]
    prints = {Recipe.from_dict(values).fingerprint() for values in others} | {recipe.fingerprint()}
    assert len(prints) == len(others) + 1


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pool": None}, "lacks the field 'pool'"),
        ({"pool": "a\nb"}, "'pool'"),
        ({"checkpoints": ["a", "b", "a"]}, "names 'a' twice"),
        ({"checkpoints": []}, "'checkpoints' has 0 ids"),
        ({"checkpoints": "mnist"}, "'checkpoints'"),
        ({"checkpoints": ["../x"]}, "'../x'"),
        ({"tasks": [1]}, "'tasks' holds 1"),
        ({"method": "none_such"}, "task_arithmetic"),
        ({"settings": {"scale": math.nan}}, "'scale' is nan"),
        ({"settings": {"scale": math.inf}}, "'scale' is inf"),
        ({"settings": {"scale": 30}}, "between 0 and"),
        ({"settings": {"scale": [0.3]}}, "'scale' is a list"),
        ({"settings": {"scale": 10**400}}, "'scale' is a huge number"),
        ({"settings": {"scal": 0.3}}, "unknown setting 'scal'"),
        ({"settings": [1]}, "'settings' is a list"),
        ({"seed": -1}, "'seed' is -1"),
        ({"seed": True}, "'seed' is True"),
        ({"seed": 2**31}, "'seed'"),
        ({"seed": math.nan}, "'seed' is nan"),
        ({"device": "tpu"}, "'device' is 'tpu'"),
        ({"device": "cuda:1\n"}, "'device'"),
        ({"dtype": "float64"}, "'dtype'"),
        ({"storage": "cloud"}, "'storage'"),
        ({"storage": "streamed", "dtype": "bfloat16"}, "'dtype' must be float32"),
        ({"colour": 1}, "no field 'colour'"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(FwvizError) as caught:
        Recipe.from_dict({**PLAIN, **change})
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert len(message) < 400


def test_ids_are_checked_against_the_pool_and_default_to_its_choice(tiny_pool_path: Any) -> None:
    card = load_card(tiny_pool_path)
    values: dict[str, Any] = {"pool": "tiny", "method": "weight_average"}
    recipe = Recipe.from_dict(values, card)
    assert recipe.checkpoints == card.default_checkpoints
    assert recipe.tasks == card.default_tasks
    with pytest.raises(FwvizError, match="no checkpoint 'nobody'"):
        Recipe.from_dict({**values, "checkpoints": ["colour", "nobody"]}, card)
    with pytest.raises(FwvizError, match="no task 'nothing'"):
        Recipe.from_dict({**values, "tasks": ["nothing"]}, card)
    with pytest.raises(FwvizError, match="lacks the field 'checkpoints'"):
        Recipe.from_dict(values)


# --- text that means harm -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]",
        "!!python/object/apply:os.system ['true']",
        "pool: a\npool: b",
        '{"pool": "a", "pool": "b"}',
        "[" * 3_000,
        "{" * 3_000,
        "seed: !!int ''",
        "seed: !!bool x",
        "seed: !!timestamp x",
        "seed: 2020-99-99",
        "seed: " + "9" * 5000,
        "? [a]\n: b",
        "\x00",
        "",
        "- a",
        "x" * (MAX_BYTES + 1),
    ],
)
def test_hostile_text_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(FwvizError) as caught:
        Recipe.from_text(text)
    assert len(str(caught.value)) < 400


def test_a_link_cannot_name_a_folder() -> None:
    link = Recipe.from_dict(PLAIN).to_url()
    assert Recipe.from_url(link).pool == "vision"
    for folder in ("/etc", "../vision", "%2Fetc", "."):
        with pytest.raises(FwvizError, match="by its id"):
            Recipe.from_url(link.replace("pool=vision", f"pool={folder}"))
    with pytest.raises(FwvizError, match="link"):
        Recipe.from_dict({**PLAIN, "pool": "/some/folder"}).to_url()


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.sampled_from(["task_arithmetic", "cpu", "vision", 10**400, "\ud800", "1e999"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(PLAIN)), ANYTHING, max_size=3), st.booleans())
def test_parsing_raises_nothing_but_fwviz_error(change: dict[str, Any], over: bool) -> None:
    values = {**PLAIN, **change} if over else change
    try:
        recipe = Recipe.from_dict(values)
    except FwvizError:
        return
    assert Recipe.from_text(recipe.to_yaml()) == recipe  # whatever gets through must be usable


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="{}[]:,-&*!?|>%@`'\"# \nabc019~", max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    for parse in (Recipe.from_text, Recipe.from_url, plain_from_text):
        try:
            parse(text)
        except FwvizError:
            continue


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["pool", "tasks", "seed", "set.scale", "checkpoints"]) | st.text(), st.text()))
def test_any_link_parses_or_is_refused(pairs: dict[str, str]) -> None:
    values = {"pool": "vision", "method": "task_arithmetic", "tasks": "a", "checkpoints": "b"}
    with contextlib.suppress(FwvizError):
        Recipe.from_url({**values, **pairs})


def test_yaml_is_plain_data_others_can_read() -> None:
    recipe = Recipe.from_dict(PLAIN)
    assert yaml.safe_load(recipe.to_yaml()) == json.loads(recipe.to_json())
