"""Models that answer in words: what transformers computes, how answers are cut into tokens, and everything refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fwviz.backbones._words import TokeniseWords
from fwviz.pools.open import Pool, open_pool
from fwviz.runs.assemble import Assembly, assemble
from fwviz.runs.export import export_weights
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.tasks import metrics
from fwviz.tasks.batches import Chunk
from fwviz.tasks.data import load_split
from fwviz.tasks.sandbox import can_cut_off
from fwviz.types import FwvizError, Probe
from tests.tiny_words_pool import CLASSES, auto_class, loss_of, make_tiny_words_pool, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and peft, about themselves

TASKS = list(CLASSES)


@pytest.fixture(scope="module", params=["t5", "gpt2", "llama"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_words_pool(tmp_path_factory.mktemp("words") / request.param, request.param, "full", updates=1)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_words_pool(tmp_path_factory.mktemp("words") / "causal", "gpt2", "full", updates=2)


def assembled(root: Path, **values: Any) -> Assembly:
    given = {"pool": str(root), "method": "weight_average", "tasks": TASKS, "checkpoints": TASKS}
    return assemble(Recipe.from_dict(given | values))


def original(root: Path, folder: str = "base") -> Any:
    return auto_class(root.name).from_pretrained(root / folder).eval()


def table_of(root: Path, task: str, split: str) -> tuple[list[str], list[str]]:
    table = pq.read_table(root / "tasks" / task / f"{split}.parquet").to_pydict()
    classes = CLASSES[task]
    return table["text"], [classes[label] for label in table["label"]] if classes else table["answer"]


def changed(root: Path, target: Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    """A copy of a pool whose card is changed; hashes are written anew."""
    copy = Path(shutil.copytree(root, target))
    card = yaml.safe_load((copy / "pool.yaml").read_text())
    if change is not None:
        change(card)
    base = copy / "base"
    weights = base / "model.safetensors"
    index = weights if weights.exists() else base / "model.safetensors.index.json"
    card["base"]["sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
    for checkpoint in card["checkpoints"]:
        file = copy / checkpoint["path"] / "model.safetensors"
        checkpoint["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    for task in card["tasks"]:
        for split in task["splits"].values():
            split["sha256"] = hashlib.sha256((copy / split["path"]).read_bytes()).hexdigest()
    (copy / "pool.yaml").write_text(yaml.safe_dump(card))
    return copy


# --- what the library computes ------------------------------------------------------------------


def test_loss_and_gradient_are_those_of_the_library(root: Path, tmp_path: Path) -> None:
    """At merged weights, sample by sample and without padding there; tied embeddings gather all their slopes."""
    assembly = assembled(root)
    problem, layout = assembly.problem, assembly.pool.layout
    theta = problem.vectors.combine(torch.full((1, 3), 0.5), problem.groups("model"))
    losses, gradient = problem.objective.gradient(theta)
    model, words = original(root), write_tokenizer(tmp_path)
    with torch.no_grad():
        for name in layout.names:
            model.get_parameter(name).copy_(layout.view(theta, name))
    parts = [loss_of(model, root.name, words, *table_of(root, task, "calibration")) for task in TASKS]
    torch.stack(parts).mean().backward()
    torch.testing.assert_close(losses, torch.stack(parts).detach(), atol=1e-5, rtol=1e-5)
    for name in layout.names:
        slope = model.get_parameter(name).grad
        torch.testing.assert_close(layout.view(gradient, name), slope, atol=1e-5, rtol=1e-3, msg=name)
    assert not isinstance(problem.objective, Probe)


def test_cutting_into_passes_changes_nothing(root: Path) -> None:
    """Padding to other lengths and other neighbours move a loss by rounding only."""
    assembly = assembled(root)
    objective: Any = assembly.problem.objective
    whole = objective.losses(assembly.pool.base)
    objective._chunk = Chunk(3)
    torch.testing.assert_close(objective.losses(assembly.pool.base), whole, atol=1e-6, rtol=1e-5)


def test_all_answers_at_once_are_each_answer_alone(root: Path) -> None:
    pool = open_pool(root)
    model: Any = pool.model()
    inputs = load_split(pool.card, pool.card.task("mood"), "test").inputs
    with torch.no_grad():
        both, counts = model.log_probs(inputs)
        for c in range(2):
            alone, own = model.log_probs(inputs, torch.full((len(inputs),), c))
            torch.testing.assert_close(alone[:, 0], both[:, c, : alone.shape[2]], atol=1e-5, rtol=1e-5)
            assert torch.equal(own[:, 0], counts[:, c])


def test_what_is_written_is_what_the_library_writes(root: Path, tmp_path: Path) -> None:
    pool, model, words = open_pool(root), original(root, "checkpoints/repeat"), write_tokenizer(tmp_path)
    own: Any = pool.model()
    own.flat.load(pool.base + pool.task_vectors(["repeat"]).vector(0))
    data = load_split(pool.card, pool.card.task("repeat"), "test")
    named = {index: word for word, index in words.items()}
    for prompt, found in zip(table_of(root, "repeat", "test")[0], own.write(data.inputs), strict=True):
        asked = torch.tensor([[words[word] for word in prompt.split()]])
        said = model.generate(input_ids=asked, max_new_tokens=4, do_sample=False, eos_token_id=1, pad_token_id=1)[0]
        new = said[1:] if root.name == "t5" else said[asked.shape[1] :]
        ids = new.tolist()[: new.tolist().index(1)] if 1 in new.tolist() else new.tolist()
        assert found == " ".join(named[i] for i in ids if i != 0).strip()


def test_entropy_is_of_the_choice_or_of_the_first_word(root: Path, tmp_path: Path) -> None:
    assembly = assembled(root)
    found = assembly.problem.objective.losses(assembly.pool.base, loss="entropy")
    model, words = original(root), write_tokenizer(tmp_path)
    sums = torch.zeros(3)
    with torch.no_grad():
        for k, task in enumerate(TASKS):
            for prompt, answer in zip(*table_of(root, task, "calibration"), strict=True):
                choices = CLASSES[task] or (answer,)
                # ln p of a whole answer of two tokens is −2 times its mean loss.
                scores = torch.stack([-2 * loss_of(model, root.name, words, [prompt], [c]) for c in choices])
                if not CLASSES[task]:
                    asked = torch.tensor([[words[word] for word in prompt.split()]])
                    start = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.int64)} if root.name == "t5" else {}
                    scores = model(input_ids=asked, **start).logits[0, -1]
                p = scores.softmax(-1)
                sums[k] -= (p * p.log()).sum() / 16
    torch.testing.assert_close(found, sums, atol=1e-4, rtol=1e-4)


# --- scores -------------------------------------------------------------------------------------


def test_scores_are_ranks_texts_and_numbers(root: Path, tmp_path: Path) -> None:
    """The three metrics, computed again from the library's own outputs."""
    values = {"pool": str(root), "method": "task_arithmetic", "checkpoints": ["mood"], "tasks": TASKS}
    scores = execute(Recipe.from_dict(values | {"settings": {"scale": 1.0}})).final["test"]
    model, words = original(root, "checkpoints/mood"), write_tokenizer(tmp_path)
    pool = open_pool(root)
    own: Any = pool.model()
    own.flat.load(pool.base + pool.task_vectors(["mood"]).vector(0))
    prompts, answers = table_of(root, "mood", "test")
    with torch.no_grad():
        ranked = [
            max(CLASSES["mood"], key=lambda c: -float(loss_of(model, root.name, words, [prompt], [c])))
            for prompt in prompts
        ]
    assert scores["mood"].accuracy == pytest.approx(sum(map(str.__eq__, ranked, answers)) / 24)
    for task, compute in (("repeat", metrics.rouge_l), ("count", None)):
        said = own.write(load_split(pool.card, pool.card.task(task), "test").inputs)
        right = table_of(root, task, "test")[1]
        if compute is not None:
            assert scores[task].accuracy == pytest.approx(compute(said, right))
        else:
            numbers = metrics.read_numbers(said), metrics.read_numbers(right)
            assert scores[task].accuracy == pytest.approx(metrics.spearman(*numbers))


