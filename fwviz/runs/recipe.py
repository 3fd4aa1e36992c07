"""A recipe: plain data that says a whole run, validated in one place.

It is the file the CLI reads, the state in a shared link and the provenance of an export. Everything that comes from
outside becomes a :class:`Recipe` through :meth:`Recipe.from_dict`, which raises nothing but ``FwvizError``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

import yaml

from fwviz.backbones.precision import PRECISIONS
from fwviz.cards import PoolCard
from fwviz.registry import describe_settings, entry, parse_settings
from fwviz.types import GRANULARITIES, Coefficients, FwvizError, Granularity

MAX_BYTES = 64 * 1024
MAX_IDS = 1000
MAX_CELLS = 5000
MAX_COEFFICIENT = 10.0
MAX_LINK_COEFFICIENTS = 2000  # characters
GIVEN = "given_coefficients"  # the method that merges with the coefficients of its recipe
DTYPES = ("float32", "bfloat16", "float16")
STORAGES = ("resident", "streamed")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")  # whatever a card may call its parts
_DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,2})?")


@dataclass(frozen=True)
class Recipe:
    """What to merge, for which tasks, how.

    ``pool`` is the id of a pool, or the path of a pool folder (not in links). ``settings`` holds every setting of the
    method, defaults included, so that a recipe keeps its meaning when a default changes. ``dtype`` is the type the task
    vectors are held in; ``storage`` says whether they stay in memory or are read from disk whenever they are needed.
    ``precision`` is what the model's products are computed in. It is part of the recipe, as ``device`` is, because it
    changes losses and gradients: a run in bfloat16 is never taken for one in float32.
    ``coefficients`` are those of a merge by hand (method ``given_coefficients``), with 6 significant digits.
    """

    pool: str
    checkpoints: tuple[str, ...]
    tasks: tuple[str, ...]
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    storage: Literal["resident", "streamed"] = "resident"
    precision: str = "float32"
    coefficients: Coefficients | None = None

    # --- from outside ---------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Any, card: PoolCard | None = None) -> Recipe:
        """A validated recipe from plain data.

        With the ``card`` of the pool the ids are checked against it, and absent ``checkpoints`` or ``tasks`` become the
        pool's default. Raises FwvizError naming the field.
        """
        if not isinstance(values, Mapping):
            raise FwvizError(f"a recipe is a mapping of field to value, but this is {_show(values)}.")
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise FwvizError(f"a recipe has no field {_show(name)}: the fields are {', '.join(known)}.")
        method = _text("method", values.get("method"))
        settings = _settings(method, values.get("settings", {}))
        recipe = cls(
            pool=_text("pool", values.get("pool"), longest=1024),
            checkpoints=_ids("checkpoints", values.get("checkpoints"), card.default_checkpoints if card else None),
            tasks=_ids("tasks", values.get("tasks"), card.default_tasks if card else None),
            method=method,
            settings=settings,
            seed=_seed(values.get("seed", 0)),
            device=_device(values.get("device", "cpu")),
            dtype=_choice("dtype", values.get("dtype", "float32"), DTYPES),
            storage=_storage(values.get("storage", "resident")),
            precision=_choice("precision", values.get("precision", "float32"), PRECISIONS),
            coefficients=_coefficients(values.get("coefficients")),
        )
        if recipe.coefficients is not None:
            recipe._check_coefficients(recipe.coefficients)
        if recipe.storage == "streamed" and recipe.dtype != "float32":
            raise FwvizError("recipe field 'dtype' must be float32 when 'storage' is streamed.")
        if card is not None:
            recipe.check(card)
        return recipe

    @classmethod
    def from_text(cls, text: str, card: PoolCard | None = None) -> Recipe:
        """A recipe from YAML or JSON of at most 64 KiB."""
        return cls.from_dict(plain_from_text(text), card)

    @classmethod
    def from_url(cls, query: str | Mapping[str, str], card: PoolCard | None = None) -> Recipe:
        """A recipe from the query of a link, as :meth:`to_url` writes it; parameters of others are left alone.

        A link may name a pool by its id only, so that no link can make the server open a folder of its choice.
        """
        if isinstance(query, str):
            _check_size(query)
            try:
                pairs = dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True, max_num_fields=200))
            except ValueError as error:
                raise FwvizError(f"the link cannot be read ({_first_line(error)}).") from None
        else:
            pairs = {str(key): value for key, value in query.items()}
        values: dict[str, Any] = {name: pairs[name] for name in _SCALARS if name in pairs}
        for name in ("checkpoints", "tasks"):
            if name in pairs:
                values[name] = _text(name, pairs[name], longest=MAX_BYTES).split(",")
        values["settings"] = {name[4:]: value for name, value in pairs.items() if name.startswith("set.")}
        pool = _text("pool", values.get("pool"))
        if not _ID.fullmatch(pool):
            raise FwvizError(f"recipe field 'pool' is {_show(pool)}, but a link can only name a pool by its id.")
        return cls.from_dict(values, card)

    def check(self, card: PoolCard) -> None:
        """Raise FwvizError unless every checkpoint and task is in the pool."""
        for name in self.checkpoints:
            card.checkpoint(name)
        for name in self.tasks:
            card.task(name)

    # --- to outside -----------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What the merge is called: its method, or the base where every coefficient given is 0."""
        if self.coefficients is not None and not any(map(any, self.coefficients.values)):
            return "The base"
        return entry("methods", self.method).title

    def to_dict(self) -> dict[str, Any]:
        """Plain data: strings, numbers, lists and mappings. Coefficients are left out where there are none.

        So is a precision of float32: recipes from before there was a choice keep their fingerprints.
        """
        plain = {**asdict(self), "checkpoints": list(self.checkpoints), "tasks": list(self.tasks)}
        if self.precision == "float32":
            del plain["precision"]
        given = plain.pop("coefficients")
        if given is not None:
            plain["coefficients"] = {**given, "values": [list(row) for row in given["values"]]}
        return plain

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def to_yaml(self) -> str:
        plain = self.to_dict()
        given = plain.pop("coefficients", None)
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
        if given is None:
            return text
        # A group of weights is a line: this part is there to be read and edited.
        return text + yaml.safe_dump({"coefficients": given}, sort_keys=False, default_flow_style=None, width=10**6)

    def to_url(self) -> str:
        """The query of a link (without ``?``); what equals a default is left out."""
        if not _ID.fullmatch(self.pool):
            raise FwvizError(f"pool {self.pool!r} is a folder of this machine: a link can only name a pool by its id.")
        pairs = {"pool": self.pool, "method": self.method, "tasks": ",".join(self.tasks)}
        pairs["checkpoints"] = ",".join(self.checkpoints)
        pairs |= {f"set.{name}": _plain(value) for name, value in self.changed_settings().items()}
        pairs |= {name: str(value) for name, value in self._changed_fields().items()}
        if self.coefficients is not None:
            pairs["coefficients"] = coefficients_text(self.coefficients)
            if len(pairs["coefficients"]) > MAX_LINK_COEFFICIENTS:
                raise FwvizError("these coefficients are too many for a link: share the recipe as a file.")
        return urlencode(pairs, safe=",:")

    def cli_line(self) -> str:
        """The shell command that repeats this run."""
        words = ["fwviz", "merge", "--pool", self.pool, "--method", self.method]
        words += ["--tasks", *self.tasks, "--checkpoints", *self.checkpoints]
        for name, value in self.changed_settings().items():
            words += ["--set", f"{name}={_plain(value)}"]
        for name, value in self._changed_fields().items():
            words += [f"--{name}", str(value)]
        if self.coefficients is not None:
            words.append(f"--coefficients={coefficients_text(self.coefficients)}")
        return shlex.join(words)

    def _check_coefficients(self, given: Coefficients) -> None:
        if self.method != GIVEN:
            raise FwvizError(f"method {self.method!r} finds its own coefficients: drop them, or set method to {GIVEN}.")
        columns = len(given.values[0])
        if columns != len(self.checkpoints):
            raise FwvizError(
                f"the coefficients have {columns} columns, but there are {len(self.checkpoints)} checkpoints: give one "
                "number per checkpoint in every row."
            )

    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON: equal for equal recipes, whatever the order of keys."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def changed_settings(self) -> dict[str, Any]:
        """The settings that differ from the method's defaults."""
        cls = entry("methods", self.method).settings
        defaults = {spec.name: spec.default for spec in describe_settings(cls)} if cls else {}
        return {name: value for name, value in self.settings.items() if defaults.get(name) != value}

    def method_settings(self) -> Any:
        """The settings as the method's own frozen dataclass, None if it has none."""
        cls = entry("methods", self.method).settings
        return parse_settings(cls, self.settings) if cls else None

    def _changed_fields(self) -> dict[str, Any]:
        defaults = {f.name: f.default for f in fields(self)}
        names = ("seed", "device", "dtype", "storage", "precision")
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}


