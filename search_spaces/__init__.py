"""Backbones as search spaces, one a file, and the register that knows them by name."""

from __future__ import annotations

from acla_nas.search_spaces.edsr import edsr
from acla_nas.search_spaces.rcan import rcan
from acla_nas.search_spaces.registry import backbone, get, names, register

__all__ = ["backbone", "edsr", "get", "names", "rcan", "register"]
