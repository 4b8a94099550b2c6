"""Trackers, what they have left, and a server that fails on demand."""

import contextlib
import socket
import threading
from pathlib import Path

from training.tracking.spool import Spool
from training.tracking.tracker import open_tracker


class FaultyProxy:
    """A TCP proxy before a server on this machine, with faults by `mode`.

    "forward": none. "refuse": connections are closed at once. "hang": they are accepted and never answered.
    "mute": requests reach the server, its answers are dropped.
    """

    def __init__(self, port: int) -> None:
        self.mode = "forward"
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        waiting = []
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            if self.mode in ("forward", "mute"):
                server = socket.create_connection(("127.0.0.1", self._port))
                for pair in ((caller, server, "mute"), (server, caller, "forward")):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()
            elif self.mode == "hang":
                waiting.append(caller)
            else:
                caller.close()

    def _carry(self, source: socket.socket, target: socket.socket, unless: str) -> None:
        with contextlib.suppress(OSError):
            while (content := source.recv(65536)) and self.mode in ("forward", unless):
                target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


def tracker_for(uri: str | None, folder: Path, system_seconds: float = 60.0):
    return open_tracker(uri, "tests", folder / "spool", is_rank_zero=True, system_seconds=system_seconds)


def history(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def images(client, run_id: str) -> list[str]:
    return [file.path.split("+timestamp")[0] for file in client.list_artifacts(run_id, "images")]


def steps_in(path: Path) -> list[int]:
    records = [record for batch, _ in Spool(path).batches() for record in batch]
    return [record["step"] for record in records if "loss" in record.get("values", ())]
