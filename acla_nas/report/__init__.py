"""Reports: which keys a network selects, as numbers and as a picture (Figures 2 and 4 of the paper)."""

from acla_nas.report.keys import LayerKeys, non_local_keys, selected_keys
from acla_nas.report.picture import plot_keys, textured_pixel

__all__ = ["LayerKeys", "non_local_keys", "plot_keys", "selected_keys", "textured_pixel"]
