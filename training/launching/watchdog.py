"""Watchdog of a launcher: ends it with a code that the operator retries when its group cannot go on.

torch's elastic agent waits without end for a store whose machine has vanished, and for processes that wait
for one that is gone. This looks at three signs of life, each for a limited time: heartbeats of the processes
of this node, heartbeats of the other nodes through the store, and steps.
"""

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.launching.exit_codes import DONE, RETRYABLE_FAILURE, STOPPED
from training.launching.heartbeats import HEARTBEATS, Heartbeat, is_there, read_heartbeats, where_it_hangs
from training.launching.peer_heartbeats import PeerExchange

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
# Processes whose peer has ended mostly notice by themselves, and may have an exit code of their own.
FAREWELL_SECONDS = 5.0


@dataclass(frozen=True)
class Patience:
    """How long a launcher waits, in seconds: for a sign of life, and for processes to save.

    Args:
        silence: For the heartbeat of a process or node, and for the store to answer.
        stall: For a process to begin its next step. The first one may take as long as it likes, and writing
            the model after the last one has a limit of its own, by what checkpoints have taken.
        saving: For processes that are started anew as a node has come. Less than `stall`.
    """

    silence: float = 30.0
    stall: float = 900.0
    saving: float = 600.0


class Watchdog(threading.Thread):
    """Looks for signs of life; `end` is called with an exit code when one has not come.

    Args:
        folder: Of the heartbeat files of this node.
        exchange: With the other nodes; None where there are none.
        end: Ends the launcher, whatever its other threads do.
    """

    def __init__(
        self, folder: Path, exchange: PeerExchange | None, patience: Patience, end: Callable[[int], None]
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.folder, self.exchange, self.patience, self.end = folder, exchange, patience, end
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look until something is wrong or `stop` is called."""
        while not self._is_over.wait(LOOK_SECONDS):
            heartbeats = read_heartbeats(self.folder)
            # Before processes run, the agent waits for nodes to come, with a limit of its own.
            if heartbeats and (reason := self._what_is_wrong(heartbeats)):
                self._leave(reason, heartbeats)
                return

    def stop(self) -> None:
        """The group has ended by itself."""
        self._is_over.set()

    def _what_is_wrong(self, heartbeats: list[Heartbeat]) -> str | None:
        """One sentence that names what gives no sign of life; None if all is well."""
        now = time.monotonic()
        for beat in (beat for beat in heartbeats if not beat.is_done):
            if (silent := now - beat.beat) > self.patience.silence and is_there(beat.pid):
                return (
                    f"rank {beat.rank} (process {beat.pid} of this node) has been frozen for {silent:.0f} s"
                )
        if reason := self._who_is_gone(now):
            return reason
        moving = [beat for beat in heartbeats if beat.steps and not beat.is_trained and not beat.is_done]
        if moving and (stalled := now - max(beat.moved for beat in moving)) > self.patience.stall:
            places = [f"rank {beat.rank} in {where_it_hangs(self.folder, beat)}" for beat in moving]
            return f"no step began for {stalled:.0f} s: {', '.join(places)}"
        return None

    def _who_is_gone(self, now: float) -> str | None:
        if self.exchange is None or self.exchange.store_answered is None:
            return None
        peers = list(self.exchange.peers.values())
        # Where others have ended well, so may have the store; the processes of this node may still be saving.
        is_ending = any(peer.left == "" for peer in peers)
        if (silent := now - self.exchange.store_answered) > self.patience.silence and not is_ending:
            return f"the node of the store, {self.exchange.address}, has not answered for {silent:.0f} s"
        for peer in peers:
            if peer.left is None and peer.ranks and (silent := now - peer.heard) > self.patience.silence:
                ranks = ", ".join(str(rank) for rank in peer.ranks)
                return f"node {peer.name} with rank {ranks} has not been heard of for {silent:.0f} s"
            if peer.left and now - peer.heard > FAREWELL_SECONDS:
                return f"node {peer.name} has left: {peer.left}"
        return None

    def _leave(self, reason: str, heartbeats: list[Heartbeat]) -> None:
        """Kill the processes of this node, which wait for what will not come, and end the launcher."""
        if all(beat.is_done for beat in heartbeats):
            logger.info("%s; all processes of this node had finished", reason)
            self.end(DONE)
            return
        logger.error("error: %s; leaving, to start again from the last checkpoint", reason)
        if self.exchange:
            self.exchange.leave(reason)
        for beat in heartbeats:
            with contextlib.suppress(ProcessLookupError):
                os.kill(beat.pid, signal.SIGKILL)
        self.end(RETRYABLE_FAILURE)


class WatchedGroup:
    """What a watched group says of its own end; `is_done` where all processes of this node had finished."""

    def __init__(self) -> None:
        self.why, self.is_done = "its launcher failed", False

    def ended(self, code: int) -> None:
        """The processes of this node have ended; others need not wait for those that failed."""
        self.why = "" if code in (DONE, STOPPED) else f"its processes ended with exit code {code}"


@contextmanager
def watched(address: str, patience: Patience, end: Callable[[int], None]) -> Iterator[WatchedGroup]:
    """Watch over the training processes that are started in this block.

    Args:
        address: Of the store, `host:port`; empty where there is one node only.
    """
    group = WatchedGroup()
    with tempfile.TemporaryDirectory(prefix="heartbeats-") as name:
        folder = Path(name)
        exchange = None
        if address:
            # Two launchers on one machine, as in tests, are two nodes.
            node = f"{socket.gethostname()}-{os.getpid()}"
            exchange = PeerExchange(address, node, lambda: [beat.rank for beat in read_heartbeats(folder)])
            exchange.start()
        dog = Watchdog(folder, exchange, patience, end)
        dog.start()
        os.environ[HEARTBEATS] = name
        try:
            yield group
        except KeyboardInterrupt:
            heartbeats = read_heartbeats(folder)
            group.why, group.is_done = "", bool(heartbeats) and all(beat.is_done for beat in heartbeats)
            raise
        finally:
            # A stage that this process runs itself afterwards must not look for a folder that is gone.
            del os.environ[HEARTBEATS]
            dog.stop()
            if exchange:
                exchange.leave(group.why)
