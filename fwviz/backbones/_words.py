"""What models that answer in words share: transformers' own modules, filled from files and bound to one flat vector.

The module is built from ``config.json`` by transformers itself, so that its mathematics is the library's; no code and
no pickle of a repository is ever run. Samples are packed as one tensor (N, 1 + C, T): row 0 the prompt, the others the
answers that are compared, −1 behind the end of each.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fwviz.backbones._texts import WHOLE, Text, encode_typed, padded, read_tokenizer
from fwviz.backbones.clip_config import read_json
from fwviz.backbones.precision import computing
from fwviz.space.binding import FlatParameters, bind
from fwviz.space.files import CheckpointFile, ModelFiles
from fwviz.types import FwvizError, ParamLayout

Kind = Literal["seq2seq", "causal"]

# The kinds of models each family is tested with.
TYPES: dict[Kind, tuple[str, ...]] = {"seq2seq": ("t5",), "causal": ("gpt2", "llama")}
# What must be equal for a base and its checkpoints, as far as a kind of model has it.
_FACTS = (
    "model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
    "feed_forward_proj", "relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon",
    "scale_decoder_outputs", "n_embd", "n_layer", "n_head", "n_inner", "n_positions", "activation_function",
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "rms_norm_eps", "max_position_embeddings",
)  # fmt: skip
# What a whole causal model puts in front of the names of all but its output layer.
PREFIXES = ("transformer.", "model.")
# The output layer, and the embeddings it may be tied to.
_OUTPUT = "lm_head.weight"
_TABLES = ("shared.weight", "transformer.wte.weight", "wte.weight", "model.embed_tokens.weight")
_LARGEST = 1 << 24  # of any size a configuration names
_MOST_LAYERS = 1 << 10
_TAIL = 64  # characters of a prompt that can change how an answer behind it is cut into tokens


@dataclass(frozen=True)
class TokeniseWords:
    """Prompts and the answers compared → (N, 1 + C, T) int32, −1 behind each end. Every answer ends with the end mark.

    A prompt too long for a causal model loses its beginning, for others its end.
    """

    file: Path
    kind: Kind
    vocabulary: int
    longest: int
    longest_answer: int
    end: int

    def __call__(self, texts: Sequence[Text], answers: Sequence[Sequence[str]] = ()) -> Tensor:
        """Raises FwvizError for pairs of texts, or if an answer has no tokens."""
        prompts = [text for text in texts if isinstance(text, str)]
        if len(prompts) < len(texts):
            raise FwvizError("a model that answers in words reads one prompt per sample: write pairs into one text.")
        side: Literal["left", "right"] = "left" if self.kind == "causal" else "right"
        cut = read_tokenizer(self.file, self.longest, side)
        asked = [ids for ids, _ in encode_typed(cut, prompts, self.vocabulary)]
        whole = read_tokenizer(self.file, WHOLE)
        known: dict[tuple[str, str], list[int]] = {}
        rows: list[list[list[int]]] = []
        for prompt, ids, said in zip(prompts, asked, answers, strict=True):
            tail = prompt[-_TAIL:] if self.kind == "causal" else ""
            rows.append([ids, *(self._answer(whole, tail, answer, known) for answer in said)])
        flat = padded([ids for sample in rows for ids in sample])
        return flat.view(len(rows), -1, flat.shape[1])

    def _answer(self, tokenizer: Any, tail: str, answer: str, known: dict[tuple[str, str], list[int]]) -> list[int]:
        """The tokens of an answer as they stand behind a prompt that ends with ``tail``, and the end mark."""
        if (tail, answer) not in known:
            joined = answer if not tail or tail[-1].isspace() else f" {answer}"
            both = [tail + joined, tail, joined] if tail else [joined]
            coded = [ids for ids, _ in encode_typed(tokenizer, both, self.vocabulary, special=False)]
            behind = coded[0][: len(coded[1])] == coded[1] if tail else False
            ids = coded[0][len(coded[1]) :] if behind else coded[-1]
            if not ids:
                raise FwvizError(f"the answer {answer[:40]!r} has no tokens: correct the task or the tokenizer.")
            known[tail, answer] = [*ids[: self.longest_answer - 1], self.end]
        return known[tail, answer]


class WordsModel:
    """A seq2seq or causal language model of transformers whose weights lie in one flat vector.

    One instance serves one job: ``lock`` is held by whoever sets its weights and reads its outputs.
    """

    def __init__(self, module: Any, architecture: WordsArchitecture, device: torch.device) -> None:
        self.module: Any = module
        self.device = device
        self.precision = torch.float32
        self.lock = threading.RLock()
        self.flat: FlatParameters | None = None
        self._architecture = architecture

    @property
    def chunk(self) -> int:
        """Samples per pass: enough to keep the device busy, few enough to bound memory and to stop soon."""
        budget = 2_000_000 if self.device.type == "cpu" else 64_000_000  # numbers in one hidden state
        return max(1, min(128, budget // (self._architecture.tokenise.longest * self._architecture.width)))

    def bind(self, layout: ParamLayout) -> FlatParameters:
        """Move the merged weights into one flat vector; the others are frozen. Returned and kept as ``flat``."""
        own, theirs = self._architecture.prefixes
        self.flat = bind(self.module, layout, {own: theirs} if own != theirs else None)
        return self.flat

    def log_probs(self, inputs: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ln p of every token of the answers given the prompt and what goes before it.

        inputs (B, 1 + C, T), ``chosen`` (B,) picks one answer per sample, all if None → (B, C or 1, L), 0 behind an
        answer's end, and the numbers of tokens (B, C or 1).
        """
        inputs = inputs.to(self.device).long()
        prompts, answers = _trimmed(inputs[:, 0]), inputs[:, 1:]
        if chosen is not None:
            answers = answers[torch.arange(len(inputs), device=self.device), chosen.to(self.device)][:, None]
        count, length = answers.shape[1], max(int((answers >= 0).sum(-1).max()), 1)
        said = answers[..., :length].reshape(-1, length)
        kept = said >= 0
        found = self._logits(prompts, said, count).log_softmax(-1).gather(-1, said.clamp_min(0)[..., None])[..., 0]
        return found.mul(kept).view(-1, count, length), kept.sum(-1).view(-1, count)

    def first(self, inputs: Tensor) -> Tensor:
        """ln p of every word as the first one of an answer: (B, vocabulary)."""
        prompts = _trimmed(inputs[:, 0].to(self.device).long())
        nothing = torch.full((len(prompts), 1), -1, device=self.device)
        return self._logits(prompts, nothing, 1)[:, 0].log_softmax(-1)

    @torch.no_grad()
    def write(self, inputs: Tensor) -> list[str]:
        """The answer to each prompt, word after word the likeliest (greedy), up to the end mark."""
        tokenise = self._architecture.tokenise
        prompts = _trimmed(inputs[:, 0].to(self.device).long())
        mask = prompts >= 0
        if not self._is_seq2seq:  # what is written follows the last column
            order = mask.long().argsort(dim=1, stable=True)
            prompts, mask = prompts.gather(1, order), mask.gather(1, order)
        with computing(self.device, self.precision):
            written = self.module.generate(
                input_ids=prompts.clamp_min(0),
                attention_mask=mask.long(),
                do_sample=False,
                num_beams=1,
                max_new_tokens=tokenise.longest_answer,
                eos_token_id=tokenise.end,
                pad_token_id=tokenise.end,
            )
        start = 1 if self._is_seq2seq else prompts.shape[1]
        rows = [row[: row.index(tokenise.end)] if tokenise.end in row else row for row in written[:, start:].tolist()]
        return [text.strip() for text in read_tokenizer(tokenise.file, WHOLE).decode_batch(rows)]

    @property
    def _is_seq2seq(self) -> bool:
        return self._architecture.tokenise.kind == "seq2seq"

    def _logits(self, prompts: Tensor, said: Tensor, count: int) -> Tensor:
        """Logits of each token of the answers, float32: (B, T), (B·count, L) → (B·count, L, vocabulary)."""
        with computing(self.device, self.precision):
            made = self._seq2seq(prompts, said, count) if self._is_seq2seq else self._causal(prompts, said, count)
        return made.float()

    def _seq2seq(self, prompts: Tensor, said: Tensor, count: int) -> Tensor:
        """Logits of each token of the answers: (B, T), (B·count, L) → (B·count, L, vocabulary). One encoder pass."""
        from transformers.modeling_outputs import BaseModelOutput

        mask = (prompts >= 0).long()
        states = self.module.get_encoder()(input_ids=prompts.clamp_min(0), attention_mask=mask).last_hidden_state
        start = torch.full_like(said[:, :1], self._architecture.start)
        return self.module(
            encoder_outputs=BaseModelOutput(last_hidden_state=states.repeat_interleave(count, 0)),
            attention_mask=mask.repeat_interleave(count, 0),
            decoder_input_ids=torch.cat([start, said[:, :-1].clamp_min(0)], dim=1),
            use_cache=False,
        ).logits

    def _causal(self, prompts: Tensor, said: Tensor, count: int) -> Tensor:
        """The same for a causal model: only the states before the answers' tokens meet the vocabulary."""
        prompts = prompts.repeat_interleave(count, 0)
        lengths = (prompts >= 0).sum(1)
        row = torch.cat([prompts, said], dim=1)
        # Behind its prompt each answer begins at once: what is padding goes to the end of the row.
        row = row.gather(1, (row < 0).long().argsort(dim=1, stable=True))
        states = self.module.base_model(
            input_ids=row.clamp_min(0), attention_mask=(row >= 0).long(), use_cache=False
        ).last_hidden_state
        places = lengths[:, None] - 1 + torch.arange(said.shape[1], device=self.device)
        picked = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
        return self.module.get_output_embeddings()(picked)


