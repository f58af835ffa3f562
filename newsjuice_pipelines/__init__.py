"""NewsJuice pipelines: distil a hosted LLM into a small script writer, and train a news-topic classifier."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("newsjuice-pipelines")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"
