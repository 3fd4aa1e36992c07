"""fwviz: see model merging as it happens."""

__version__ = "0.1.0"
