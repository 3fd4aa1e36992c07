"""The measurement of a device, on the CPU and on pools small enough for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from fwviz.bench import device
from fwviz.bench.synthetic import lora_vectors, random_base, random_move, random_tower, random_vectors, vit_layout
from fwviz.cli import main
from fwviz.types import FwvizError


def test_the_table_says_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench device --device cpu --model tiny --checkpoints 3 --adapted tiny --adapters 2 --samples 4 --repeats 2"
    words += f" --streamed --folder {tmp_path}"
    assert main([*words.split(), "--out", str(tmp_path / "device.csv")]) == 0
    table = pd.read_csv(tmp_path / "device.csv").set_index("what")
    kernels = ["copy", "scores, model", "scores, tensor", "combine"]
    updates = ["FW-soft, update", "FW-soft, iteration", "AdaMerging, update"]
    halves = [f"{name}, bfloat16" for name in updates]
    streams = ["scores, streamed", "scores, streamed ahead"]
    assert list(table.index) == [*kernels, *updates, *halves, *streams, "scores, 2 LoRA of 0.0·10⁹"]
    assert (table["seconds"] > 0).all()
    assert (table["seconds"] * table["per_second"]).tolist() == pytest.approx([1.0] * 13)
    assert [path.name for path in tmp_path.iterdir()] == ["device.csv"], "the files are gone"
    assert table.loc["FW-soft, iteration", "seconds"] > 10 * table.loc["FW-soft, update", "seconds"]
    read = table["gb_per_s"] * table["seconds"] * 1e9
    size = 4 * device.MODELS["tiny"]().size
    assert read[kernels].tolist() == pytest.approx([2 * 3 * size, 3 * size, 3 * size, 3 * size])
    assert read[streams].tolist() == pytest.approx([3 * size / 2] * 2)
    assert read.iloc[-1] == pytest.approx(4 * 8 * (32 * 32 + 2 * 2 * 32 * 16))  # gradient and both factors
    assert table["copy_share"]["copy"] == 1
    assert read[updates + halves].isna().all()
    printed = capsys.readouterr().out
    assert f"3 × P = {device.MODELS['tiny']().size:,} in float32" in printed
    assert "nan" not in printed.lower()


def test_half_precision_reads_half_the_bytes() -> None:
    plain, half = (
        device.run("cpu", "tiny", 2, dtype, samples=2, repeats=1).set_index("what") for dtype in device.DTYPES
    )
    for row in ("copy", "scores, model", "combine"):
        read = [table.loc[row, "gb_per_s"] * table.loc[row, "seconds"] for table in (plain, half)]
        assert read[0] == pytest.approx(2 * read[1])


def test_the_models_have_the_sizes_of_the_real_ones() -> None:
    assert device.MODELS["vit-b-32"]().size == 87_849_216
    assert device.MODELS["vit-l-14"]().size == 303_966_208
    sizes = {name: 4 * blocks * width**2 for name, (width, blocks) in device.ADAPTED.items()}
    assert (sizes["1b"], sizes["7b"]) == (369_098_752, 2_147_483_648)


def test_the_pools_in_memory_are_those_of_the_files() -> None:
    layout = vit_layout(width=24, blocks=1)
    vectors = random_vectors(layout, 2, torch.float32)
    assert torch.equal(vectors.vector(0), random_move(layout))
    assert torch.equal(vectors.base, random_base(layout))
    assert not torch.equal(vectors.vector(0), vectors.vector(1))
    tower = random_tower(layout)
    assert tower.flat is not None
    assert torch.equal(tower.flat.theta, vectors.base)
    assert tower.shape.image_size == 224
    adapters = lora_vectors(8, 1, 2, 3, torch.float32)
    assert (adapters.n, adapters.layout.size) == (3, 4 * 64)
    slope = torch.randn(256, generator=torch.Generator().manual_seed(0))
    exact = torch.stack([slope @ adapters.vector(i) for i in range(3)])
    torch.testing.assert_close(adapters.scores(slope, adapters.layout.groups("model"))[0], exact)


def test_an_absent_device_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "device", "--device", "cuda:77", "--model", "tiny"]) != 0
    assert "no device 'cuda:77'" in capsys.readouterr().err
    with pytest.raises(FwvizError, match="--samples must be at least 1"):
        device.main(["--device", "cpu", "--model", "tiny", "--samples", "0"])


def test_precisions_are_measured_apart() -> None:
    table = device.run("cpu", "tiny", 2, samples=2, repeats=1, precisions=("bfloat16",))
    assert [name for name in table["what"] if "FW-soft" in name or "Ada" in name] == [
        "FW-soft, update, bfloat16",
        "FW-soft, iteration, bfloat16",
        "AdaMerging, update, bfloat16",
    ]


@pytest.mark.parametrize("module", ["fwviz", "fwviz.bench.device"])
def test_it_needs_nothing_of_the_page(tmp_path: Path, module: str) -> None:
    """A machine with torch and transformers alone measures too: what the page draws with is not imported."""
    words = ["bench", "device"] if module == "fwviz" else []
    words += ["--device", "cpu", "--model", "tiny", "--checkpoints", "2", "--samples", "2", "--repeats", "1"]
    absent = ("gradio", "plotly", "datasets", "open_clip", "peft", "playwright", "spaces")
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({absent})); sys.argv[1:] = {words}; "
    code += f"runpy.run_module({module!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "FW-soft, iteration, bfloat16" in done.stdout


@pytest.mark.gpu
def test_a_gpu_is_measured_too() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for dtype in device.DTYPES:
        table = device.run("cuda:0", "tiny", 3, dtype, "tiny", 2, samples=4, repeats=2, streamed=True)
        assert (table["seconds"] > 0).all()
        assert (table["peak_gb"].iloc[1:] > 0).all()
