"""Merged weights as a folder that others can load, with the recipe and a model card beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fwviz.registry import entry
from fwviz.runs.assemble import Assembly, assemble
from fwviz.runs.merged import save_parts
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.trace import Trace
from fwviz.tasks.extended import stored_bytes
from fwviz.tasks.heads import scaled_heads
from fwviz.types import Extension, FwvizError

ExportFormat = Literal["clip_model", "vision_model"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("clip_model", "vision_model")

VISION_PREFIXES = ("vision_model.", "visual_projection.")
LOADERS: dict[ExportFormat, str] = {"clip_model": "CLIPModel", "vision_model": "CLIPVisionModelWithProjection"}


def export_weights(
    source: Trace | Recipe,
    index: int,
    folder: Path | str,
    format: ExportFormat = "clip_model",
    *,
    kept: Extension | None = None,
) -> Path:
    """Write the merged model of one frame to a new or empty folder; a recipe is run first. Returns the folder.

    ``clip_model`` is the whole CLIP (merged image tower, the base's text tower), ``vision_model`` the image tower
    alone; both float32 and loadable by ``from_pretrained``. Tokenizer and preprocessor of the base are copied,
    ``recipe.yaml`` and a model card ``README.md`` added. Heads, experts and router lie beside it for
    :func:`fwviz.runs.merged.load_merged`.

    ``kept`` is the extension of the last iterate if the run store has it (:meth:`fwviz.runs.store.RunStore.extension`),
    else the method is run again for it. Raises FwvizError if the folder is not empty or the run has no such frame.
    """
    target = Path(folder)
    if format not in EXPORT_FORMATS:
        raise FwvizError(f"there is no export format {format!r}: choose from {', '.join(EXPORT_FORMATS)}.")
    check_target(target)
    trace = execute(source) if isinstance(source, Recipe) else source
    if trace.status == "failed" and isinstance(source, Recipe):
        raise FwvizError(trace.note)
    assembly = assemble(trace.recipe)
    theta, extension = merged_parts(trace, index, assembly, kept)
    partial = target.with_name(target.name + ".partial")
    check_target(partial)
    _write_model(assembly, theta, partial, format)
    heads = scaled_heads(assembly.pool.backbone(), assembly.pool.heads(trace.tasks))
    weights = {task: head.weight.cpu() for task, head in heads.items()}
    save_parts(partial, assembly.pool.card, assembly.problem.vectors.layout, weights, extension)
    (partial / "recipe.yaml").write_text(trace.recipe.to_yaml(), encoding="utf-8")
    text = model_card(trace, index, assembly, format, extension)
    (partial / "README.md").write_text(text, encoding="utf-8")
    if target.is_dir():
        target.rmdir()
    partial.replace(target)
    return target


def check_target(folder: Path) -> None:
    """Raise FwvizError unless ``folder`` is absent or empty, so that an export never mixes with other files."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise FwvizError(f"{folder} is there and not empty: name a new folder.")


def merged_weights(trace: Trace, index: int, assembly: Assembly) -> Tensor:
    """The merged weights θ (P,) float32 of one frame; of a merge with experts those of its backbone.

    Linear merges are rebuilt from the recorded coefficients, others by running the method again up to that frame.
    """
    if trace.frame(index).coefficients is not None:
        return trace.theta(index, assembly.problem.vectors)
    return merged_parts(trace, index, assembly)[0]


def merged_parts(
    trace: Trace, index: int, assembly: Assembly, kept: Extension | None = None
) -> tuple[Tensor, Extension | None]:
    """The merged weights θ (P,) float32 of one frame and what the merge has beside them.

    Linear merges are rebuilt from the recorded coefficients, with ``kept`` as the extension of the last iterate; others
    by running the method again.
    """
    frame = trace.frame(index)
    vectors = assembly.problem.vectors
    last = trace.frame(-1)
    known = kept if (frame.t, frame.inner) == (last.t, last.inner) else None
    if frame.coefficients is not None and (known is not None or not frame.stored_bytes):
        return trace.theta(index, vectors), known
    method = entry("methods", trace.recipe.method)
    with closing(method.run(assembly.problem, trace.recipe.method_settings())) as steps:
        for step in steps:
            if (step.t, step.inner) == (frame.t, frame.inner):
                if step.delta is not None:
                    return vectors.base + step.delta, step.extension
                if step.coefficients is not None:
                    return vectors.combine(step.coefficients, vectors.layout.groups(step.granularity)), step.extension
    raise FwvizError(f"frame {index} of the run cannot be made again: the method no longer passes through it.")


def model_card(
    trace: Trace, index: int, assembly: Assembly, format: ExportFormat, extension: Extension | None = None
) -> str:
    """The README.md of an export: what it is, how it was made, what it scores, how to load it."""
    card = assembly.pool.card
    frame = trace.frame(index)
    title = entry("methods", trace.recipe.method).title
    licence = json.dumps(str(card.base.get("licence", "other")).lower())
    lines = ["---", f"license: {licence}", "library_name: transformers", "tags:"]
    lines += ["- model-merging", "- clip", "- fwviz", "---", ""]
    lines += [f"# {title} of {len(trace.checkpoints)} checkpoints of {card.title}", ""]
    lines += [f"Merged with fwviz {trace.versions.get('fwviz', '')}, iteration t = {frame.t}".rstrip() + "."]
    lines += [f"Checkpoints: {', '.join(trace.checkpoints)}. Merged for: {', '.join(trace.tasks)}.", ""]
    lines += [*_accuracy_lines(trace, index), "## Make it again", "", "```", trace.recipe.cli_line(), "```", ""]
    lines += ["## Load it", "", "```python", f"from transformers import {LOADERS[format]}", ""]
    lines += [f'model = {LOADERS[format]}.from_pretrained("path/to/this/folder")', "```", ""]
    if extension is not None:
        lines += ["This is the backbone alone. The scores are those of backbone, router and experts together:", ""]
        lines += ["```python", "from fwviz.runs.merged import load_merged", ""]
        lines += ['model = load_merged("path/to/this/folder")', f'logits = model.logits(images, "{trace.tasks[0]}")']
        lines += ["```", "", f"Router: {extension.router.kind}. {_parts_line(extension)}", ""]
    lines += ["Class scores are exp(logit_scale) · ⟨image features, class embedding⟩, both normalised. A class"]
    lines += ["embedding is the normalised mean of the normalised text features of its name in these prompts:", ""]
    for task in trace.tasks:
        lines.append(f"- {task}: {', '.join(json.dumps(p, ensure_ascii=False) for p in card.task(task).prompts)}")
    lines += ["", f"Base and checkpoints: pool `{card.id}` ({trace.pool_fingerprint}). Data of the tasks:", ""]
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

    card = assembly.pool.card
    base = card.root / str(card.base["path"])
    layout = assembly.problem.vectors.layout
    tensors: dict[str, Tensor] = {}
    for file in sorted(base.glob("*.safetensors")):
        tensors |= {name: t.float() if t.is_floating_point() else t for name, t in load_file(file).items()}
    theta = theta.detach().to("cpu", torch.float32)
    for name in layout.names:
        tensors[name] = layout.view(theta, name).clone()
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if format == "vision_model":
        tensors = {name: t for name, t in tensors.items() if name.startswith(VISION_PREFIXES)}
        projection = config["projection_dim"]
        config = {**config["vision_config"], "model_type": "clip_vision_model", "projection_dim": projection}
    config["architectures"] = [LOADERS[format]]
    config["dtype"] = "float32"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for file in sorted(base.iterdir()):
        if file.suffix in (".json", ".txt") and file.name != "config.json" and ".safetensors" not in file.name:
            shutil.copyfile(file, folder / file.name)
