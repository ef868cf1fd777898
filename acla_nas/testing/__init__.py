"""Contract suites for attention, cost models and strategies, one's own included, and their measures."""

from acla_nas.testing.attention import check_attention
from acla_nas.testing.cost import check_cost
from acla_nas.testing.macs import count_macs
from acla_nas.testing.one_shot import search_by_epochs
from acla_nas.testing.space import check_space
from acla_nas.testing.strategy import check_strategy, table_space

__all__ = [
    "check_attention",
    "check_cost",
    "check_space",
    "check_strategy",
    "count_macs",
    "search_by_epochs",
    "table_space",
]
