"""inspectd: a vision sensor that looks at every part and says pass or fail."""

__version__ = "0.1.0"
