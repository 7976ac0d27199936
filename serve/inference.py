"""Routes of the Open Inference Protocol: health and metadata, without a token, as probes have none."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends

from seminar.client import api
from serve.refusals import ERRORS
from serve.service import Service

_INPUTS = [api.TensorMetadata(name=name, datatype="BYTES", shape=shape) for name, shape in (("user_id", [1]), ("item_id", [-1]))]
_OUTPUTS = [api.TensorMetadata(name="scores", datatype="FP32", shape=[-1])]


def inference_routes(service: Callable[[], Service]) -> APIRouter:
    """/v2 and what is below it."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses={503: ERRORS[503]})
    Held = Annotated[Service, Depends(service)]
    model = f"/models/{api.MODEL}"

    @router.get("")
    async def server() -> api.ServerMetadata:
        """The server."""
        return api.ServerMetadata(name="seminar", version="1", extensions=[])

    @router.get("/health/live")
    async def live() -> api.ServerLive:
        """The process answers."""
        return api.ServerLive()

    @router.get("/health/ready")
    async def ready(held: Held) -> api.ServerReady:
        """A bundle is loaded; 503 before that."""
        _ = held.engine.live
        return api.ServerReady()

    @router.get(model)
    async def metadata(held: Held) -> api.ModelMetadata:
        """The model: its version is the bundle in use."""
        versions = [held.engine.live.bundle.version]
        return api.ModelMetadata(name=api.MODEL, versions=versions, platform="seminar_ray", inputs=_INPUTS, outputs=_OUTPUTS)

    @router.get(f"{model}/ready")
    async def model_ready(held: Held) -> api.ModelReady:
        """A bundle is loaded; 503 before that."""
        _ = held.engine.live
        return api.ModelReady(name=api.MODEL)

    return router
