"""Settings of the update: AdamW, its schedule, batching and memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from coterie.config.base import Section


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(default=1e-6, gt=0)
    """Learning rate after warm-up."""
    warmup: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or decay as in transformers. Of T optimizer steps with W of warm-up, a share
    r = (T - s + 1) / (T - W) is left at step s. linear: the rate is lr · r, and still lr / (T - W) at the last step;
    cosine: lr · (1 - cos(π·r)) / 2."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's β1, decay of the first moment."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Adam's β2, decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's ε, added to the denominator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW)."""
    decay_norms: bool = False
    """Decay vectors too (norm weights and biases), as plain torch.optim.AdamW does; by default only matrices and
    embeddings are decayed, as by transformers' Trainer."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping: gradients are scaled down to this norm."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps per collected batch; above 1 the old log-probs are scored first."""
    epochs: int = Field(default=1, ge=1)
    """Passes over a collected batch (TRL's num_iterations, verl's ppo_epochs)."""
    max_tokens_per_microbatch: int = Field(default=1024, ge=1)
    """Tokens per micro-batch; a group is not cut below twice its prompt's length. Changes memory, never the gradient
    (beyond rounding)."""
    subsample: float = Field(default=0.0, ge=0, le=2)
    """Stochastic down-sampling (Russian roulette) of rollouts with small advantages: each is kept with probability
    |advantage| / (subsample · RMS of the advantages), at most 1, and weighted by its inverse. Same expected gradient
    from fewer tokens; the advantages' second moment grows by subsample² / 4 at most. 0 = off."""
    moments: Literal["float32", "8bit"] = "float32"
    """Precision of Adam's moments: float32 (float64 under float64), or 8 bits in blocks of 256 (needs the `8bit`
    extra)."""
    gradient_checkpointing: bool = False
    """Keep one activation per layer and recompute the rest in the backward pass. Less memory,
    about a third more compute, the same gradient."""
    activation_offload: bool = False
    """Offload activations to main memory between forward and backward pass; GPU only. Experimental."""
    attention: Literal["auto", "flex", "sdpa"] = "auto"
    """Kernel of the update: flex is one block-sparse FlexAttention call a layer, sdpa one plain call a prompt and a
    group. The same numbers up to rounding; auto takes flex on CUDA."""
    compile_layers: bool = False
    """Compile each decoder layer with torch.compile for the update (a minute at the start; for GPUs)."""
    max_skipped: int = Field(default=3, ge=0)
    """Stop after this many consecutive updates with a non-finite gradient."""
