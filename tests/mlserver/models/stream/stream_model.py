"""Answers each request of a stream with three responses, the next one only when the test says so.

Each response waits for the file `calls/<id>.<request>.<response>`, both counted from 0. A client
that has seen a response before it created the file for the next one has proof that nothing on the
way collects them. (The id is the first request's: MLServer gives it to all requests of a stream.)
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Stream(MLModel):
    async def predict_stream(
        self, payloads: AsyncIterator[InferenceRequest]
    ) -> AsyncIterator[InferenceResponse]:
        request = 0
        async for payload in payloads:
            for n in range(3):
                while not Path(f"calls/{payload.id}.{request}.{n}").exists():
                    await asyncio.sleep(0.02)
                yield InferenceResponse(
                    id=payload.id,
                    model_name=self.name,
                    model_version=self.version,
                    outputs=[
                        ResponseOutput(name="n", shape=[2], datatype="INT32", data=[request, n])
                    ],
                )
            request += 1
