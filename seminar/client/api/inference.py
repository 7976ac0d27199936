"""The Open Inference Protocol's health and metadata, by which platforms know a model server."""

from typing import Literal

from pydantic import ConfigDict

from seminar.client.api import examples
from seminar.client.api.base import Output

MODEL = "seminar"
"""Name of the only model."""


class ServerLive(Output):
    live: Literal[True] = True


class ServerReady(Output):
    ready: Literal[True] = True


class ServerMetadata(Output):
    name: str
    version: str
    extensions: list[str]
    """None: scoring has its own routes, because its inputs are no tensors."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.SERVER]})


class TensorMetadata(Output):
    name: str
    datatype: str
    shape: list[int]
    """-1: any length."""


class ModelMetadata(Output):
    name: str
    versions: list[str]
    """The bundle in use."""
    platform: str
    inputs: list[TensorMetadata]
    """As POST /v1/score takes them."""
    outputs: list[TensorMetadata]

    model_config = ConfigDict(json_schema_extra={"examples": [examples.MODEL]})


class ModelReady(Output):
    name: str = MODEL
    ready: Literal[True] = True