_SCALARS = ("pool", "method", "seed", "device", "dtype", "storage", "precision", "coefficients")


# --- one parser per field -----------------------------------------------------------------------


def _text(name: str, value: Any, longest: int = 200) -> str:
    if value is None:
        raise FwvizError(f"the recipe lacks the field {name!r}.")
    # isprintable also refuses lone surrogates, which no file or hash could hold.
    if not isinstance(value, str) or not value.strip() or len(value) > longest or not value.isprintable():
        raise FwvizError(f"recipe field {name!r} is {_show(value)}, but must be a short text.")
    return value


def _ids(name: str, value: Any, default: Sequence[str] | None) -> tuple[str, ...]:
    if value is None and default:
        value = list(default)
    if value is None:
        raise FwvizError(f"the recipe lacks the field {name!r}.")
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise FwvizError(f"recipe field {name!r} is {_show(value)}, but must be a list of ids.")
    if not 1 <= len(value) <= MAX_IDS:
        raise FwvizError(f"recipe field {name!r} has {len(value)} ids, but must have between 1 and {MAX_IDS}.")
    for item in value:
        if not isinstance(item, str) or not _ID.fullmatch(item):
            raise FwvizError(f"recipe field {name!r} holds {_show(item)}, which is not an id.")
    twice = next((item for item in value if list(value).count(item) > 1), None)
    if twice is not None:
        raise FwvizError(f"recipe field {name!r} names {twice!r} twice: name each once.")
    return tuple(value)


