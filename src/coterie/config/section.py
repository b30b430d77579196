"""What every section of the settings is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Strict on purpose: an unknown key is an error, never a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""`module:function`."""
