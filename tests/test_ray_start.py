"""No cluster where one is named: one clear line, at once."""

import socket

import pytest

from pipeline.config import load
from pipeline.ray_start import start_ray
from pipeline.settings import UserError


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    import ray

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody else takes it, and not listening
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests share a cluster
        with pytest.raises(UserError, match=f"RAY_ADDRESS = {address}: no Ray cluster answers there.*ray start --head"):
            start_ray(load(["--recipe", "demo"])[0])