def _settings(method: str, value: Any) -> dict[str, Any]:
    cls = entry("methods", method).settings
    if not isinstance(value, Mapping):
        raise FwvizError(f"recipe field 'settings' is {_show(value)}, but must be a mapping of setting to value.")
    for name, item in value.items():
        _text("settings", name)
        plain = isinstance(item, bool | int | float) or (isinstance(item, str) and len(item) <= 200)
        if not plain or (isinstance(item, int) and abs(item) > 2**53):
            raise FwvizError(f"setting {name!r} is {_show(item)}, but must be a number, a short text, true or false.")
    if cls is None:
        if value:
            raise FwvizError(f"method {method!r} has no settings, so {next(iter(value))!r} cannot be set.")
        return {}
    return asdict(parse_settings(cls, value))


def _seed(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)  # number fields of a browser send 3.0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise FwvizError(f"recipe field 'seed' is {_show(value)}, but must be a whole number from 0 to {2**31 - 1}.")
    return value


def _device(value: Any) -> str:
    if not isinstance(value, str) or not _DEVICE.fullmatch(value):
        raise FwvizError(f"recipe field 'device' is {_show(value)}, but must be cpu, mps, cuda or cuda:<number>.")
    return value


def _storage(value: Any) -> Literal["resident", "streamed"]:
    return "streamed" if _choice("storage", value, STORAGES) == "streamed" else "resident"


