"""A bounded cache for large values that several jobs need at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Keeps the values used last, at most ``limit`` bytes of them; each is made once even if many threads ask.

    Values must not be changed by those who get them. A value larger than the limit is handed out and not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._gates: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], Value], size: Callable[[Value], int]) -> Value:
        """The value of ``key``, made by ``make()`` and counted as ``size(value)`` bytes if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            gate = self._gates.setdefault(key, threading.Lock())
        with gate:  # others who want this value wait here, not those who want another
            with self._lock:
                if key in self._values:
                    return self._values[key][0]
            try:
                value = make()
            finally:
                with self._lock:
                    self._gates.pop(key, None)
            with self._lock:
                self._keep(key, value, size(value))
            return value

    def _keep(self, key: Hashable, value: Value, count: int) -> None:
        if count > self.limit or key in self._values:
            return
        self._values[key] = (value, count)
        self.bytes += count
        while self.bytes > self.limit:
            _, (_, dropped) = self._values.popitem(last=False)
            self.bytes -= dropped
