"""Metrics against closed forms, other libraries' values, and brute force."""

from __future__ import annotations

import math
import socket
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fwviz.tasks import metrics, sandbox
from fwviz.types import METRICS, FwvizError


def test_accuracy_counts() -> None:
    assert metrics.accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])) == 0.75


def test_matthews_is_the_binary_formula() -> None:
    """TP 6, FN 2, FP 1, TN 3: (6·3 − 1·2) / √(7·8·4·5)."""
    answers, labels = torch.tensor([1] * 6 + [0] * 2 + [1] + [0] * 3), torch.tensor([1] * 8 + [0] * 4)
    assert metrics.matthews(answers, labels) == pytest.approx((6 * 3 - 1 * 2) / math.sqrt(7 * 8 * 4 * 5))
    assert metrics.matthews(labels, labels) == pytest.approx(1.0)
    assert metrics.matthews(1 - labels, labels) == pytest.approx(-1.0)
    assert metrics.matthews(torch.zeros(12, dtype=torch.int64), labels) == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=40))
@settings(max_examples=60, deadline=None)
def test_matthews_of_many_classes_is_the_correlation_of_indicators(pairs: list[tuple[int, int]]) -> None:
    """R = Σₖ cov(xₖ, yₖ) / √(Σₖ cov(xₖ, xₖ)·Σₖ cov(yₖ, yₖ)) over one-hot columns k: the definition."""
    x, y = (torch.nn.functional.one_hot(torch.tensor(side), 4).double() for side in zip(*pairs, strict=True))
    x, y = x - x.mean(0), y - y.mean(0)
    spread = float((x * x).sum() * (y * y).sum())
    expected = float((x * y).sum()) / math.sqrt(spread) if spread > 1e-9 else 0.0
    answers, labels = (torch.tensor(side) for side in zip(*pairs, strict=True))
    assert metrics.matthews(answers, labels) == pytest.approx(expected, abs=1e-9)


def test_correlations_have_their_known_values() -> None:
    """x = 1…5 and y = (2, 1, 4, 3, 5): Pearson = Spearman = 1 − 6·4/(5·24) = 0.8."""
    x, y = torch.arange(1.0, 6.0), torch.tensor([2.0, 1.0, 4.0, 3.0, 5.0])
    assert metrics.pearson(x, y) == pytest.approx(0.8)
    assert metrics.spearman(x, y) == pytest.approx(0.8)
    assert metrics.pearson(x, -3 * x + 7) == pytest.approx(-1.0)
    assert metrics.spearman(x, x.exp()) == pytest.approx(1.0)
    assert metrics.pearson(x, x.exp()) == pytest.approx(0.886275, abs=1e-6)  # scipy.stats.pearsonr
    assert metrics.pearson_spearman(x, x.exp()) == pytest.approx((1 + 0.886275) / 2, abs=1e-6)
    assert metrics.pearson(x, torch.full((5,), 0.1)) == 0.0


def test_equal_values_share_their_rank() -> None:
    assert metrics.ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    # scipy.stats.spearmanr([1, 2, 2, 4], [4, 3, 1, 2])
    assert metrics.spearman(torch.tensor([1, 2, 2, 4]), torch.tensor([4, 3, 1, 2])) == pytest.approx(
        -0.632456, abs=1e-6
    )


def test_correlations_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(0)
    x, y = torch.randint(6, (50,)).double(), torch.randint(6, (50,)).double()
    assert metrics.pearson(x, y) == pytest.approx(float(stats.pearsonr(x, y).statistic))
    assert metrics.spearman(x, y) == pytest.approx(float(stats.spearmanr(x, y).statistic))


def test_numbers_are_read_and_nonsense_counts_as_minus_one() -> None:
    assert metrics.read_numbers([" 3.8 ", "five", "", "nan", "1e400", "-2"]).tolist() == [3.8, -1, -1, -1, -1, -2]


def test_exact_match_ignores_case_and_space_only() -> None:
    assert metrics.exact_match([" Not  Acceptable", "yes.", "no"], ["not acceptable", "yes", "no"]) == pytest.approx(
        2 / 3
    )


