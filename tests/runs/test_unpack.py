"""Zips of models and the two files of an adapter: what is unpacked, and every hostile archive refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from fwviz.runs import unpack
from fwviz.runs.unpack import sources, unpack_models
from fwviz.types import FwvizError
from tests.own_corpus import write_zip
from tests.own_models import ADAPTER, BAD_MODEL_ZIPS, PLAIN, WEIGHTS
from tests.refusals import refused_in_little_memory

ROOM = 1 << 30


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_folder_of_a_model_is_unpacked_and_nothing_else_of_it(tmp_path: Path) -> None:
    held = {f"{where}{name.partition('/')[2]}": content for where in ("all/a b/", "all/c/") for name, content in
            PLAIN.items()}  # fmt: skip
    held |= {"all/c/run.py": b"raise SystemExit", "all/c/README.md": b"#", "all/log/x.txt": b"", "__MACOSX/x": b"",
             "all/whole/config.json": b"{}", "all/whole/model.safetensors": WEIGHTS, "all/1_Pooling/config.json": b"{}",
             "all/c/optimizer.pt": b"x", "all/whole/.git/config.json": b""}  # fmt: skip
    found = unpack_models(write_zip(tmp_path / "x.zip", held), tmp_path / "out", ROOM)
    assert [name for name, _ in found] == ["a b", "c", "whole"]
    assert [files(folder) for _, folder in found] == [[*ADAPTER], [*ADAPTER], ["config.json", "model.safetensors"]]
    assert (found[2][1] / "model.safetensors").read_bytes() == WEIGHTS
    assert {path.name for path in tmp_path.iterdir()} == {"x.zip", "out"}


def test_a_model_at_the_top_is_called_as_the_archive(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "my lora.zip", {name.partition("/")[2]: content for name, content in PLAIN.items()})
    ((name, folder),) = unpack_models(file, tmp_path / "out", ROOM)
    assert name == "my lora"
    assert files(folder) == [*ADAPTER]


@pytest.mark.parametrize("name", BAD_MODEL_ZIPS)
def test_bad_archives_of_models_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    make, said = BAD_MODEL_ZIPS[name]
    make(tmp_path / "bad.zip")
    refused_in_little_memory(lambda: unpack_models(tmp_path / "bad.zip", tmp_path / "out", ROOM), said)
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.zip", "out"}


def test_there_is_room_for_so_much_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_zip(tmp_path / "x.zip", PLAIN)
    with pytest.raises(FwvizError, match="but may unpack to 0: take fewer models"):
        unpack_models(file, tmp_path / "out", len(WEIGHTS))
    monkeypatch.setattr(unpack, "MAX_ZIP", 100)
    with pytest.raises(FwvizError, match="an archive may have 0: take fewer models"):
        unpack_models(file, tmp_path / "out", ROOM)
    assert not (tmp_path / "out").exists()


def test_what_ends_the_work_ends_it_between_two_pieces(tmp_path: Path) -> None:
    def over() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        unpack_models(write_zip(tmp_path / "x.zip", PLAIN), tmp_path / "out", ROOM, over)
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) == 0


def test_files_become_checkpoints(tmp_path: Path) -> None:
    given = {}
    for name in (*ADAPTER, "whole.safetensors"):
        (tmp_path / name).write_bytes(WEIGHTS)
        given[name] = tmp_path / name
    write_zip(tmp_path / "two.zip", PLAIN)
    found = sources([*given.items(), ("two.zip", tmp_path / "two.zip")], tmp_path / "work", ROOM)
    assert [name for name, _ in found] == ["adapter", "whole", "one"]
    assert files(found[0][1]) == [*ADAPTER]
    assert found[1][1] == tmp_path / "whole.safetensors"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((ADAPTER[0],), "adapter_config.json came without adapter_model.safetensors"),
        ((ADAPTER[1],), "adapter_model.safetensors came without adapter_config.json"),
        ((*ADAPTER, ADAPTER[0]), "adapter_config.json is there 2 times: put each adapter's folder into one .zip"),
        ((*ADAPTER, *ADAPTER), "adapter_config.json is there 2 times"),
    ],
)
def test_an_adapter_is_two_files(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(WEIGHTS)
    with pytest.raises(FwvizError, match=said):
        sources([(name, tmp_path / "file") for name in names], tmp_path / "work", ROOM)
    assert not (tmp_path / "work").exists()
