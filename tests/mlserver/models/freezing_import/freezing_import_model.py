"""A runtime whose import takes four seconds, as that of a large framework does.

MLServer imports a runtime in the event loop of its main process, and then once more to pick up
changes: for eight seconds it answers nobody, on no port.
"""

import multiprocessing
import time
from pathlib import Path

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

# The worker imports it too, which freezes nobody but the worker: it would only cost the test time.
if multiprocessing.parent_process() is None:
    Path("calls/import.begun").touch()
    time.sleep(4)


class FreezingImport(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[ResponseOutput(name="imported", shape=[1], datatype="BOOL", data=[True])],
        )