def test_rouge_l_has_the_value_of_its_paper() -> None:
    """Lin (2004), §3: "police kill the gunman" shares police … the gunman (3 of 4) with "police killed the gunman"."""
    reference = "police killed the gunman"
    assert metrics.rouge_l(["police kill the gunman"], [reference]) == pytest.approx(0.75)
    assert metrics.rouge_l(["the gunman kill police"], [reference]) == pytest.approx(0.5)
    assert metrics.rouge_l(["The cat; sat!", ""], ["the cat sat on it", "x"]) == pytest.approx((2 * 3 / 8) / 2)


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
@settings(max_examples=80, deadline=None)
def test_the_longest_common_subsequence_is_the_longest(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert metrics._common(a, b) == table[-1][-1]


def test_programs_run_only_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FWVIZ_RUN_CODE", raising=False)
    with pytest.raises(FwvizError, match="FWVIZ_RUN_CODE=1"):
        metrics.pass_at_1(["x = 1"], ["assert x == 1"])


def test_programs_pass_or_fail_and_are_held_in_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FWVIZ_RUN_CODE", "1" if sandbox.can_cut_off() else "with-network")
    monkeypatch.setenv("SECRET", "seen")
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 1.0)
    test = "assert double(4) == 8"
    assert metrics.pass_at_1(["def double(x):\n    return 2 * x", "def double(x):\n    return x"], [test] * 2) == 0.5
    bad = ["import time\ntime.sleep(30)", "x = bytearray(1 << 30)", "import os\nassert 'SECRET' in os.environ", "1 +"]
    start = time.monotonic()
    assert metrics.pass_at_1(bad, [""] * len(bad)) == 0.0
    assert time.monotonic() - start < 5


KNOCKS = {
    "an address": "import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1).sendall(b'x')",
    "another program": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', \"import socket; "
    "socket.create_connection(('127.0.0.1', {port}), timeout=1)\"], check=True)",
    "an abstract socket": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0fwviz-{port}')",
    "a datagram": "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "s.sendto(b'x', ('127.0.0.1', {port}))",
    "the host's network": "import ctypes, os\nfd = os.open(f'/proc/{{os.getppid()}}/ns/net', os.O_RDONLY)\n"
    "assert not ctypes.CDLL(None).setns(fd, 0x40000000)",
}


@pytest.mark.parametrize("name", KNOCKS)
def test_programs_reach_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not sandbox.can_cut_off():
        pytest.skip("this machine allows no user namespaces")
    monkeypatch.setenv("FWVIZ_RUN_CODE", "1")
    with socket.create_server(("127.0.0.1", 0)) as door, socket.socket(socket.AF_UNIX) as hidden:
        port = door.getsockname()[1]
        hidden.bind(f"\0fwviz-{port}")
        hidden.listen()
        assert metrics.pass_at_1([KNOCKS[name].format(port=port)], [""]) == 0.0
        for listener in (door, hidden):
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_without_user_namespaces_programs_run_only_with_a_flag_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "can_cut_off", lambda: False)
    monkeypatch.setenv("FWVIZ_RUN_CODE", "1")
    with pytest.raises(FwvizError, match="set FWVIZ_RUN_CODE=with-network to run them nevertheless") as raised:
        metrics.pass_at_1(["x = 1"], [""])
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("FWVIZ_RUN_CODE", "with-network")
    with socket.create_server(("127.0.0.1", 0)) as door:
        knock = KNOCKS["an address"].format(port=door.getsockname()[1])
        assert metrics.pass_at_1([knock], [""]) == 1.0, "the same program reaches the door where it is not cut off"
        assert door.accept()[0].recv(1) == b"x"


def test_a_guard_that_fails_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_CUT", "import os\nos._exit(1)\n")
    with pytest.raises(FwvizError, match="could not be held in bounds"):
        sandbox.passes("x = 1")
    assert sandbox.can_cut_off.__wrapped__() is False
    monkeypatch.setattr(sandbox, "_CUT", "")
    assert sandbox.can_cut_off.__wrapped__() is False, "the probe notices a guard that cuts nothing off"


def test_normalised_is_the_mean_share_of_the_own_checkpoint() -> None:
    assert metrics.normalised({"a": 0.4, "b": 0.9, "c": 0.5}, {"a": 0.8, "b": 0.9}) == pytest.approx(0.75)
    with pytest.raises(FwvizError, match="measure the checkpoints"):
        metrics.normalised({"a": 0.4}, {})


def test_every_named_metric_is_there() -> None:
    assert all(metrics.metric(name).low in (0.0, -1.0) for name in METRICS)
    with pytest.raises(FwvizError, match="there is no metric 'bleu'"):
        metrics.metric("bleu")  # type: ignore[arg-type]
