"""The version of acla_nas."""

__version__ = "0.1.0"