@dataclass(frozen=True)
class WordsArchitecture:
    """The folder of a language model, opened: which of the module's parameters each tensor of its files is.

    ``homes`` maps a file's name to the module's parameters it fills, several where they are tied. ``prefixes`` are what
    the module and the files put in front of the same names.
    """

    folder: Path
    tokenise: TokeniseWords
    start: int
    width: int
    homes: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    prefixes: tuple[str, str]

    @property
    def facts(self) -> Mapping[str, object]:
        """Sizes of the model."""
        return read_words_facts(self.folder)

    def backbone(self, tensors: Mapping[str, Tensor], device: torch.device | str) -> WordsModel:
        """The model with these weights, which are shared until they are bound."""
        from transformers.initialization import no_init_weights

        where = torch.device(device)
        with no_init_weights():
            module = _from_config(_config(self.folder), self.tokenise.kind)
        for name, places in self.homes.items():
            parameter = nn.Parameter(tensors[name].to(where, torch.float32), requires_grad=False)
            for place in places:
                owner, _, leaf = place.rpartition(".")
                setattr(module.get_submodule(owner), leaf, parameter)
        return WordsModel(module.to(where).eval(), self, where)  # which moves buffers only


def read_words(folder: Path, base: Mapping[str, Any], kind: Kind) -> WordsArchitecture:
    """Open the base of a pool: configuration and headers; tied tensors that are saved twice are compared.

    Raises:
        FwvizError: a file is missing or damaged, they contradict each other, the card, or what transformers builds.
    """
    config = _config(folder)
    if config.model_type not in TYPES[kind]:
        raise FwvizError(
            f"{folder / 'config.json'} is of model_type {config.model_type!r}, but only {', '.join(TYPES[kind])} can "
            f"be read here."
        )
    with torch.device("meta"):
        module = _from_config(config, kind)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters(remove_duplicate=False)}
    same: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    files = ModelFiles(folder)
    try:
        prefixes = _prefixes(f"{module.base_model_prefix}.", shapes, files)
        homes, aliases = _homes(files, list(same.values()), prefixes)
        found = {name: files.tensors[name].shape for name in homes}
        for name, places in homes.items():
            if found[name] != shapes[places[0]]:
                raise FwvizError(
                    f"{files.path}: tensor {name!r} has shape {found[name]}, but its config.json says "
                    f"{shapes[places[0]]}."
                )
    finally:
        files.close()
    tokenise = read_words_tokenise(folder, base, kind)
    start = getattr(config, "decoder_start_token_id", None)
    return WordsArchitecture(
        folder=folder,
        tokenise=tokenise,
        start=int(start if start is not None else config.pad_token_id or 0),
        width=int(getattr(config, "d_model", None) or config.hidden_size),
        homes=homes,
        tensors=found,
        aliases=aliases,
        prefixes=prefixes,
    )


