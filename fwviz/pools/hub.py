"""Pools of the papers on the Hugging Face Hub: cards with ids instead of paths, looked at before anything is loaded.

Only safetensors, JSON and tokenizer files are ever downloaded. ``HF_ENDPOINT`` names another Hub; what is in the Hub's
cache is used without one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fwviz.backbones.folders import MODEL_FILES, cached_snapshot, hub_cache
from fwviz.pools.card import REPOSITORY, Node, read_yaml
from fwviz.pools.open import pool_card, pool_ids
from fwviz.pools.places import is_id
from fwviz.types import METRICS, SPLITS, FwvizError, MetricName, Split

CARDS = Path(__file__).parent / "cards"
Kind = Literal["model", "dataset"]
State = Literal["here", "missing", "refused"]

HUB_FAMILIES = ("clip_vision", "sentence_encoder", "sequence_classifier", "seq2seq", "causal_lm")
_DATA_FILES = ("*.parquet",)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Samples of each split: enough to steer by, to choose by and to judge by.
ROWS: Mapping[Split, int] = {"calibration": 128, "validation": 128, "test": 1000}
_MAX_ROWS = 100_000
_MAX_REPOSITORIES = 256
_TOGETHER = 4  # questions to the Hub at a time


@dataclass(frozen=True)
class HubModel:
    """A checkpoint of a Hub card: its repository and the task it was fine-tuned on."""

    id: str
    hub: str
    task: str
    kind: str


@dataclass(frozen=True)
class HubTask:
    """A task of a Hub card. ``data`` has repository, configuration, columns and splits of its data set.

    ``classes`` is empty where the data set names them itself or answers are free, ``prompts`` where the family has no
    text head. ``prompt`` is what a model that answers in words is asked, with the names of columns in braces.
    """

    id: str
    title: str
    metric: MetricName
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    data: dict[str, Any]
    prompt: str = ""


@dataclass(frozen=True)
class HubCard:
    """A pool of the Hub: what ``fwviz/pools/cards/<id>.yaml`` says. ``subsets`` names choices of tasks, 8, 14, 20.

    Texts are cut at ``tokens``, answers at ``answer_tokens``; logits of text heads are ``scale`` times a cosine.
    ``rows`` says how many samples each of our splits takes of a data set.
    """

    id: str
    title: str
    summary: str
    family: str
    base: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    checkpoints: tuple[HubModel, ...]
    tasks: tuple[HubTask, ...]
    subsets: dict[str, tuple[str, ...]]
    tokens: int = 128
    answer_tokens: int = 32
    scale: float = 20.0
    rows: Mapping[Split, int] = field(default_factory=lambda: dict(ROWS))

    def subset(self, name: str | None) -> HubCard:
        """The card with the tasks of one of its subsets only, and their checkpoints."""
        if name is None:
            return self
        if name not in self.subsets:
            raise FwvizError(f"card {self.id!r} has no subset {name!r}: choose from {', '.join(self.subsets)}.")
        kept = set(self.subsets[name])
        values = vars(self) | {
            "checkpoints": tuple(c for c in self.checkpoints if c.task in kept),
            "tasks": tuple(t for t in self.tasks if t.id in kept),
        }
        return HubCard(**values)


@dataclass(frozen=True)
class RepoReport:
    """One repository: whether its files are here, what a download would take, and under which licence."""

    hub: str
    kind: Kind
    state: State
    bytes: int | None  # of all files wanted; None where the Hub was not asked
    missing_bytes: int | None
    licence: str
    note: str = ""


# --- cards --------------------------------------------------------------------------------------


def hub_card_ids() -> tuple[str, ...]:
    """The cards that come with fwviz."""
    return tuple(sorted(file.stem for file in CARDS.glob("*.yaml") if not file.stem.startswith("_")))


def load_hub_card(id_or_path: str | Path) -> HubCard:
    """A card by its id, or of a file; FwvizError for a wrong one, with file and key."""
    path = Path(id_or_path)
    if isinstance(id_or_path, str) and os.sep not in id_or_path and path.suffix != ".yaml":
        if id_or_path not in hub_card_ids():
            raise FwvizError(f"there is no card {id_or_path!r}: choose from {', '.join(hub_card_ids())}.")
        path = CARDS / f"{id_or_path}.yaml"
    top = Node(str(path), "", read_yaml(path))
    catalogue: dict[str, Node] = {}
    if "catalogue" in top.value:
        name = top.text("catalogue", 64)
        if not is_id(name.removeprefix("_")):
            raise top.wrong("catalogue", name, "the name of a file beside the card")
        file = path.parent / f"{name}.yaml"
        listed = Node(str(file), "", read_yaml(file))
        catalogue = {node.identifier("id"): node for node in listed.nodes("tasks", _MAX_REPOSITORIES)}
    tasks = tuple(_task(top, node, catalogue) for node in top.nodes("tasks", _MAX_REPOSITORIES))
    ids = top.unique("tasks", [task.id for task in tasks])
    pattern = top.text("checkpoint_hub", 200, optional=True)
    checkpoints = (
        tuple(HubModel(task, pattern.replace("{task}", _slug(top, task)), task, "own") for task in ids)
        if pattern
        else tuple(_model(node) for node in top.nodes("checkpoints", _MAX_REPOSITORIES))
    )
    for checkpoint in checkpoints:
        if checkpoint.task not in ids:
            raise FwvizError(f"{path}: checkpoint {checkpoint.id!r} is of the unlisted task {checkpoint.task!r}.")
        top.check_repository("checkpoints", checkpoint.hub)
    top.unique("checkpoints", [checkpoint.id for checkpoint in checkpoints])
    base, rows = top.node("base"), top.node("rows") if "rows" in top.value else None
    merge, subsets = top.node("merge"), top.node("subsets") if "subsets" in top.value else None
    return HubCard(
        id=top.identifier("id"),
        title=top.text("title", 200),
        summary=top.text("summary", 4000),
        family=top.choice("family", HUB_FAMILIES),
        base=base.repository("hub"),
        include=merge.texts("include", 64, 200),
        exclude=merge.texts("exclude", 1024, 200, least=0),
        checkpoints=checkpoints,
        tasks=tasks,
        subsets={name: subsets.choices(name, ids) for name in subsets.value} if subsets else {},
        tokens=base.count("tokens", 2, 1 << 16) if "tokens" in base.value else 128,
        answer_tokens=base.count("answer_tokens", 1, 4096) if "answer_tokens" in base.value else 32,
        scale=base.number("scale", 1, 1000) if "scale" in base.value else 20.0,
        rows={s: rows.count(s, 2, _MAX_ROWS) if rows and s in rows.value else ROWS[s] for s in SPLITS},
    )


def hub_view(id_or_path: str) -> HubCard:
    """A card of the Hub by id or file, or what a pool of this machine needs of the Hub: its base.

    Raises FwvizError for a pool that needs nothing, and for what is neither.
    """
    if id_or_path in hub_card_ids() or id_or_path.endswith(".yaml"):
        return load_hub_card(id_or_path if id_or_path in hub_card_ids() else Path(id_or_path))
    if id_or_path not in pool_ids() and os.sep not in id_or_path:
        known = ", ".join((*hub_card_ids(), *pool_ids()))
        raise FwvizError(f"there is no card or pool {id_or_path!r}: choose from {known}.")
    card = pool_card(id_or_path)
    if "hub" not in card.base:
        raise FwvizError(f"pool {card.id!r} lies whole in {card.root}: it needs nothing of the Hub.")
    summary = f"Checkpoints and data lie in {card.root}; the base is on the Hub."
    return HubCard(card.id, card.title, summary, card.family, card.base["hub"], (), (), (), (), {})


def _slug(top: Node, task: str) -> str:
    """How the repositories spell a task where they spell it otherwise than the card."""
    names = top.node("spelling").value if "spelling" in top.value else {}
    return str(names.get(task, task))


def _model(node: Node) -> HubModel:
    return HubModel(
        node.identifier("id"), node.repository("hub"), node.identifier("task"), node.text("kind", 40, optional=True)
    )


def _task(top: Node, node: Node, catalogue: dict[str, Node]) -> HubTask:
    """A task of the card; what it leaves out is taken from the catalogue's task of the same id."""
    name = node.identifier("id")
    listed = catalogue[name].value if name in catalogue else {}
    full = Node(node.file, node.place, {**listed, **node.value})
    data = full.node("data")
    read: dict[str, Any] = {"hub": data.repository("hub"), "licence": data.text("licence", 100, optional=True)}
    read |= {key: data.text(key, 100) for key in ("config", "inputs", "label") if key in data.value}
    read["splits"] = {key: data.node("splits").text(key, 100) for key in data.node("splits").value}
    return HubTask(
        id=name,
        title=full.text("title", 200),
        metric=next(metric for metric in METRICS if metric == full.choice("metric", METRICS)),
        classes=full.texts("classes", 10_000, 300, least=2) if "classes" in full.value else (),
        prompts=full.texts("prompts", 256, 300) if "prompts" in full.value else (),
        data=read,
        prompt=full.text("prompt", 2000, optional=True),
    )