def test_exact_match_is_of_what_the_model_writes_not_of_the_rank(causal: Path, tmp_path: Path) -> None:
    copy = changed(causal, tmp_path / "gpt2", lambda card: card["tasks"][0].update(metric="exact_match"))
    pool = open_pool(copy)
    own: Any = pool.model()
    own.flat.load(pool.base + pool.task_vectors(["mood"]).vector(0))
    said = own.write(load_split(pool.card, pool.card.task("mood"), "test").inputs)
    right = table_of(copy, "mood", "test")[1]
    values = {"pool": str(copy), "method": "task_arithmetic", "checkpoints": ["mood"], "tasks": ["mood"]}
    score = execute(Recipe.from_dict(values | {"settings": {"scale": 1.0}})).final["test"]["mood"]
    assert score.accuracy == pytest.approx(sum(map(str.__eq__, said, right)) / 24)


@pytest.mark.parametrize("method", ["ties", "fw_hard", "adamerging", "supermerge", "regmean", "emr"])
def test_methods_run_or_say_why_not(causal: Path, method: str) -> None:
    """One-shot merges and everything that learns from losses runs; what looks at features is refused in a sentence."""
    settings = {"fw_hard": {"max_steps": 2}, "adamerging": {"updates": 2}, "supermerge": {"updates": 2}}
    values = {"pool": str(causal), "method": method, "tasks": TASKS, "checkpoints": TASKS}
    trace = execute(Recipe.from_dict(values | {"settings": settings.get(method, {})}))
    if method == "regmean":
        assert trace.note.startswith("this method looks inside the model")
    elif method == "emr":
        assert trace.note.startswith("a merge with experts or a router needs a model that makes features")
    else:
        assert trace.status != "failed", trace.note
        assert set(trace.final["test"]) == set(TASKS)


