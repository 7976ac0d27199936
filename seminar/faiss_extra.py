"""faiss is an optional extra: imported where it is used, missed in one sentence."""

from types import ModuleType

from seminar.errors import ConfigError, explain


def faiss_module(what: str) -> ModuleType:
    """faiss, or a ConfigError that says what needs it."""
    try:
        import faiss
    except ImportError as error:
        fix = "pip install 'seminar[cpu]' (or [gpu]), or choose another"
        raise ConfigError(explain(what, got="no faiss", expected="the extra `cpu` or `gpu`", fix=fix)) from error
    return faiss