def coefficients_text(given: Coefficients) -> str:
    """Coefficients in one word, such as ``layer:0.3,0.3_0.5,0``: rows are parted by ``_``. Read back by a recipe."""
    return f"{given.granularity}:" + "_".join(",".join(f"{value:.6g}" for value in row) for row in given.values)


def _coefficients(value: Any) -> Coefficients | None:
    if value is None:
        return None
    if isinstance(value, str):
        granularity, colon, rest = value.partition(":")
        rows: Any = [row.split(",") for row in rest.split("_")] if colon else None
    elif isinstance(value, Mapping) and set(value) == {"granularity", "values"}:
        granularity, rows = value["granularity"], value["values"]
    else:
        raise FwvizError(f"recipe field 'coefficients' is {_show(value)}, but must have 'granularity' and 'values'.")
    known: Granularity | None = next((g for g in GRANULARITIES if g == granularity), None)
    if known is None:
        raise FwvizError(
            f"the granularity of the coefficients is {_show(granularity)}, but must be {', '.join(GRANULARITIES)}."
        )
    if not _is_list(rows) or not rows or not all(_is_list(row) and row for row in rows):
        raise FwvizError("the coefficients must be a list of rows, and each row a list of numbers.")
    if len({len(row) for row in rows}) > 1 or (known == "model" and len(rows) > 1):
        raise FwvizError("the rows of the coefficients must be equally long, one per group; a model is one group.")
    if len(rows) * len(rows[0]) > MAX_CELLS:
        raise FwvizError(
            f"there are {len(rows) * len(rows[0])} coefficients, but a recipe holds at most {MAX_CELLS}: give them per "
            "layer, or for fewer checkpoints."
        )
    return Coefficients(known, tuple(tuple(_coefficient(item) for item in row) for row in rows))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _coefficient(value: Any) -> float:
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not abs(number) <= MAX_COEFFICIENT:  # also refuses not-a-number
        bounds = f"{-MAX_COEFFICIENT:g} and {MAX_COEFFICIENT:g}"
        raise FwvizError(f"a coefficient is {_show(value)}, but must be a number between {bounds}.")
    return float(f"{number:.6g}") + 0.0  # no negative zero


def _choice(name: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise FwvizError(f"recipe field {name!r} is {_show(value)}, but must be one of {', '.join(choices)}.")
    return value


# --- text ---------------------------------------------------------------------------------------


def plain_from_text(text: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON text of at most 64 KiB: scalars, lists, mappings; no aliases, no repeated keys.

    Its values are not checked; :meth:`Recipe.from_dict` does that.
    """
    _check_size(text)
    try:
        if text.lstrip().startswith("{"):
            values = json.loads(text, object_pairs_hook=_unique)
        else:
            values = yaml.load(text, Loader=_PlainLoader)  # a SafeLoader
    # PyYAML's constructors leak KeyError, IndexError, AttributeError … on values such as "!!bool x".
    except Exception as error:
        raise FwvizError(f"the recipe is neither YAML nor JSON ({_first_line(error)}).") from None
    if not isinstance(values, dict):
        raise FwvizError(f"a recipe is a mapping of field to value, but this is {_show(values)}.")
    return values


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without aliases (a few of them expand to gigabytes) and without silently repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise yaml.YAMLError("a key is given twice")
        return super().construct_mapping(node, deep)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is given twice")
    return values


def _check_size(text: Any) -> None:
    if not isinstance(text, str):
        raise FwvizError(f"a recipe file is text, but this is {type(text).__name__}.")
    if len(text) > MAX_BYTES:
        raise FwvizError(f"the recipe has {len(text)} characters, but at most {MAX_BYTES} are read.")


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _show(value: Any) -> str:
    """A short repr that never walks into a container (its repr may be huge)."""
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**20 else "a huge number"
    if isinstance(value, str):
        return ascii(value if len(value) <= 60 else value[:57] + "...")
    return f"a {type(value).__name__}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
