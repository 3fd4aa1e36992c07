"""The bounded cache pools and tasks keep their large values in."""

from __future__ import annotations

import threading
import time

import pytest

from fwviz.space.cache import ByteCache


def test_values_used_last_stay_within_the_limit() -> None:
    cache: ByteCache[str] = ByteCache(10)
    made: list[str] = []

    def get(key: str, size: int = 4) -> str:
        return cache.get(key, lambda: (made.append(key), key * 2)[1], lambda _: size)

    assert [get("a"), get("b"), get("a")] == ["aa", "bb", "aa"]
    get("c")
    assert made == ["a", "b", "c"]
    assert cache.bytes == 8
    get("a")
    assert made == ["a", "b", "c"], "a was used after b, so b had to go"
    get("b")
    assert made == ["a", "b", "c", "b"]
    get("large", 11)
    get("large", 11)
    assert made[-2:] == ["large", "large"]
    assert cache.bytes <= 10


def test_a_value_is_made_once_for_all_who_wait() -> None:
    cache: ByteCache[int] = ByteCache(10)
    made: list[int] = []

    def make() -> int:
        time.sleep(0.05)
        made.append(1)
        return 7

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get("k", make, lambda _: 1))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 5
    assert made == [1]


def test_a_failure_is_not_kept() -> None:
    cache: ByteCache[int] = ByteCache(10)

    def fail() -> int:
        raise OSError

    with pytest.raises(OSError):
        cache.get("k", fail, lambda _: 1)
    assert cache.get("k", lambda: 3, lambda _: 1) == 3
