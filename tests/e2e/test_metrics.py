"""The HTTP port: metrics that agree with what was sent, health, slow clients."""

import asyncio
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.adder import CONFIG
from tests.e2e.load import Load
from tests.e2e.model_folder import link_example, write_model
from tests.e2e.running import running
from tests.e2e.server import Server, wait_until
from tideserve.client import Client, InvalidArgument
from tideserve.client.views import ModelStatistics

pytestmark = pytest.mark.e2e

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
MODEL = "accelerator_standin"
BROKEN = "broken"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "repository").mkdir()
    link_example(folder / "repository", MODEL)
    with running(
        folder / "repository",
        folder / "state",
        "--triton-metrics",
        "--replicas=2",
        "--model-control=poll",
        "--poll-interval-s=0.1",
    ) as server:
        yield server


def test_metrics_scraped_under_load_agree_with_the_statistics(server: Server) -> None:
    load = Load(server.address, MODEL, 32, "IN")
    seen: list[float] = []

    async def scrape() -> None:
        for _ in range(20):
            samples = await asyncio.to_thread(_scrape, server)
            seen.append(_value(samples, "tideserve_requests_total", outcome="success", reason=""))
            _check_consistency(samples)
            await asyncio.sleep(0.02)

    asyncio.run(load.run(scrape()))
    assert not load.wrong
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]

    with Client(server.address) as client, pytest.raises(InvalidArgument):
        client.infer(MODEL, {"IN": np.ones((33, 16), np.float32)})
    (stats,) = _statistics(server)
    samples = _scrape(server)
    succeeded = _value(samples, "tideserve_requests_total", outcome="success", reason="")
    assert succeeded == stats.success.count
    assert succeeded >= load.right
    assert _value(samples, "tideserve_inferences_total") == stats.inference_count
    assert _value(samples, "tideserve_batches_total") == stats.execution_count
    failures = sum(
        value
        for (name, labels), value in samples.items()
        if name == "tideserve_requests_total" and ("outcome", "success") not in labels
    )
    assert failures == stats.fail.count > 0
    assert _value(samples, "tideserve_queue_wait_seconds_sum") == pytest.approx(
        stats.queue.total_s, rel=1e-3
    )
    assert _value(samples, "tideserve_replicas", state="READY") == 2
    assert _value(samples, "tideserve_queue_rows") == 0
    assert _value(samples, "tideserve_model_ready") == 1


def test_tritons_names_tell_the_same(server: Server) -> None:
    with Client(server.address) as client:
        for rows in (1, 2, 3):
            client.infer(MODEL, {"IN": np.ones((rows, 16), np.float32)})
    (stats,) = _statistics(server)
    samples = _scrape(server)
    for name, expected in {
        "nv_inference_request_success": stats.success.count,
        "nv_inference_request_failure": stats.fail.count,
        "nv_inference_count": stats.inference_count,
        "nv_inference_exec_count": stats.execution_count,
        "nv_inference_pending_request_count": 0,
    }.items():
        assert _value(samples, name) == expected, name
    for name, duration in {
        "nv_inference_request_duration_us": stats.success,
        "nv_inference_queue_duration_us": stats.queue,
        "nv_inference_compute_infer_duration_us": stats.compute_infer,
    }.items():
        assert _value(samples, name) == pytest.approx(duration.total_s * 1e6, abs=2), name


def test_health_and_readiness_tell_why_not(server: Server) -> None:
    assert _get(server, "/healthz") == (200, "ok\n")
    wait_until(lambda: _get(server, "/readyz") == (200, "ok\n"), 10)
    write_model(server.repository, BROKEN, CONFIG, "this is no Python\n")
    wait_until(lambda: "SyntaxError" in _get(server, "/readyz")[1], 20)
    status, sentence = _get(server, "/readyz")
    assert status == 503
    assert "broken version 1 is UNAVAILABLE" in sentence
    assert _get(server, "/healthz") == (200, "ok\n")
    (server.repository / BROKEN / "config.pbtxt").unlink()
    (server.repository / BROKEN / "1" / "model.py").unlink()
    (server.repository / BROKEN / "1").rmdir()
    (server.repository / BROKEN).rmdir()
    wait_until(lambda: _get(server, "/readyz") == (200, "ok\n"), 20)


def test_other_paths_and_methods_are_refused(server: Server) -> None:
    assert _get(server, "/")[0] == 404
    assert "/metrics" in _get(server, "/nothing")[1]
    request = urllib.request.Request(f"{_url(server)}/metrics", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    assert refused.value.code == 405


def test_slow_http_clients_hold_nobody_up(server: Server) -> None:
    began_s = time.monotonic()
    with ExitStack() as stack:
        for sent in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n") * 10:
            slow = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.http_port), timeout=10)
            )
            slow.sendall(sent)
        assert _get(server, "/healthz") == (200, "ok\n")
        _scrape(server)
        with Client(server.address) as client:
            client.infer(MODEL, {"IN": np.ones((1, 16), np.float32)})
        assert time.monotonic() - began_s < 2


# --- inside ------------------------------------------------------------------------------------


def _check_consistency(samples: Samples) -> None:
    """Histograms are cumulative, and their counts are those of their last bucket."""
    buckets: dict[str, list[tuple[float, float]]] = {}
    for (name, labels), value in samples.items():
        if name.endswith("_bucket") and ("model", MODEL) in labels:
            bound = float(dict(labels)["le"])
            buckets.setdefault(name.removesuffix("_bucket"), []).append((bound, value))
    assert "tideserve_queue_wait_seconds" in buckets
    assert len(buckets) == 4
    for name, found in buckets.items():
        counts = [value for _, value in sorted(found)]
        assert counts == sorted(counts)
        assert counts[-1] == _value(samples, f"{name}_count")


def _scrape(server: Server) -> Samples:
    status, text = _get(server, "/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _value(samples: Samples, name: str, **labels: str) -> float:
    """Of the model that is called here."""
    return samples[name, frozenset({"model": MODEL, "version": "1", **labels}.items())]


def _statistics(server: Server) -> tuple[ModelStatistics, ...]:
    with Client(server.address) as client:
        return client.statistics(MODEL)


def _get(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{_url(server)}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def _url(server: Server) -> str:
    return f"http://127.0.0.1:{server.http_port}"
