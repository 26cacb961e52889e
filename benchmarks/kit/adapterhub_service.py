"""AdapterHub's model behind FastAPI, as its users serve it: `python -m kit.adapterhub_service BASE ADAPTER…`."""

from __future__ import annotations

import socket
import sys
from threading import Lock
from typing import Any

import adapters
import torch
import uvicorn
from fastapi import Body, FastAPI
from transformers import AutoModel, AutoTokenizer

CLASSES = 6


def main(base: str, names: list[str]) -> None:
    """Serve random adapters of the same size as those of the bundle, each with a head."""
    torch.set_num_threads(1)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base).eval()
    adapters.init(model)
    heads = {}
    for name in names:
        model.add_adapter(name, config=adapters.DoubleSeqBnConfig(reduction_factor=model.config.hidden_size / 64))
        heads[name] = torch.nn.Linear(model.config.hidden_size, CLASSES)
    app, turn = FastAPI(), Lock()  # the active adapter is a state of the model

    @app.post("/")
    def answer(a: str = Body(), t: str = Body()) -> dict[str, Any]:
        inputs = tokenizer(t, return_tensors="pt")
        with turn, torch.inference_mode():
            model.set_active_adapters(a)
            hidden = model(**inputs).last_hidden_state
            shares = heads[a](hidden.mean(1)).softmax(-1)[0]
        return {"label": int(shares.argmax()), "probabilities": shares.tolist()}

    listening = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
