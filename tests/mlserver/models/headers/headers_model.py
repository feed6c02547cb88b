"""Gives back the HTTP headers or the gRPC metadata that it was called with."""

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Headers(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        headers = sorted(payload.parameters.headers.items())
        lines = [f"{name}: {value!r}".encode() for name, value in headers]
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[
                ResponseOutput(name="headers", shape=[len(lines)], datatype="BYTES", data=lines)
            ],
        )