# --- looking, without loading -------------------------------------------------------------------


def check_card(card: HubCard, *, data: bool = True, offline: bool = False) -> tuple[RepoReport, ...]:
    """What of a card is on this machine, and what a download would take: one report per repository, nothing loaded.

    With ``offline`` only the Hub's cache is looked at. Raises FwvizError if the Hub cannot be asked at all.
    """
    wanted = repositories(card, data=data)
    if offline:
        return tuple(_local_report(hub, kind) for hub, kind in wanted)
    with ThreadPoolExecutor(_TOGETHER) as pool:
        return tuple(pool.map(lambda pair: _report(*pair), wanted))


def repositories(card: HubCard, *, data: bool = True) -> list[tuple[str, Kind]]:
    """Every repository a card needs, each once: the base, the checkpoints, the data sets."""
    models: list[tuple[str, Kind]] = [(card.base, "model"), *((c.hub, "model") for c in card.checkpoints)]
    sets: list[tuple[str, Kind]] = [(task.data["hub"], "dataset") for task in card.tasks] if data else []
    return list(dict.fromkeys([*models, *sets]))


def _local_report(hub: str, kind: Kind) -> RepoReport:
    folder = cached_snapshot(hub, kind)
    here = folder is not None and any(folder.rglob("*.safetensors" if kind == "model" else "*.parquet"))
    return RepoReport(
        hub, kind, "here" if here else "missing", None, None if not here else 0, "", "the Hub was not asked"
    )


