"""A predict that takes as long as the test wants.

It waits for as many seconds as its input says, or until the test lets it go by creating the file
`calls/<request id>.go`. It says that it has begun with `calls/<request id>.begun`: a test that
wants a call to be in flight can await that instead of guessing. The folder is in MLServer's
working directory, which main process and workers share.
"""

import asyncio
import time
from pathlib import Path

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

CALLS = Path("calls")


class Patient(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        [seconds] = payload.inputs[0].data
        (CALLS / f"{payload.id}.begun").touch()
        let_go = CALLS / f"{payload.id}.go"
        until = time.monotonic() + seconds
        while time.monotonic() < until and not let_go.exists():
            await asyncio.sleep(0.02)
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[ResponseOutput(name="waited", shape=[1], datatype="FP32", data=[seconds])],
        )
