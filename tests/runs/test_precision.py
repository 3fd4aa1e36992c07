"""Computing in bfloat16: close to float32, with float32 weights, gradients and losses, and never taken for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz.backbones.precision import PRECISIONS, in_float32, require_precision
from fwviz.cli import main, recipe_from_arguments
from fwviz.pools.open import Pool, open_pool
from fwviz.runs.assemble import Assembly, assemble
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.types import FwvizError, LossName
from tests.tiny_classifier_pool import make_tiny_classifier_pool
from tests.tiny_words_pool import make_tiny_words_pool


def recipe(pool: Path, method: str = "fw_hard", **fields: Any) -> Recipe:
    return Recipe.from_dict({"pool": str(pool), "method": method, **fields}, open_pool(pool).card)


def both(pool: Path, **fields: Any) -> list[Assembly]:
    return [assemble(recipe(pool, precision=name, **fields)) for name in PRECISIONS]


@pytest.fixture(scope="module", params=["images", "sentences", "roberta", "t5", "gpt2", "llama"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of each family."""
    if request.param == "images":
        return Path(request.getfixturevalue("tiny_pool_path"))
    if request.param == "sentences":
        return Path(request.getfixturevalue("tiny_text_pool_path"))
    folder = tmp_path_factory.mktemp("pools") / request.param
    if request.param == "roberta":
        return make_tiny_classifier_pool(folder)
    return make_tiny_words_pool(folder, request.param, "full", updates=1)


@pytest.mark.parametrize("loss", ["cross_entropy", "entropy"])
def test_losses_and_gradients_of_every_family_are_close_and_in_float32(family: Path, loss: LossName) -> None:
    card = open_pool(family).card
    # A number has no entropy; what is written has one, though it is of no class.
    tasks = [
        task.id for task in card.tasks if task.classes or loss == "cross_entropy" or task.metric != "pearson_spearman"
    ]
    plain, half = both(family, tasks=tasks)
    theta = plain.problem.vectors.combine(
        torch.full((1, plain.problem.vectors.n), 0.3), plain.pool.layout.groups("model")
    )
    found: list[tuple[Tensor, Tensor]] = []
    for assembly in (plain, half):
        losses, gradient = assembly.problem.objective.gradient(theta, loss=loss)
        assert losses.dtype == gradient.dtype == torch.float32
        assert gradient.isfinite().all()
        torch.testing.assert_close(losses, assembly.problem.objective.losses(theta, loss=loss), rtol=0.02, atol=0.02)
        found.append((losses, gradient.clone()))
    (losses, slope), (rough, other) = found
    assert not torch.equal(slope, other), "nothing was computed in bfloat16"
    torch.testing.assert_close(losses, rough, rtol=0.03, atol=0.03)
    assert torch.cosine_similarity(slope, other, dim=0) > 0.98
    assert 0.9 < float(other.norm() / slope.norm()) < 1.1


def test_products_are_bfloat16_and_what_is_added_up_is_not(tiny_pool: Pool) -> None:
    model = tiny_pool.backbone()
    model.precision = torch.bfloat16
    seen: dict[str, torch.dtype] = {}

    def watch(names: Any, x: Tensor) -> None:
        seen.update(dict.fromkeys(names, x.dtype))

    inputs = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)[
        ..., : model.shape.image_size, : model.shape.image_size
    ]
    features = model.features([inputs], watch=watch)
    assert features.dtype == torch.float32
    assert {kind for name, kind in seen.items() if name.endswith(("fc2.weight", "out_proj.weight"))} == {torch.bfloat16}
    assert {kind for name, kind in seen.items() if name.endswith(("fc1.weight", "q_proj.weight"))} == {torch.float32}


def test_a_run_in_bfloat16_is_close_to_one_in_float32(tiny_pool_path: Path) -> None:
    traces = [
        execute(recipe(tiny_pool_path, settings={"max_steps": 2, "granularity": "model"}, precision=name))
        for name in PRECISIONS
    ]
    plain, half = traces
    assert {trace.status for trace in traces} <= {"converged", "max_steps"}
    assert half.device.endswith(" in bfloat16")
    assert not plain.device.endswith("bfloat16")
    for mine, theirs in zip(half.frames[:2], plain.frames[:2], strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=0.03)
        assert mine.loss != theirs.loss
    assert half.coefficients(-1).dtype == torch.float32
    for task, score in half.final["test"].items():
        assert score.accuracy == pytest.approx(plain.final["test"][task].accuracy, abs=0.1)