def check_id(text: str) -> None:
    """Raise FwvizError unless a text is the id of a repository."""
    if not REPOSITORY.fullmatch(text) or ".." in text or "--" in text or text.endswith((".", "-")):
        raise FwvizError(f"{text[:60]!r} is no id of a repository on the Hub: write owner/name.")


def look(hub: str, kind: Kind = "model", *, anonymous: bool = False) -> RepoReport:
    """What one repository would take; with ``anonymous`` as anybody may see it, whatever token this machine has."""
    return _report(hub, kind, anonymous)


def require(hub: str, *, anonymous: bool = False) -> RepoReport:
    """What a model of the Hub would take; FwvizError if it cannot be had, or is there as pickles only."""
    check_id(hub)
    report = look(hub, anonymous=anonymous)
    if report.state == "refused":
        note = report.note.removeprefix(f"{hub} ").removesuffix(".")
        who = "" if note == report.note.removesuffix(".") and not note.startswith("has ") else "it "
        raise FwvizError(f"{hub} cannot be had: {who}{note}.")
    return report


def _report(hub: str, kind: Kind, anonymous: bool = False) -> RepoReport:
    try:
        info = _info(hub, kind, anonymous)
    except _Refused as refused:
        local = _local_report(hub, kind)
        return local if local.state == "here" else RepoReport(hub, kind, "refused", None, None, "", str(refused))
    files = _wanted(info, kind)
    total = sum(size for _, size in files)
    folder = cached_snapshot(hub, kind)
    missing = sum(size for name, size in files if folder is None or not (folder / name).exists())
    licence = _licence(info)
    heavy = "safetensors" if kind == "model" else "parquet"
    if not any(name.endswith(heavy) for name, _ in files):
        note = f"has no {heavy} file" + (": only pickles, which are never loaded" if _has_pickles(info) else "")
        return RepoReport(hub, kind, "refused", total, missing, licence, note)
    gated = bool(getattr(info, "gated", False)) and missing
    note = "asks for an agreement on its page and a token (hf auth login)" if gated else ""
    return RepoReport(hub, kind, "missing" if missing else "here", total, missing, licence, note)