def read_words_tokenise(folder: Path, base: Mapping[str, Any], kind: Kind) -> TokeniseWords:
    """The tokenizer of a base's folder, cutting prompts and answers where the card says."""
    config = _config(folder)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if type(ends[0]) is not int or not 0 <= ends[0] < config.vocab_size:
        raise FwvizError(
            f"{folder / 'config.json'} names no eos_token_id of its vocabulary: an answer needs an end mark."
        )
    room = longest_of(folder, kind)
    if room is not None and base["tokens"] + base["answer_tokens"] > room:
        raise FwvizError(
            f"the pool card's base.tokens and base.answer_tokens are {base['tokens']} and {base['answer_tokens']}, but "
            f"the model reads at most {room} together."
        )
    return TokeniseWords(
        folder / "tokenizer.json", kind, config.vocab_size, base["tokens"], base["answer_tokens"], ends[0]
    )


def longest_of(folder: Path, kind: Kind) -> int | None:
    """The tokens of prompt and answer together that a model reads at most; None if it has no limit."""
    return getattr(_config(folder), "max_position_embeddings", None) if kind == "causal" else None


def read_words_facts(folder: Path) -> Mapping[str, object]:
    """Sizes of the model of a folder, with transformers' defaults for what its configuration leaves out."""
    config = _config(folder)
    return {key: getattr(config, key) for key in _FACTS if isinstance(getattr(config, key, None), (str, int, float))}


