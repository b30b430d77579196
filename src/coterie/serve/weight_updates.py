"""Updates of the served weights: files of one folder that a client names, by SGLang's `/update_weights_from_disk`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from coterie.errors import ConfigError, ModelError
from coterie.policy import shared_weights
from coterie.policy.model import Policy
from coterie.serve.engine_thread import EngineThread, new_fingerprint
from coterie.serve.refusals import RefusalError


class WeightParameters(BaseModel):
    """Body of `/update_weights_from_disk`, in SGLang's names."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model_path: str = Field(min_length=1, max_length=4096)
    """A safetensors file, relative to the server's folder of weights, or absolute and inside of it."""
    weight_version: str = Field(pattern=r"^\d{1,18}$")
    """Policy version that the weights are from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdates:
    """Exchange of the weights of a served policy.

    Args:
        folder: the only one that files are read from.

    Raises:
        ConfigError: there is no such folder, or the policy has an adapter.
    """

    folder: Path
    policy: Policy
    engine: EngineThread

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise ConfigError(f"weights_folder = {self.folder} is no folder; create it, for the learner writes there")
        if self.policy.adapters is not None:
            raise ConfigError(
                f"{self.policy.name} is an adapter, whose weights cannot be updated; serve its base model, to which "
                "the learner's updates are whole weights"
            )

    async def update(self, model_path: str, weight_version: str) -> int:
        """Serve the weights of a file; returns their version.

        Raises:
            RefusalError: the file is not in the folder, damaged, or of another model (nothing is changed then), or
                requests are open.
        """
        path, version = self._inside(model_path), int(weight_version)

        def change() -> None:
            shared_weights.read_into(self.policy, path)
            self.engine.engine.commit(version)
            self.engine.fingerprint = new_fingerprint()

        try:
            await self.engine.between_passes(change, alone=True)
        except ModelError as error:
            raise RefusalError(400, str(error), param="model_path") from error
        return version

    def _inside(self, model_path: str) -> Path:
        """The file that a client names. Links are followed before its place is judged."""
        root = self.folder.resolve()
        try:
            path = (root / model_path).resolve()
            usable = path.is_relative_to(root) and path.is_file() and path.suffix == ".safetensors"
        except (OSError, ValueError, RuntimeError):
            usable = False
        if not usable:
            message = f"model_path = {model_path!r:.200} is no *.safetensors file in the folder of weights"
            raise RefusalError(400, message + "; write it there first", param="model_path")
        return path
