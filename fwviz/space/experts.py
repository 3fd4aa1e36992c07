"""Experts: what turns a merged backbone into the weights of one task, kept in few bytes.

Every expert holds its numbers in the form in which they are stored, so that what is judged is what is saved and what
is counted; they are unpacked only while the weights of a task are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fwviz.types import FwvizError

_CHUNK = 1 << 22  # coordinates that are unpacked at a time
_POWERS = (1, 2, 4, 8, 16, 32, 64, 128)


# --- sparse -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SparseExpert:
    """A few large changes: θ_e = θ_b + scale·Σ_j values_j·1[indices_j].

    The ascending ``indices`` are stored in the smallest of three exact codes: distances between neighbours in bytes or
    in 16-bit numbers, whose largest value means "this far, and on", or one bit per parameter. ``values`` are float16
    with magnitudes up to 1.
    """

    kind: ClassVar[str] = "sparse"

    size: int
    code: str
    places: Tensor
    values: Tensor
    scale: float

    @classmethod
    def make(cls, indices: Tensor, values: Tensor, size: int) -> SparseExpert:
        """Args: indices (m,) int64 ascending and distinct, in [0, size); values (m,) what is added there."""
        if indices.numel() and (int(indices[0]) < 0 or int(indices[-1]) >= size):
            raise ValueError(f"indices must lie in [0, {size})")
        if not bool((indices[1:] > indices[:-1]).all()):
            raise ValueError("indices must ascend")
        peak = float(values.abs().max()) if values.numel() else 0.0
        code, places = _encode(indices.to("cpu", torch.int64), size)
        stored = (values.to("cpu", torch.float32) / peak if peak else torch.zeros(values.shape)).to(torch.float16)
        return cls(size, code, places, stored, peak)

    @property
    def indices(self) -> Tensor:
        """The coordinates that change: (m,) int64, ascending."""
        return _decode(self.code, self.places)

    def add_to(self, theta: Tensor, backbone: Tensor, share: float = 1.0) -> None:
        change = self.values.to(theta.device, theta.dtype).mul_(self.scale * share)
        theta.index_add_(0, self.indices.to(theta.device), change)

    def tensors(self) -> dict[str, Tensor]:
        return {
            self.code: self.places,
            "values": self.values,
            "scale": torch.tensor([self.scale]),
            "size": torch.tensor([self.size]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SparseExpert:
        code = next((name for name in ("gaps8", "gaps16", "bits") if name in tensors), None)
        if code is None:
            raise FwvizError("a sparse expert has no indices: its file is damaged.")
        expert = cls(int(tensors["size"]), code, tensors[code], tensors["values"], float(tensors["scale"]))
        indices = expert.indices
        if indices.numel() != expert.values.numel() or (indices.numel() and int(indices[-1]) >= expert.size):
            raise FwvizError("the indices of a sparse expert do not fit its values: its file is damaged.")
        return expert


def _encode(indices: Tensor, size: int) -> tuple[str, Tensor]:
    """The smallest of the three codes of ascending indices."""
    gaps = torch.diff(indices, prepend=torch.tensor([-1])) - 1
    sizes = {"gaps8": int((gaps // 255 + 1).sum()), "gaps16": 2 * int((gaps // 65535 + 1).sum()), "bits": -(-size // 8)}
    code = min(sizes, key=lambda name: sizes[name])
    if code == "bits":
        mask = torch.zeros(size, dtype=torch.bool)
        mask[indices] = True
        return code, pack_bits(mask)
    most = 255 if code == "gaps8" else 65535
    skips = gaps // most
    stream = torch.full((int((skips + 1).sum()),), most, dtype=torch.int64)
    stream[(skips + 1).cumsum(0) - 1] = gaps % most
    return code, stream.to(torch.uint8 if code == "gaps8" else torch.uint16)


def _decode(code: str, places: Tensor) -> Tensor:
    if code == "bits":
        return unpack_bits(places, 0, places.numel() * 8).nonzero().flatten()
    most = 255 if code == "gaps8" else 65535
    stream = places.to(torch.int64)
    ends = stream != most
    return ((stream + ends).cumsum(0) - 1)[ends]


# --- bits ---------------------------------------------------------------------------------------


def pack_bits(mask: Tensor) -> Tensor:
    """bool (P,) → uint8 (⌈P/8⌉,) on the CPU; bit b of byte j is coordinate 8·j + b."""
    packed = torch.empty(-(-mask.numel() // 8), dtype=torch.uint8)
    powers = torch.tensor(_POWERS, dtype=torch.uint8)
    for start in range(0, mask.numel(), _CHUNK):
        part = mask[start : start + _CHUNK].to("cpu", torch.uint8)
        rows = torch.nn.functional.pad(part, (0, -part.numel() % 8)).view(-1, 8)
        packed[start // 8 : start // 8 + rows.shape[0]] = (rows * powers).sum(1, dtype=torch.uint8)
    return packed


def unpack_bits(packed: Tensor, start: int, stop: int) -> Tensor:
    """Coordinates [start, stop) of a packed mask, ``start`` a multiple of 8: bool (stop − start,)."""
    rows = packed[start // 8 : -(-stop // 8)].view(-1, 1)
    return (rows & torch.tensor(_POWERS, dtype=torch.uint8)).ne(0).flatten()[: stop - start]


@dataclass(frozen=True)
class MaskExpert:
    """One bit per parameter and one factor: θ_e = θ₀ + scale·mask ⊙ (θ_b − θ₀).

    ``base`` θ₀ is stored once for all experts that share the object; see :func:`smallest_exact`.
    """

    kind: ClassVar[str] = "mask"

    bits: Tensor
    scale: float
    base: Tensor

    def add_to(self, theta: Tensor, backbone: Tensor, share: float = 1.0) -> None:
        for start, stop in _chunks(self.base.numel()):
            factor = unpack_bits(self.bits, start, stop).to(theta.device, theta.dtype).mul_(self.scale).sub_(1.0)
            unified = backbone[start:stop] - self.base[start:stop].to(theta.device, theta.dtype)
            theta[start:stop].add_(factor.mul_(unified), alpha=share)

    def tensors(self) -> dict[str, Tensor]:
        return {"bits": self.bits, "scale": torch.tensor([self.scale]), "base": self.base}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> MaskExpert:
        if tensors["bits"].numel() != -(-tensors["base"].numel() // 8):
            raise FwvizError("the mask of an expert does not fit its base: its file is damaged.")
        return cls(tensors["bits"], float(tensors["scale"]), tensors["base"])

    @property
    def size(self) -> int:
        return self.base.numel()


def smallest_exact(vector: Tensor) -> Tensor:
    """A CPU copy in float16 or bfloat16 where that loses nothing, else in float32."""
    plain = vector.detach().to("cpu", torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        small = plain.to(dtype)
        if all(torch.equal(small[a:b].float(), plain[a:b]) for a, b in _chunks(plain.numel())):
            return small
    return plain.clone()


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, _CHUNK):
        yield start, min(start + _CHUNK, size)


# --- low rank -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowRankExpert:
    """Thin factors of matrices and whole vectors: θ_e = θ_b + left·right on each matrix, + values on each vector.

    ``factors`` maps the offset of a matrix in the flat vector to (left (h, r), right (r, w)), ``vectors`` the offset of
    any other tensor to what is added there; all float16.
    """

    kind: ClassVar[str] = "low_rank"

    size: int
    factors: dict[int, tuple[Tensor, Tensor]]
    vectors: dict[int, Tensor]

    @classmethod
    def make(
        cls, size: int, factors: Mapping[int, tuple[Tensor, Tensor]], vectors: Mapping[int, Tensor]
    ) -> LowRankExpert:
        """Keeps half-precision copies on the CPU."""
        halves = {
            at: (left.to("cpu", torch.float16), right.to("cpu", torch.float16)) for at, (left, right) in factors.items()
        }
        return cls(size, halves, {at: values.to("cpu", torch.float16) for at, values in vectors.items()})

    def add_to(self, theta: Tensor, backbone: Tensor, share: float = 1.0) -> None:
        for at, (left, right) in self.factors.items():
            part = theta[at : at + left.shape[0] * right.shape[1]].view(left.shape[0], right.shape[1])
            part.addmm_(left.to(theta.device, theta.dtype), right.to(theta.device, theta.dtype), alpha=share)
        for at, values in self.vectors.items():
            theta[at : at + values.numel()].add_(values.to(theta.device, theta.dtype), alpha=share)

    def tensors(self) -> dict[str, Tensor]:
        stored = {"size": torch.tensor([self.size])}
        for at, (left, right) in self.factors.items():
            stored |= {f"left.{at}": left, f"right.{at}": right}
        return stored | {f"vector.{at}": values for at, values in self.vectors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> LowRankExpert:
        size = int(tensors["size"])
        factors: dict[int, tuple[Tensor, Tensor]] = {}
        vectors: dict[int, Tensor] = {}
        for name, tensor in tensors.items():
            part, _, at = name.partition(".")
            if part == "left":
                factors[int(at)] = (tensor, tensors[f"right.{at}"])
            elif part == "vector":
                vectors[int(at)] = tensor
        ends = [at + left.shape[0] * right.shape[1] for at, (left, right) in factors.items()]
        ends += [at + values.numel() for at, values in vectors.items()]
        if any(left.shape[1] != right.shape[0] for left, right in factors.values()) or any(end > size for end in ends):
            raise FwvizError("the factors of a low-rank expert do not fit together: its file is damaged.")
        return cls(size, factors, vectors)
