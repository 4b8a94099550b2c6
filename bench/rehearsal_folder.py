"""Where the rehearsal of bench/rehearsal.py lies; imports nothing that takes long."""

from dataclasses import dataclass
from pathlib import Path

STAGE = "backbones"
# Each in a process of its own (bench/rehearsal_steps.py); then `serve`.
STEPS = ("write", "import", "verify", "register", "package")


@dataclass(frozen=True)
class Rehearsal:
    """Where it happens, and with how many layers of each part at most."""

    folder: Path
    layers: int | None = None

    @property
    def arguments(self) -> list[str]:
        """For the command line of a step."""
        return [str(self.folder), *([] if self.layers is None else [str(self.layers)])]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of all steps: a store of bentos that is the rehearsal's own."""
        return {"BENTOML_HOME": str(self.folder / "bentoml"), "MLFLOW_TRACKING_URI": self.mlflow}

    @property
    def mlflow(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def published(self) -> Path:
        return self.folder / "published"

    @property
    def model_dir(self) -> Path:
        return self.folder / "outputs" / STAGE / "model"