def open_words_checkpoint(folder: Path, layout: ParamLayout) -> CheckpointFile:
    """A checkpoint of a language model; the whole model's prefix may be in its names or the base's only.

    Raises:
        FwvizError: it is damaged, of another model, or trained an output layer that the base has not.
    """
    files = ModelFiles(folder)
    names = set(files.tensors)
    try:
        if _OUTPUT in names and _OUTPUT not in layout.names and _OUTPUT not in layout.excluded:
            table = next((name for name in _TABLES if name in names), None)
            if table is not None and not torch.equal(files.read(_OUTPUT), files.read(table)):
                raise FwvizError(
                    f"{files.path} has an output layer of its own, which the base ties to its embeddings: it is a "
                    f"checkpoint of another base."
                )
    finally:
        files.close()
    # Decided by a name both must have, of the first block.
    probe = next((name for name in layout.names if ".0." in name or name.startswith("h.0.")), layout.names[0])
    for prefix in PREFIXES:
        if probe not in names and prefix + probe in names:
            return CheckpointFile(folder, layout, rename={"": prefix, "lm_head.": "lm_head."})
        if probe not in names and probe.startswith(prefix) and probe.removeprefix(prefix) in names:
            return CheckpointFile(folder, layout, rename={prefix: ""})
    return CheckpointFile(folder, layout)


def _config(folder: Path) -> Any:
    """transformers' configuration of a folder; sizes are checked before anything is built of them."""
    from transformers import AutoConfig

    path = folder / "config.json"
    for key, value in read_json(path).items():
        most = _MOST_LAYERS if "layer" in key and "norm" not in key else _LARGEST
        if type(value) is int and (value > most or value < -1):
            raise FwvizError(f"{path}: {key} is {value}, but must be at most {most}.")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise FwvizError(f"{path} is no configuration transformers knows ({reason}): save the model again.") from None


def _from_config(config: Any, kind: Kind) -> Any:
    """The module transformers builds, in float32."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config.dtype = torch.float32
    try:
        auto = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
        return auto.from_config(config, trust_remote_code=False)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise FwvizError(
            f"transformers cannot build the model of the base ({reason}): correct its config.json."
        ) from None


def _prefixes(prefix: str, shapes: Mapping[str, object], files: ModelFiles) -> tuple[str, str]:
    """What module and files put in front of the names of the same tensors, such as ``transformer.`` and nothing."""
    first = next((name for name in shapes if name.startswith(prefix)), None)
    bare = first is not None and first not in files.tensors and first.removeprefix(prefix) in files.tensors
    return (prefix, "") if bare else ("", "")


def _homes(
    files: ModelFiles, groups: Sequence[Sequence[str]], prefixes: tuple[str, str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Which parameters each tensor of the files fills, and second names of tied tensors.

    Parameters the library ties are one tensor if one name, or equal values, are saved; with different values they are
    tensors of their own, as the library loads them.
    """
    homes: dict[str, tuple[str, ...]] = {}
    aliases: dict[str, str] = {}
    own, theirs = prefixes
    for group in groups:
        saved = {}
        for place in group:
            name = theirs + place.removeprefix(own) if own and place.startswith(own) else place
            if name in files.tensors:
                saved[name] = place
        if not saved:
            raise FwvizError(f"{files.path} has no tensor {group[0]!r}: it does not fit its config.json.")
        first, *others = saved
        apart = [name for name in others if not torch.equal(files.read(first), files.read(name))]
        homes[first] = tuple(place for place in group if place not in {saved[name] for name in apart})
        homes |= {name: (saved[name],) for name in apart}
        aliases |= {name: first for name in others if name not in apart}
    return homes, aliases


def _trimmed(tokens: Tensor) -> Tensor:
    """Without the columns that are padding in every row."""
    return tokens[:, : max(int((tokens >= 0).sum(1).max()), 1)]
