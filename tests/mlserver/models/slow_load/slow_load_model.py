"""A load of ten seconds that yields to others, as one that downloads its weights does.

For as long as it takes, MLServer answers "not ready" for the whole server.
"""

import asyncio

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class SlowLoad(MLModel):
    async def load(self) -> bool:
        await asyncio.sleep(10)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[ResponseOutput(name="loaded", shape=[1], datatype="BOOL", data=[True])],
        )
