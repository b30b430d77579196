"""Memory of a policy's trained weights, given back while nobody reads them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from coterie.policy.activations import release


class TrainedWeights:
    """The trained weights of a policy, which may be without memory for a while.

    Args:
        weights: by name, each tensor once; the tensors themselves stay, so that whoever holds one sees it come and go.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)
        self._shapes = {name: tensor.shape for name, tensor in weights.items()}

    def release(self) -> None:
        """Give their memory back, to the device or the system: the values are lost, every tensor has no element."""
        for tensor in self._weights.values():
            tensor.data = tensor.data.new_empty(0)
        release()

    def allocate(self) -> None:
        """Have memory for them again, where they have none; the values are undefined."""
        for name, tensor in self._weights.items():
            if tensor.shape != self._shapes[name]:
                tensor.data = tensor.data.new_empty(self._shapes[name])
