"""Merged weights as a folder that others can load, with the recipe and a model card beside them."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from fwviz.backbones.families import FAMILIES
from fwviz.backbones.family import Classifier
from fwviz.pools.adapters import write_lora
from fwviz.registry import entry
from fwviz.runs.assemble import Assembly, assemble
from fwviz.runs.extension import Kept
from fwviz.runs.merged import save_classifiers, save_parts
from fwviz.runs.origin import is_own, origin, own_line, recipe_text
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.trace import Trace
from fwviz.space.lowrank import LowRank, LowRankTaskVectors, truncate
from fwviz.space.wide import plus
from fwviz.tasks.extended import stored_bytes
from fwviz.types import Extension, FwvizError

ExportFormat = Literal["clip_model", "vision_model", "model", "adapter"]
# Family → format → the class that loads it. The first format is the family's default.
LOADERS: dict[str, dict[ExportFormat, str]] = {
    "clip_vision": {"clip_model": "CLIPModel", "vision_model": "CLIPVisionModelWithProjection"},
    "sentence_encoder": {"model": "AutoModel", "adapter": "PeftModel"},
    "sequence_classifier": {"model": "AutoModelForSequenceClassification", "adapter": "PeftModel"},
    "seq2seq": {"model": "AutoModelForSeq2SeqLM", "adapter": "PeftModel"},
    "causal_lm": {"model": "AutoModelForCausalLM", "adapter": "PeftModel"},
}
EXPORT_FORMATS: tuple[ExportFormat, ...] = tuple(dict.fromkeys(f for formats in LOADERS.values() for f in formats))

VISION_PREFIXES = ("vision_model.", "visual_projection.")


def export_weights(
    source: Trace | Recipe,
    index: int,
    folder: Path | str,
    format: ExportFormat | None = None,
    *,
    kept: Kept | None = None,
    rank: int | None = None,
) -> Path:
    """Write the merged model of one frame to a new or empty folder; a recipe is run first. Returns the folder.

    ``clip_model`` is the whole CLIP (merged image tower, the base's text tower), ``vision_model`` the image tower
    alone, ``model`` a whole text encoder; all float32 and loadable by ``from_pretrained``. Tokenizer and preprocessor
    of the base are copied, ``recipe.yaml`` and a model card ``README.md`` added. Heads, experts and router lie beside
    them for :func:`fwviz.runs.merged.load_merged`. ``adapter``, for a pool of adapters, is a LoRA for the unchanged
    base: exact for a linear merge, else (or with ``rank``) the best of a rank, its error in the model card.

    ``kept`` are the parts of the last iterate if the run store has them (:meth:`fwviz.runs.store.RunStore.kept`), else
    the method is run again for them. Raises FwvizError if the folder is not empty or the run has no such frame.
    """
    target = Path(folder) if Path(folder).name else Path(folder).resolve()  # "." has no name to write beside
    if rank is not None and rank < 1:
        raise FwvizError(f"an adapter of rank {rank} is none: give a rank of at least 1.")
    if format is not None and format not in EXPORT_FORMATS:
        raise FwvizError(f"there is no export format {format!r}: choose from {', '.join(EXPORT_FORMATS)}.")
    check_target(target)
    trace = execute(source) if isinstance(source, Recipe) else source
    if trace.status == "failed" and isinstance(source, Recipe):
        raise FwvizError(trace.note)
    # Adding up what is known needs no GPU: the run's device may be another machine's, or lent for the run only.
    again = _parts_known(trace, index, kept) is None
    assembly = assemble(trace.recipe if again else replace(trace.recipe, device="cpu", precision="float32"))
    chosen = format_of(assembly, format)
    theta, extension = merged_parts(trace, index, assembly, kept)
    partial = target.with_name(target.name + ".partial")
    check_target(partial)
    error = 0.0
    try:
        if chosen == "adapter":
            error = write_adapter(trace, index, assembly, theta, extension, partial, rank)
            save_classifiers(partial, assembly.pool.heads(trace.tasks))
        else:
            _write_model(assembly, theta, partial, chosen)
            _write_parts(assembly, trace.tasks, extension, partial)
        text = recipe_text(trace.recipe, assembly.pool.card)
        (partial / "recipe.yaml").write_text(text, encoding="utf-8")
        text = model_card(trace, index, assembly, chosen, extension, error)
        (partial / "README.md").write_text(text, encoding="utf-8")
        if target.is_dir():
            target.rmdir()
        partial.replace(target)
    except BaseException as failure:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(failure, OSError | SafetensorError):
            why = getattr(failure, "strerror", None) or failure
            raise FwvizError(f"{target} cannot be written ({why}): name another folder.") from None
        raise
    return target


def _write_parts(assembly: Assembly, tasks: Sequence[str], extension: Extension | None, folder: Path) -> None:
    """What stands beside the merged weights; nothing for a model that answers in words."""
    if FAMILIES[assembly.pool.card.family].heads == "words":
        return
    given = assembly.pool.heads(tasks)
    factor = math.exp(assembly.pool.backbone().logit_scale)
    heads = {task: head if isinstance(head, Classifier) else head.mul(factor).cpu() for task, head in given.items()}
    save_parts(folder, assembly.pool.card, assembly.problem.vectors.layout, heads, extension)


def format_of(assembly: Assembly, format: ExportFormat | None) -> ExportFormat:
    """The format, or the default of the pool's family; FwvizError if the pool cannot be written so."""
    known = LOADERS[assembly.pool.card.family]
    chosen = next(iter(known)) if format is None else format
    if chosen not in known:
        raise FwvizError(
            f"pool {assembly.pool.card.id!r} has no export format {chosen!r}: choose {' or '.join(known)}."
        )
    if chosen == "adapter" and not assembly.pool.all_adapters:
        raise FwvizError(f"pool {assembly.pool.card.id!r} holds whole checkpoints: export them as 'model'.")
    return chosen


def write_adapter(
    trace: Trace,
    index: int,
    assembly: Assembly,
    theta: Tensor,
    extension: Extension | None,
    folder: Path,
    rank: int | None = None,
) -> float:
    """Write the merge of a frame as one LoRA; returns what it misses of the update, as a share of its norm.

    A linear merge is Σᵢ λᵢ·sᵢ·BᵢAᵢ: its factors side by side have rank Σ rᵢ and miss nothing. Any other merge, or one
    with a smaller ``rank`` asked for, gets the best factors of that rank (truncated SVD), tensor by tensor.
    """
    vectors = assembly.problem.vectors
    if extension is not None:
        raise FwvizError("a merge with experts or a router is no single adapter: export it as 'model'.")
    if not isinstance(vectors, LowRankTaskVectors):
        raise FwvizError("only a merge of adapters can be written as an adapter: export it as 'model'.")
    coefficients = trace.frame(index).coefficients
    layout = vectors.layout
    exact: dict[str, LowRank | None] = {}
    if coefficients is not None:
        groups = layout.groups(trace.frame(index).granularity)
        owner = [bisect_right(groups.bounds, offset) - 1 for offset in layout.offsets[:-1]]
        exact = vectors.factors(torch.as_tensor(coefficients)[owner])
    most = vectors.factors(torch.ones(len(layout.names), vectors.n))
    factors: dict[str, LowRank] = {}
    missed = total = 0.0
    for name in layout.names:
        kept = exact.get(name)
        if kept is None or (rank is not None and kept.up.shape[1] > rank):
            delta = layout.view(theta.cpu(), name) - layout.view(vectors.base.cpu(), name)
            if not bool(delta.any()):
                continue
            if delta.dim() != 2 or most.get(name) is None:
                raise FwvizError(f"the merge changes {name!r} by what is no LoRA: export it as 'model'.")
            size = most[name]
            assert size is not None
            kept, error = truncate(delta, rank or size.up.shape[1])
            norm = float(delta.norm())
            missed, total = missed + (error * norm) ** 2, total + norm**2
        else:
            total += float((kept.up @ kept.down).square().sum())
        factors[name] = kept
    like = [assembly.pool.adapter(name) for name in trace.checkpoints]
    write_lora(folder, factors, like, assembly.pool.base_name)
    return (missed / total) ** 0.5 if total else 0.0


def check_target(folder: Path) -> None:
    """Raise FwvizError unless ``folder`` is absent or empty, so that an export never mixes with other files.

    Nor if it could not be made: long work must not end in that.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise FwvizError(f"{folder} is there and not empty: name a new folder.")
    around = next(place for place in folder.absolute().parents if place.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".fwviz-", dir=around):
            pass
    except OSError as error:
        raise FwvizError(f"{folder} cannot be made ({error.strerror}): name a folder elsewhere.") from None


def merged_weights(trace: Trace, index: int, assembly: Assembly) -> Tensor:
    """The merged weights θ (P,) float32 of one frame; of a merge with experts those of its backbone.

    Linear merges are rebuilt from the recorded coefficients, others by running the method again up to that frame.
    """
    if trace.frame(index).coefficients is not None:
        return trace.theta(index, assembly.problem.vectors)
    return merged_parts(trace, index, assembly)[0]


def _parts_known(trace: Trace, index: int, kept: Kept | None) -> tuple[Tensor | None, Extension | None] | None:
    """The parts of a frame's merge that are there without its method, no θ where coefficients give it; else None."""
    frame, last = trace.frame(index), trace.frame(-1)
    known = kept if (frame.t, frame.inner) == (last.t, last.inner) else None
    if frame.coefficients is not None and (known is not None or not frame.stored_bytes):
        return None, known.extension if known is not None else None
    return (known.theta, known.extension) if known is not None and known.theta is not None else None


def merged_parts(
    trace: Trace, index: int, assembly: Assembly, kept: Kept | None = None
) -> tuple[Tensor, Extension | None]:
    """The merged weights θ (P,) float32 of one frame and what the merge has beside them.

    Linear merges are rebuilt from the recorded coefficients, the last iterate of one with an extension from what the
    store has ``kept`` of it; others by running the method again.
    """
    frame = trace.frame(index)
    vectors = assembly.problem.vectors
    known = _parts_known(trace, index, kept)
    if known is not None:
        theta, extension = known
        return trace.theta(index, vectors) if theta is None else theta, extension
    method = entry("methods", trace.recipe.method)
    with closing(method.run(assembly.problem, trace.recipe.method_settings())) as steps:
        for step in steps:
            if (step.t, step.inner) == (frame.t, frame.inner):
                if step.delta is not None:
                    return plus(vectors.base, step.delta), step.extension
                if step.coefficients is not None:
                    return vectors.combine(step.coefficients, vectors.layout.groups(step.granularity)), step.extension
    raise FwvizError(f"frame {index} of the run cannot be made again: the method no longer passes through it.")


def model_card(
    trace: Trace,
    index: int,
    assembly: Assembly,
    format: ExportFormat,
    extension: Extension | None = None,
    error: float = 0.0,
) -> str:
    """The README.md of an export: what it is, how it was made, what it scores, how to load it."""
    card = assembly.pool.card
    frame = trace.frame(index)
    licence = json.dumps(str(card.base.get("licence", "other")).lower())
    loader = LOADERS[card.family][format]
    library = "peft" if format == "adapter" else "transformers"
    whole, heads = LOADERS[card.family].get("model", loader), FAMILIES[card.family].heads
    outputs = f", num_labels={max(len(card.task(trace.tasks[0]).classes), 1)}" if heads == "own" else ""
    lines = ["---", f"license: {licence}", f"library_name: {library}", "tags:"]
    lines += ["- model-merging", f"- {card.family.split('_')[0]}", "- fwviz", "---", ""]
    lines += [f"# {trace.recipe.title} of {len(trace.checkpoints)} checkpoints of {card.title}", ""]
    made_by = f"fwviz {trace.versions.get('fwviz', '')}".rstrip()
    lines += [f"Merged with {made_by}, iteration t = {frame.t}."]
    lines += [f"Checkpoints: {', '.join(trace.checkpoints)}. Merged for: {', '.join(trace.tasks)}.", ""]
    own = is_own(card)
    again = own_line(trace.recipe, card) if own else trace.recipe.cli_line()
    lines += [*_accuracy_lines(trace, index), "## Make it again", "", "```", again, "```", ""]
    lines += ["## Load it", "", "```python", f"from {library} import {loader}"]
    lines += [f"from transformers import {whole}"] if format == "adapter" else []
    lines += ["from safetensors.torch import load_file"] if heads == "own" else []
    first, place = ("base", assembly.pool.base_name) if format == "adapter" else ("model", "path/to/this/folder")
    lines += ["", f'{first} = {whole if format == "adapter" else loader}.from_pretrained("{place}"{outputs})']
    if heads == "own":  # before an adapter goes around it
        file = f"path/to/this/folder/heads/{trace.tasks[0]}.safetensors"
        lines += [f'{first}.load_state_dict(load_file("{file}"), strict=False)']
    lines += [f'model = {loader}.from_pretrained(base, "path/to/this/folder")'] if format == "adapter" else []
    lines += ["```", ""]
    if format == "adapter":
        lines += [f"The adapter misses {100 * error:.2f} % of the merged update (its norm).", ""]
    if heads == "own":
        lines += ["Every task keeps the classifier of its own checkpoint, in `heads/`.", ""]
    if extension is not None:
        lines += ["This is the backbone alone. The scores are those of backbone, router and experts together:", ""]
        lines += ["```python", "from fwviz.runs.merged import load_merged", ""]
        lines += ['model = load_merged("path/to/this/folder")', f'logits = model.logits(images, "{trace.tasks[0]}")']
        lines += ["```", "", f"Router: {extension.router.kind}. {_parts_line(extension)}", ""]
    if FAMILIES[card.family].inputs == "images":
        lines += ["Class scores are exp(logit_scale) · ⟨image features, class embedding⟩, both normalised. A class"]
        lines += ["embedding is the normalised mean of the normalised text features of its name in these prompts:", ""]
    elif heads == "words":
        lines += [f"Prompts are cut at {card.base['tokens']} tokens. Tasks and how they are scored:", ""]
    elif heads == "own":
        lines += ["Class scores are those of the task's classifier on the state of the first token. Tasks and their"]
        lines += ["classes, in the order of the scores:", ""]
    else:
        scale, tokens = card.base["scale"], card.base["tokens"]
        lines += [f"Class scores are {scale:g} · ⟨sentence embedding, class embedding⟩; a sentence embedding is the"]
        lines += [f"normalised mean of the last hidden states of its first {tokens} tokens. A class embedding"]
        lines += ["is the normalised mean of the base's sentence embeddings of its name in these prompts:", ""]
    for task in trace.tasks:
        shown = card.task(task).prompts if heads == "texts" else card.task(task).classes
        said = f" ({card.task(task).metric})" if heads != "texts" else ""
        lines.append(f"- {task}{said}: {', '.join(json.dumps(p, ensure_ascii=False) for p in shown) or 'free answers'}")
    lines += ["", f"Base and checkpoints: pool `{card.id}` ({trace.pool_fingerprint}). "]
    if own:
        lines[-1] += "It is a pool of one's own, which others do not have: the command above makes it again of"
        lines += ["the same files, which were:", "", *(f"- {line}" for line in origin(trace.recipe, card)), ""]
    lines[-1] += "Data of the tasks:"
    lines += [""]
    lines += [f"- {task}: {card.task(task).source} ({card.task(task).licence})" for task in trace.tasks]
    return "\n".join(lines) + "\n"


def _parts_line(extension: Extension) -> str:
    kept = sorted({*extension.experts, *extension.maps})
    return f"Kept beside the backbone: {stored_bytes(extension):,} bytes, for {', '.join(kept)}."


def _accuracy_lines(trace: Trace, index: int) -> Iterator[str]:
    frame = trace.frame(index)
    if frame.final.get("test"):
        yield from ("Test accuracy in %:", "", "| task | base | individual | merged |", "|---|---|---|---|")
        for row in trace.results("test").itertuples():
            cells = " | ".join("" if x != x else f"{100 * x:.1f}" for x in (row.base, row.individual, row.merged))
            yield f"| {row.task} | {cells} |"
    elif frame.accuracy:
        yield from ("Accuracy in % on a small part of the validation data:", "", "| task | merged |", "|---|---|")
        yield from (f"| {task} | {100 * value:.1f} |" for task, value in frame.accuracy.items())
    yield ""


def _write_model(assembly: Assembly, theta: Tensor, folder: Path, format: ExportFormat) -> None:
    from safetensors.torch import load_file, save_file

    base = assembly.pool.base_dir
    layout = assembly.problem.vectors.layout
    tensors: dict[str, Tensor] = {}
    for file in sorted(base.glob("*.safetensors")):
        tensors |= {name: t.float() if t.is_floating_point() else t for name, t in load_file(file).items()}
    theta = theta.detach().to("cpu", torch.float32)
    for name in layout.names:
        tensors[name] = layout.view(theta, name).clone()
    for second, name in assembly.pool.architecture.aliases.items():
        tensors[second] = tensors[name].clone()
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if format == "vision_model":
        tensors = {name: t for name, t in tensors.items() if name.startswith(VISION_PREFIXES)}
        projection = config["projection_dim"]
        config = {**config["vision_config"], "model_type": "clip_vision_model", "projection_dim": projection}
    if format != "model":
        config["architectures"] = [LOADERS[assembly.pool.card.family][format]]
    config["dtype"] = "float32"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for file in sorted(base.iterdir()):
        if (
            file.suffix in (".json", ".txt", ".model")
            and file.name != "config.json"
            and ".safetensors" not in file.name
        ):
            shutil.copyfile(file, folder / file.name)
