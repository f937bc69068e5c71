"""Ask a Triton server over gRPC, in the Python that has tritonclient.

triton_client.py PORT MODEL AUDIO JSON CANCEL_AFTER prints a JSON array: an object with the outputs
of each response, and one with "error" for an error. The request is cancelled after CANCEL_AFTER
responses unless that is 0.
"""

from __future__ import annotations

import json
import queue
import sys
from pathlib import Path
from typing import Any

__all__: list[str] = []


def main() -> None:
    """Run the program."""
    import numpy as np
    import tritonclient.grpc as grpc

    port, model, audio, options, cancel_after = sys.argv[1:]
    answers: queue.Queue[Any] = queue.Queue()
    data = np.frombuffer(Path(audio).read_bytes(), np.uint8)
    sent = grpc.InferInput("audio", [len(data)], "UINT8")
    sent.set_data_from_numpy(data)
    client = grpc.InferenceServerClient(f"127.0.0.1:{port}")
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer(
        model, [sent], parameters={"options": options}, enable_empty_final_response=True
    )
    found: list[dict[str, str]] = []
    ended = False
    while not ended:
        result, error = answers.get(timeout=120)
        if error is not None:
            found.append({"error": str(error)})
            break
        response = result.get_response()
        ended = response.parameters["triton_final_response"].bool_param
        found.append({each.name: text(result, each.name) for each in response.outputs})
        if len(found) == int(cancel_after):
            client.stop_stream(cancel_requests=True)
            break
    client.close()
    sys.stdout.write(json.dumps(found))


def text(result: Any, name: str) -> str:
    """The text of an output."""
    found: str = result.as_numpy(name)[0].decode()
    return found


if __name__ == "__main__":
    main()
