"""What a command takes from NNI where it is a trial of an NNI experiment: parameters, and a run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acla_nas.config import Config


def parameters() -> dict[str, Any]:
    """Return what NNI's tuner chose for this trial; nothing where this is none."""
    if not _in_nni():
        return {}
    from acla_nas.nni_nas import nni

    return dict(nni.get_next_parameter() or {})


def as_overrides(chosen: Mapping[str, Any]) -> list[str]:
    """Return parameters whose names are keys of the configuration as overrides of it."""
    return [f"{key}={json.dumps(value)}" for key, value in chosen.items()]


def with_own_folder(config: Config) -> Config:
    """Return the configuration, in a trial with a run folder of the trial's own."""
    if not _in_nni():
        return config
    from acla_nas.nni_nas import nni

    run = Path(config.run, nni.get_experiment_id(), f"trial_{nni.get_sequence_id()}")
    return config.model_copy(update={"run": str(run)})


def _in_nni() -> bool:
    return bool(os.environ.get("NNI_PLATFORM"))