# --- loading ------------------------------------------------------------------------------------


def fetch(hub: str, kind: Kind = "model", *, anonymous: bool = False, cache: Path | None = None) -> Path:
    """Download what a merge needs of a repository into the Hub's cache, or another one, and return its folder.

    With ``anonymous`` as anybody may, whatever token this machine has.
    Files that are there are kept; an interrupted file is taken up again. One sentence for every way it can fail.
    """
    from huggingface_hub import snapshot_download

    patterns = list(MODEL_FILES if kind == "model" else _DATA_FILES)
    with _asking(hub), _quiet():
        return Path(
            snapshot_download(
                hub,
                repo_type=kind,
                allow_patterns=patterns,
                cache_dir=cache or hub_cache(),
                endpoint=_endpoint(),
                max_workers=2,
                token=False if anonymous else None,
            )
        )


class _Refused(FwvizError):
    """The Hub gave no answer about one repository; the others may still be had."""


@contextlib.contextmanager
def _asking(hub: str) -> Iterator[None]:
    """Turn the ways a question to the Hub can fail into one sentence each."""
    from huggingface_hub import errors

    transport = _transport_errors()

    try:
        yield
    except errors.GatedRepoError:
        raise _Refused(f"{hub} is gated: agree to its terms on its page and log in with `hf auth login`.") from None
    except errors.RepositoryNotFoundError:
        raise _Refused(f"{hub} is not on the Hub, or private: correct the id or log in with `hf auth login`.") from None
    except errors.RevisionNotFoundError:
        raise _Refused(f"{hub} has no such revision: correct the card.") from None
    except errors.OfflineModeIsEnabled:
        raise _Refused(f"{hub} is not in the cache and HF_HUB_OFFLINE is set: unset it to download.") from None
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            status = error.__cause__.response.status_code
            raise _Refused(f"{hub} could not be read: {_meaning(status)}.") from None
        raise _Refused(f"{hub} is not in the cache and the Hub cannot be reached: check the network.") from None
    except errors.HfHubHTTPError as error:
        raise _Refused(f"{hub} could not be read: {_meaning(error.response.status_code)}.") from None
    except transport as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        if "size" in text.lower() or "consistency" in text.lower() or "peer closed" in text.lower():
            raise _Refused(f"the download of {hub} was cut off: try again, what is there is kept.") from None
        raise _Refused(f"{hub} could not be read ({text}): check the network and try again.") from None


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the client's way of speaking HTTP raises, which differs between its versions."""
    found: list[type[Exception]] = [OSError, ValueError]
    for library in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(library).HTTPError)
    return tuple(found)


def _meaning(status: int) -> str:
    known = {
        401: "it needs a token (hf auth login)",
        403: "the token may not read it",
        404: "it is not there",
        429: "the Hub asks for a pause: try again in some minutes",
    }
    return known.get(status, f"the Hub answered {status}; try again later")


def _info(hub: str, kind: Kind, anonymous: bool) -> Any:
    from huggingface_hub import HfApi

    with _asking(hub), _quiet():
        return HfApi(endpoint=_endpoint(), token=False if anonymous else None).repo_info(
            hub, repo_type=kind, files_metadata=True, timeout=20
        )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings of the client between our lines."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    before, level = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not before:
            enable_progress_bars()


def _wanted(info: Any, kind: Kind) -> list[tuple[str, int]]:
    """(name, bytes) of the files a merge needs."""
    from fnmatch import fnmatch

    patterns = MODEL_FILES if kind == "model" else _DATA_FILES
    files = [(str(file.rfilename), int(file.size or 0)) for file in info.siblings or ()]
    return [(name, size) for name, size in files if any(fnmatch(name, pattern) for pattern in patterns)]


def _has_pickles(info: Any) -> bool:
    return any(str(file.rfilename).endswith(_PICKLES) for file in info.siblings or ())


def _licence(info: Any) -> str:
    card = getattr(info, "card_data", None)
    licence = card.get("license") if card is not None else None
    if isinstance(licence, Sequence) and not isinstance(licence, str):
        return ", ".join(map(str, licence))
    return str(licence) if licence else "not said"
