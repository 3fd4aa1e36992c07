"""The table of equality: how far from an independent implementation a method is, printed beside the check."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def largest_difference(
    method: str, oracle: str, found: Tensor | np.ndarray | float, expected: Tensor | np.ndarray | float
) -> float:
    """max |found − expected| in float64, printed as a line that ``pytest -rP`` shows for a test that passed."""
    ours, theirs = (torch.as_tensor(numbers, dtype=torch.float64) for numbers in (found, expected))
    largest = float((ours - theirs).abs().max())
    print(f"largest difference: {method} vs {oracle}: {largest:.1e}")
    return largest
