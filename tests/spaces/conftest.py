"""What Gradio leaves open is collected before other tests come."""

from __future__ import annotations

import gc
import warnings

import pytest

from melreformer_hf.cli.demo import load_app


@pytest.fixture(scope="session")
def app():
    """The Space's app; its folder is where the Space's modules are found from here on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Gradio's modules
        return load_app()


@pytest.fixture(scope="module")
def connected(app):
    """Clients of demos that run until the module's tests end: call it with the demo."""
    demos = []

    def connect(demo):
        from gradio_client import Client

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Gradio's servers
            settings = {**app.launch_settings(), "server_name": "127.0.0.1"}
            _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **settings)
            demos.append(demo)
            return Client(url, verbose=False)

    yield connect
    for demo in demos:
        demo.close()


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind():
    """Event loops and sockets of servers and clients would otherwise be collected, and complain, in any later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(3):  # what one pass ends may hold what the next one finds
            gc.collect()
