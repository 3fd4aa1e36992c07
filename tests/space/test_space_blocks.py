"""Blocks: what walking the coordinates piece by piece asks of the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Three temporaries of 4 MB live together and go, twenty times: what the pieces of a merge do. Prints the page faults.
_PIECES = """
import resource
import torch
from fwviz.space.blocks import Blocks
from fwviz.space.layout import build_layout
from fwviz.space.vectors import ResidentTaskVectors

layout = build_layout({"weight": (2, 4)})
Blocks(ResidentTaskVectors(layout, ["a"], torch.zeros(8), torch.zeros(1, 8)))
for piece in range(21):
    if piece == 1:  # the first may well need new pages
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    temporaries = [torch.zeros(1 << 20) + k for k in range(3)]
    del temporaries
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a threshold of glibc")
def test_temporaries_of_pieces_are_not_given_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _PIECES], capture_output=True, text=True, check=True)
    # A page of 4 KiB each time would be 3 · 1024 · 20 faults and more.
    assert int(done.stdout) < 5000
