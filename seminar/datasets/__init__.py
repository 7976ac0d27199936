"""Public dumps, one file a source; `open_source(settings.data)` gives the one that a configuration names."""

from seminar.datasets.base import Loaded, Part, Source, open_source

__all__ = ["Loaded", "Part", "Source", "open_source"]
