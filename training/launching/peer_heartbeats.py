"""Heartbeats between the nodes of a job, through the rendezvous store that one of them hosts."""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import TCPStore

logger = logging.getLogger(__name__)

PREFIX = "vargpt/heartbeats"
EXCHANGE_SECONDS = 1.0
STORE_TIMEOUT = timedelta(seconds=15)


@dataclass(frozen=True)
class Peer:
    """Another node of the job, as seen from here.

    Args:
        ranks: Of its training processes; empty while it waits for others.
        heard: When its last news came, in seconds on this machine's monotonic clock.
        left: Why it has ended; None while it runs, empty when all was well.
    """

    name: str
    ranks: tuple[int, ...]
    heard: float
    left: str | None


class PeerExchange(threading.Thread):
    """Tells the other nodes of this one, and keeps what they tell; a store that is gone is asked again.

    Args:
        address: `host:port` of the store.
        name: Of this node, different from all others'.
        ranks: Asked every time; the ranks of the processes that run here.
    """

    def __init__(self, address: str, name: str, ranks: Callable[[], list[int]]) -> None:
        super().__init__(name="peer-heartbeats", daemon=True)
        self.address, self.name_of_node, self._ranks = address, name, ranks
        self.peers: dict[str, Peer] = {}
        # When the store answered last; None before it has.
        self.store_answered: float | None = None
        self._count, self._left = 0, None
        self._counts: dict[str, int] = {}
        self._is_over = threading.Event()
        self._leaving = threading.Event()

    def run(self) -> None:
        """Exchange heartbeats until stopped."""
        store: TCPStore | None = None
        while not self._is_over.is_set():
            try:
                store = store or self._joined_store()
                self._exchange(store)
                self.store_answered = time.monotonic()
            except (RuntimeError, ValueError) as error:
                # torch has no narrower name for a store that is away.
                logger.debug("the store at %s: %s", self.address, error)
                store = None
            if self._left is not None:
                return
            self._leaving.wait(EXCHANGE_SECONDS)

    def leave(self, why: str, patience_seconds: float = 2.0) -> None:
        """Tell the others that this node ends; `why` is empty when all was well."""
        self._left = why
        self._leaving.set()
        self.join(patience_seconds)
        self._is_over.set()
        if self.peers and not self.is_alive():
            # The store may end with this process: until everybody has read it.
            time.sleep(1.5 * EXCHANGE_SECONDS)

    def _joined_store(self) -> "TCPStore":
        from torch.distributed import TCPStore

        host, _, port = self.address.rpartition(":")
        store = TCPStore(host, int(port), is_master=False, timeout=STORE_TIMEOUT, wait_for_workers=False)
        self._tell(store)
        store.set(f"{PREFIX}/{store.add(PREFIX, 1)}", self.name_of_node)
        return store

    def _tell(self, store: "TCPStore") -> None:
        self._count += 1
        facts = {"count": self._count, "ranks": self._ranks(), "left": self._left}
        store.set(f"{PREFIX}/of/{self.name_of_node}", json.dumps(facts))

    def _exchange(self, store: "TCPStore") -> None:
        self._tell(store)
        for name in self._names(store) - {self.name_of_node}:
            self._hear(name, json.loads(store.get(f"{PREFIX}/of/{name}")))

    def _names(self, store: "TCPStore") -> set[str]:
        keys = [f"{PREFIX}/{index}" for index in range(1, store.add(PREFIX, 0) + 1)]
        return {store.get(key).decode() for key in keys if store.check([key])}

    def _hear(self, name: str, facts: dict[str, Any]) -> None:
        if self._counts.get(name) == facts["count"]:
            return
        self._counts[name] = facts["count"]
        self.peers[name] = Peer(name, tuple(facts["ranks"]), time.monotonic(), facts["left"])
