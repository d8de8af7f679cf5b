"""A job reports at once that no cluster answers, and gives its processes their variables."""

import os
import socket
from types import SimpleNamespace

import pytest

from pipeline.errors import UserError
from pipeline.runtime.connect import process_setup, start_ray
from pipeline.settings import load


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    import ray

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody else takes it, and not listening
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests share a cluster
        with pytest.raises(UserError, match=f"RAY_ADDRESS = {address}: no Ray cluster answers there.*ray start --head"):
            start_ray(load(["--recipe", "demo"])[0].cluster)


def test_variables_of_trackers_reach_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key-of-the-driver")
    monkeypatch.setenv("WORDS_UNKNOWN", "kept")
    set_up = process_setup()
    for name in ("WANDB_API_KEY", "WORDS_UNKNOWN", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "other")  # and put back after what set_up does
        monkeypatch.delenv(name)
    monkeypatch.setattr(
        "ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="here:1", get_job_id=lambda: "01")
    )
    set_up()
    assert os.environ["WANDB_API_KEY"] == "key-of-the-driver" and "WORDS_UNKNOWN" not in os.environ