def test_programs_are_run_only_where_that_is_allowed(
    causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pass@1: the answer is learnt from ``answer``, what the model writes is judged by ``test``."""
    copy = changed(causal, tmp_path / "gpt2")
    for split in ("calibration", "validation", "test"):
        path = copy / "tasks/repeat" / f"{split}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.append_column("test", pa.array(["assert True"] * table.num_rows)), path)
    copy = changed(copy, tmp_path / "programs", lambda card: card["tasks"][1].update(metric="pass@1"))
    recipe = Recipe.from_dict(
        {"pool": str(copy), "method": "weight_average", "tasks": ["repeat"], "checkpoints": TASKS}
    )
    monkeypatch.delenv("FWVIZ_RUN_CODE", raising=False)
    assert execute(recipe).note.startswith("pass@1 runs programs a model wrote: set FWVIZ_RUN_CODE=1")
    pool = open_pool(copy)
    assert load_split(pool.card, pool.card.task("repeat"), "test").references == ("assert True",) * 24
    monkeypatch.setenv("FWVIZ_RUN_CODE", "1" if can_cut_off() else "with-network")
    monkeypatch.setattr(metrics, "passes", lambda program, **_: program.startswith("film"))
    assert 0 <= execute(recipe).final["validation"]["repeat"].accuracy <= 1


# --- files --------------------------------------------------------------------------------------


def test_tied_tensors_saved_twice_are_merged_once_and_written_twice(tmp_path: Path) -> None:
    root = make_tiny_words_pool(tmp_path / "t5", "t5", "full", updates=1)
    base = load_file(root / "base/model.safetensors")
    twice = base | {"encoder.embed_tokens.weight": base["shared.weight"].clone()}
    save_file(twice, root / "base/model.safetensors", metadata={"format": "pt"})
    pool = open_pool(changed(root, tmp_path / "twice"))
    assert dict(pool.architecture.aliases) == {"encoder.embed_tokens.weight": "shared.weight"}
    assert "encoder.embed_tokens.weight" not in pool.layout.names
    out = load_file(export_weights(assembled(tmp_path / "twice").recipe, -1, tmp_path / "out") / "model.safetensors")
    assert torch.equal(out["encoder.embed_tokens.weight"], out["shared.weight"])
    assert not torch.equal(out["shared.weight"], base["shared.weight"])


def test_an_output_layer_of_its_own_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    """As in Flan-T5: the file's lm_head differs from the embeddings that the library's class would tie it to."""
    root = make_tiny_words_pool(tmp_path / "t5", "t5", "full", updates=1)
    torch.manual_seed(5)
    for folder in (root / "base", *(root / "checkpoints" / task for task in TASKS)):
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = torch.randn_like(tensors["shared.weight"])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    more = changed(root, tmp_path / "own" / "t5", lambda card: card["merge"]["include"].append("lm_head."))
    pool = open_pool(more)
    assert "lm_head.weight" in pool.layout.names
    words = write_tokenizer(tmp_path)
    own: Any = pool.model()
    model = original(more)
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    data = load_split(pool.card, pool.card.task("mood"), "test")
    with torch.no_grad():
        log_p, counts = own.log_probs(data.inputs, data.labels)
        expected = loss_of(model, "t5", words, *table_of(more, "mood", "test"))
    assert float((-log_p.sum(-1) / counts).mean()) == pytest.approx(float(expected), rel=1e-5)


def test_names_without_the_models_prefix_and_masks_among_them(causal: Path, tmp_path: Path) -> None:
    """As the first GPT-2 files: no ``transformer.`` in the names, causal masks saved as tensors."""
    copy = Path(shutil.copytree(causal, tmp_path / "gpt2"))
    tensors = load_file(copy / "base/model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32) for i in range(2)}
    save_file(bare, copy / "base/model.safetensors", metadata={"format": "pt"})
    bare_pool = changed(
        copy, tmp_path / "bare", lambda card: card["merge"].update(include=["h.", "wte.", "wpe.", "ln_f."])
    )
    found, expected = assembled(bare_pool), assembled(causal)
    assert not any(name.endswith(".attn.bias") for name in found.pool.layout.names)
    a, b = (x.problem.objective.losses(x.pool.base + x.problem.vectors.vector(0)) for x in (found, expected))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_a_base_in_shards_is_one_base(causal: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(causal, tmp_path / "gpt2"))
    model = original(Path("gpt2"), str(causal / "base"))
    (copy / "base/model.safetensors").unlink()
    model.save_pretrained(copy / "base", max_shard_size="20KB")
    assert len(list((copy / "base").glob("*.safetensors"))) > 1
    sharded = open_pool(changed(copy, tmp_path / "sharded"))
    assert torch.equal(sharded.base, open_pool(causal).base)
    out = export_weights(assembled(tmp_path / "sharded").recipe, -1, tmp_path / "out")
    assert (out / "model.safetensors").is_file()
    assert not (out / "model.safetensors.index.json").exists()


def test_a_checkpoint_with_an_output_layer_the_base_lacks_is_refused(causal: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(causal, tmp_path / "gpt2"))
    file = copy / "checkpoints/mood/model.safetensors"
    tensors = load_file(file)
    equal = tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    save_file(equal, file, metadata={"format": "pt"})
    assert assembled(changed(copy, tmp_path / "equal")).problem.vectors.n == 3
    save_file(equal | {"lm_head.weight": 2 * equal["lm_head.weight"]}, file, metadata={"format": "pt"})
    with pytest.raises(FwvizError, match="an output layer of its own"):
        assembled(changed(copy, tmp_path / "other"))


# --- tokens -------------------------------------------------------------------------------------


def byte_level(folder: Path) -> Path:
    """A tokenizer of GPT-2's kind: a word with its space in front is another token than without."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], show_progress=False)
    tokenizer.train_from_iterator(["is it so? yes", "no yes no", "yes\nno\nyes"] * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_an_answer_is_cut_as_it_stands_behind_its_prompt(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    file = byte_level(tmp_path)
    plain = Tokenizer.from_file(str(file))
    tokenise = TokeniseWords(file, "causal", 1000, 64, 6, 0)
    packed = tokenise(["is it so?", "is it so?\n"], [("yes", "no"), ("yes", "no")])
    assert packed.shape[:2] == (2, 3)
    rows = [[[i for i in row.tolist() if i >= 0] for row in sample] for sample in packed]
    assert rows[0][1] == [*plain.encode(" yes").ids, 0]
    assert rows[1][1] == [*plain.encode("yes").ids, 0]
    assert plain.decode(rows[0][0] + rows[0][2][:-1]) == "is it so? no"
    assert plain.decode(rows[1][0] + rows[1][2][:-1]) == "is it so?\nno"


def test_long_prompts_lose_the_side_the_model_can_spare(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    ids = {kind: TokeniseWords(tmp_path / "tokenizer.json", kind, 100, 3, 2, 1) for kind in ("causal", "seq2seq")}  # type: ignore[arg-type]
    text = "mood : the film was fine"
    words = write_tokenizer(tmp_path)
    assert ids["causal"]([text], [("good",)])[0, 0].tolist() == [words[w] for w in ("film", "was", "fine")]
    assert ids["seq2seq"]([text], [("good",)])[0, 0].tolist() == [words[w] for w in ("mood", ":", "the")]
    assert ids["seq2seq"]([text], [("film book play song",)])[0, 1, :2].tolist() == [words["film"], 1]
    with pytest.raises(FwvizError, match="one prompt per sample"):
        ids["causal"]([("a", "b")], [("good",)])


# --- refused ------------------------------------------------------------------------------------


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another kind": (
        lambda r: edit_json(r / "base/config.json", model_type="opt"),
        "only gpt2, llama can be read here",
    ),
    "no kind": (
        lambda r: edit_json(r / "base/config.json", model_type="nothing"),
        "no configuration transformers knows",
    ),
    "no end": (lambda r: edit_json(r / "base/config.json", eos_token_id=None), "names no eos_token_id"),
    "too many layers": (lambda r: edit_json(r / "base/config.json", n_layer=10**9), "n_layer is 1000000000"),
    "another width": (lambda r: edit_json(r / "base/config.json", n_embd=48), "has shape"),
    "one layer more": (lambda r: edit_json(r / "base/config.json", n_layer=3), "has no tensor"),
    "heads that do not divide": (lambda r: edit_json(r / "base/config.json", n_head=5), "transformers cannot build"),
    "no tokenizer": (lambda r: (r / "base/tokenizer.json").unlink(), "cannot be read"),
    "another checkpoint": (lambda r: edit_json(r / "checkpoints/mood/config.json", n_head=3), "another architecture"),
}


@pytest.mark.parametrize("name", WRONG)
def test_damage_is_one_sentence(name: str, causal: Path, tmp_path: Path) -> None:
    damage, sentence = WRONG[name]
    copy = changed(causal, tmp_path / "gpt2")
    damage(copy)
    with pytest.raises(FwvizError, match=sentence):
        assembled(copy)


def test_a_card_that_asks_for_too_much_is_refused(causal: Path, tmp_path: Path) -> None:
    long = changed(causal, tmp_path / "long", lambda card: card["base"].update(tokens=30))
    with pytest.raises(FwvizError, match="at most 32 together"):
        open_pool(long)
    free = changed(causal, tmp_path / "free", lambda card: card["tasks"][1].pop("metric"))
    with pytest.raises(FwvizError, match="'repeat' has no classes to take the accuracy of"):
        assembled(free)
    with pytest.raises(FwvizError, match="answers in words"):
        open_pool(causal).backbone()
    answer = changed(causal, tmp_path / "answer", lambda card: card["base"].pop("answer_tokens"))
    with pytest.raises(FwvizError, match=r"base.answer_tokens is missing"):
        open_pool(answer)


def test_nothing_of_a_repository_is_run(causal: Path, tmp_path: Path) -> None:
    """A configuration that names code of its own is read as what it says it is, or refused; the code never runs."""
    copy = changed(causal, tmp_path / "gpt2")
    (copy / "base/evil.py").write_text("raise SystemExit('run')")
    edit_json(copy / "base/config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    assert isinstance(open_pool(copy), Pool)
    edit_json(copy / "base/config.json", model_type="evil")
    with pytest.raises(FwvizError, match="no configuration transformers knows"):
        Pool(open_pool(copy).card)
