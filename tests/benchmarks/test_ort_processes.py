"""Bare ONNX Runtime in several processes at a time."""

import pytest

from benchmarks.peers.ort_processes import measure_ort, together
from benchmarks.workloads import DIGITS

LOOP = {
    "calls": 100,
    "checked": 1,
    "seconds": 2.0,
    "cpu_s": 1.0,
    "pss_bytes": 3_000_000,
    "p50_s": 0.01,
    "p99_s": 0.02,
    "p999_s": 0.03,
}


def test_rates_and_memory_add_up() -> None:
    figures = together([LOOP, {**LOOP, "calls": 300, "p50_s": 0.03}], rows=8)
    assert figures.requests_per_s == pytest.approx((100 + 300) * 8 / 2.0)
    assert figures.p50_ms == pytest.approx(20.0)
    assert figures.p999_ms is None
    assert figures.cpu_us == pytest.approx(2e6 / 3200)
    assert figures.pss_mb == pytest.approx(6.0)
    assert figures.checked == 16
    assert together([{**LOOP, "calls": 1000}], rows=1).p999_ms == pytest.approx(30.0)


def test_two_processes_run_and_are_checked() -> None:
    figures = measure_ort(DIGITS, rows=4, processes=2, seconds=0.1)
    assert figures.requests >= 4 * 2
    assert figures.checked >= 4 * 2
    assert figures.requests_per_s > 0.0
    assert figures.pss_mb > 10.0
