"""Renders docs/reference.md from the settings' own models: `python docs/render_reference.py > docs/reference.md`."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from seminar.config import Settings


def render() -> str:
    """One table a section: key, type with bounds, default, meaning."""
    intro = "Generated from `seminar/config.py`. A TOML file holds only what differs; a flag is `--section.key value`."
    lines = ["# Settings", "", intro, ""]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            lines += [f"## {name}", "", (section.__doc__ or "").split("\n")[0], "", *_table(section), ""]
        else:
            lines += [f"**{name}**: {_text(field)} Default `{field.default}`.", ""]
    return "\n".join(lines)


def _table(section: type[BaseModel]) -> Iterator[str]:
    yield "| key | type | default | |"
    yield "|---|---|---|---|"
    yield from _rows(section)


def _rows(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(inner, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            yield f"| `{prefix}{name}` | {_type(field)} | `{default}` | {_text(field)} |"


def _type(field: FieldInfo) -> str:
    kind: Any = field.annotation
    shown = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind).replace("typing.", "")
    shown = shown.replace("pathlib.", "").replace("datetime.", "").replace("|", "or")
    symbols = {"Gt": ">", "Ge": "≥", "Lt": "<", "Le": "≤"}
    bounds = [f"{sign} {vars_of(m)}" for m in field.metadata if (sign := symbols.get(type(m).__name__))]
    return shown + (f", {', '.join(bounds)}" if bounds else "")


def vars_of(bound: Any) -> Any:
    return next(getattr(bound, name) for name in ("gt", "ge", "lt", "le") if hasattr(bound, name))


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").replace("|", "\\|").split())


if __name__ == "__main__":
    print(render())
