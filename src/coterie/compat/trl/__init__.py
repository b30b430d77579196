"""TRL's GRPOTrainer and GRPOConfig over `coterie.train`: a script is ported by changing its imports."""

from coterie.compat.trl.config import GRPOConfig
from coterie.compat.trl.trainer import GRPOTrainer

__all__ = ["GRPOConfig", "GRPOTrainer"]