def test_final_scores_are_those_of_float32_at_the_same_weights(tiny_pool_path: Path) -> None:
    plain, half = both(tiny_pool_path)
    theta = tiny = plain.problem.vectors.base + plain.problem.vectors.vector(0)
    assert half.evaluator.full(theta) == plain.evaluator.full(tiny)
    quick = [assembly.evaluator.quick(theta) for assembly in (plain, half)]
    assert quick[0] != quick[1], "live scores take the speed"


def test_a_model_goes_back_to_its_precision_whatever_happens(tiny_pool: Pool) -> None:
    model = tiny_pool.backbone()
    model.precision = torch.bfloat16

    def fail() -> None:
        with in_float32(model):
            assert model.precision == torch.float32
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.precision == torch.bfloat16


def test_fisher_information_and_input_products_stay_in_float32(tiny_pool_path: Path) -> None:
    plain, half = both(tiny_pool_path)
    base = plain.problem.vectors.base
    task = plain.recipe.tasks[0]
    for name, gram in half.problem.objective.input_grams(base, task).items():
        exact = plain.problem.objective.input_grams(base, task)[name]
        assert gram.dtype == torch.float32
        assert (gram - exact).norm() < 0.03 * exact.norm(), "sums of bfloat16 would have lost their digits"
    fisher = half.problem.objective.squared_gradients(base, task)
    assert fisher.dtype == torch.float32
    exact = plain.problem.objective.squared_gradients(base, task)
    assert torch.cosine_similarity(fisher, exact, dim=0) > 0.95


def test_the_recipe_says_it_and_old_recipes_keep_their_fingerprints(tiny_pool_path: Path) -> None:
    plain = recipe(tiny_pool_path)
    half = replace(plain, precision="bfloat16")
    assert plain.fingerprint() != half.fingerprint()
    assert "precision" not in plain.to_dict()
    assert half.to_dict()["precision"] == "bfloat16"
    for one in (plain, half):
        assert (
            Recipe.from_dict(one.to_dict()) == Recipe.from_text(one.to_yaml()) == Recipe.from_text(one.to_json()) == one
        )
        assert recipe_from_arguments(one.cli_line().split()[2:]) == one
    linked = replace(half, pool="vision")
    assert "precision=bfloat16" in linked.to_url()
    assert Recipe.from_url(linked.to_url()) == linked
    with pytest.raises(FwvizError, match="'precision' is 'float16', but must be one of float32, bfloat16"):
        recipe(tiny_pool_path, precision="float16")


def test_the_command_line_takes_it(tiny_pool_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["merge", "--pool", str(tiny_pool_path), "--method", "weight_average", "--runs", str(tmp_path)]
    assert main([*words, "--precision", "bfloat16"]) == 0
    assert "--precision bfloat16" in capsys.readouterr().out
    assert main([*words, "--precision", "half"]) != 0
    assert "'precision' is 'half'" in capsys.readouterr().err


def test_a_device_that_cannot_is_refused_before_anything_is_read(
    tiny_pool_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert require_precision("bfloat16", torch.device("cpu")) == torch.bfloat16
    monkeypatch.setattr("fwviz.runs.assemble.require_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    asked = recipe(tiny_pool_path, device="cuda", precision="bfloat16")
    with pytest.raises(
        FwvizError, match=r"^cuda of this machine cannot compute in bfloat16: set precision to float32\.$"
    ):
        assemble(asked)
    failed = execute(asked)
    assert failed.status == "failed"
    assert failed.note.endswith("set precision to float32.")


def test_adapters_are_refused_where_there_is_no_float64(tiny_text_pool: Pool) -> None:
    with pytest.raises(FwvizError, match=r"^adapters are added up in float64, which mps does not have"):
        tiny_text_pool.task_vectors(tiny_text_pool.checkpoint_ids, device="mps")


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.",
            "set device to cpu",
        ),
        ("unsupported operand type(s) for +: 'int' and 'str'", None),
    ],
)
def test_what_apples_devices_lack_is_said(
    tiny_pool_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, note: str | None
) -> None:
    """torch's own words for it; any other mistake of types goes on."""

    def fail(*_: object, **__: object) -> None:
        raise TypeError(words)

    monkeypatch.setattr("fwviz.tasks.objectives.LabelledObjective.gradient", fail)
    asked = recipe(tiny_pool_path)
    if note is None:
        with pytest.raises(TypeError):
            execute(asked)
    else:
        failed = execute(asked)
        assert failed.status == "failed"
        assert note in failed.note


def test_a_device_without_bfloat16_says_so_by_itself() -> None:
    """A device torch was built without raises, as an Apple machine of before macOS 14 does."""
    if torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(FwvizError, match="mps of this machine cannot compute in bfloat16"):
        require_precision("bfloat16", torch.device("mps"))
    assert require_precision("float32", torch.device("mps")) == torch.float32
