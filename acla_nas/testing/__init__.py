"""Contract suites that every attention module must pass, one's own included, and what they measure with."""

from acla_nas.testing.attention import check_attention
from acla_nas.testing.macs import count_macs

__all__ = ["check_attention", "count_macs"]
