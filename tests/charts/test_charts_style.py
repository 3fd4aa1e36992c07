"""The style of all charts: colours every eye can tell apart, labels that do not overlap, numbers that read well."""

from __future__ import annotations

import numpy as np
import pytest

from fwviz.charts import _style as style


def to_linear(colours: tuple[str, ...]) -> np.ndarray:
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira, Fernandes 2009, severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
    ),
}


def oklab(linear: np.ndarray) -> np.ndarray:
    to_lms = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.63]])
    to_lab = np.array([[0.2105, 0.7936, -0.0041], [1.978, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
    return np.cbrt(np.clip(linear, 0, 1) @ to_lms.T) @ to_lab.T


@pytest.mark.parametrize("theme", style.THEMES)
@pytest.mark.parametrize("vision", VISION)
def test_task_colours_differ_for_every_eye(theme: str, vision: str) -> None:
    lab = oklab(to_linear(style.palette(theme).series) @ VISION[vision].T)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    for count, least in ((4, 0.1), (8, 0.05)):
        pairs = distance[:count, :count][np.triu_indices(count, 1)]
        assert pairs.min() > least


@pytest.mark.parametrize("theme", style.THEMES)
def test_contrast_of_text_and_marks(theme: str) -> None:
    colours = style.palette(theme)

    def against_surface(colour: str) -> float:
        light = to_linear((colour, colours.surface)) @ np.array([0.2126, 0.7152, 0.0722])
        return float((light.max() + 0.05) / (light.min() + 0.05))

    assert all(against_surface(c) >= 3 for c in (*colours.series, colours.wanted, colours.unwanted))
    assert all(against_surface(c) >= 4.5 for c in (colours.ink, colours.muted))


def test_a_task_looks_the_same_in_every_chart_and_no_two_look_alike() -> None:
    names = [f"t{k}" for k in range(20)]
    styles = style.task_styles(names, "dark")
    assert len({(s.colour, s.dash) for s in styles.values()}) == 20
    assert style.task_styles(names[:3], "dark") == {n: styles[n] for n in names[:3]}


def test_spread_moves_labels_apart_and_keeps_their_order() -> None:
    assert style.spread([1.0, 1.0, 5.0], 1.0, 0.0, 10.0) == pytest.approx([0.5, 1.5, 5.0])
    assert style.spread([9.9, 0.0, 10.0], 1.0, 0.0, 10.0) == pytest.approx([9.0, 0.0, 10.0])
    crowded = style.spread([5.0] * 5, 9.0, 0.0, 10.0)
    assert crowded == pytest.approx([0.0, 2.5, 5.0, 7.5, 10.0])
    assert style.spread([], 1.0, 0.0, 1.0) == []


def test_numbers_read_well() -> None:
    assert style.number(-0.01234) == "−0.0123"
    assert style.number(1.5) == "+1.5"
    assert style.number(1.5, signed=False) == "1.5"
    assert style.number(0.0) == "0"
    assert style.number(-1.23e-7) == "−1.23·10⁻⁷"
    assert style.percent(0.8449) == "84.5 %"
    assert style.points(-0.1) == "−10.0 points"
    assert style.short("flags_of_the_world_half_classes", 16) == "flags_of_t…asses"
    assert style.short("Country flags", 9) == "Country…"
    assert style.safe("<b>%{x}") == "&lt;b&gt;%&#123;x}"
    assert style.duration(3.21) == "3.2 s"
    assert style.duration(150) == "2.5 min"
