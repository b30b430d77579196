"""Running out of memory cuts the packed batch in two and goes on; the sum over its tokens stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from coterie.batches.batch import Batch, halves
from coterie.errors import DoesNotFitError
from coterie.policy.allocator import release

T = TypeVar("T")

_SIGNS = (
    "can't allocate memory",  # torch's CPU allocator
    "std::bad_alloc",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused; torch raises a plain RuntimeError for the CPU's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


class Fitting:
    """Runs work on packed batches, and remembers what was too large.

    Attributes:
        limit: most tokens of a packed row, once a larger one did not fit; None before.
        splits: how often a batch was cut in two because its memory was refused.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.splits = 0

    def run(self, batch: Batch, attempt: Callable[[Batch, set[str]], T]) -> list[T]:
        """Results of the parts of `batch`, in the order of its rollouts.

        Args:
            attempt: does the work for one part. Its second argument names what an earlier attempt at a larger batch
                finished before it failed: the attempt leaves that out, and adds what it finishes itself.

        Raises:
            DoesNotFitError: a single rollout is too large.
        """
        results: list[T] = []
        todo: list[tuple[Batch, set[str]]] = [(part, set()) for part in self._cut(batch)][::-1]
        while todo:
            part, done = todo.pop()
            done = set(done)
            try:
                results.append(attempt(part, done))
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = str(error).partition("\n")[0]
            # Outside of the handler: until then the traceback holds what the failed pass had allocated.
            release()
            found = self._halves(part, said)
            self.splits += 1
            self.limit = min(self.limit or len(part.tokens), max(len(half.tokens) for half in found))
            todo.extend((half, done) for half in reversed(found))
        return results

    def _cut(self, batch: Batch) -> list[Batch]:
        """Cut until every part is within the limit, as far as rollouts allow."""
        if self.limit is None or len(batch.tokens) <= self.limit or len(batch.spans) < 2:
            return [batch]
        return [part for half in halves(batch) for part in self._cut(half)]

    @staticmethod
    def _halves(part: Batch, said: str) -> tuple[Batch, Batch]:
        if len(part.spans) < 2:
            raise DoesNotFitError(
                f"the update of a single rollout of {len(part.tokens)} tokens does not fit into memory ({said}); set "
                "optim.checkpointing = true, lower sampling.max_tokens or data.max_prompt_tokens, use optim.state = "
                '"8bit", or train an adapter (model.lora)'
            )
        return halves(part)
