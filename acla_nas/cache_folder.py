"""The folder of what can be worked out again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $ACLA_NAS_CACHE, or acla_nas in the user's cache."""
    own = os.environ.get("ACLA_NAS_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "acla_nas"
