"""ModelStatistics: a model version's numbers in the protocol's shape."""

from collections.abc import Iterable

from tideserve.server.models import ModelEntry
from tideserve.server.stats import Duration, ModelStats
from tideserve.v1.inference_pb2 import (
    InferBatchStatistics,
    InferStatistics,
    ModelStatistics,
    ModelStatisticsResponse,
    StatisticDuration,
)


def statistics(entries: Iterable[ModelEntry]) -> ModelStatisticsResponse:
    """Numbers since the server started, one entry a model version."""
    by_version = {(entry.key.name, entry.key.version): entry.stats for entry in entries}
    return ModelStatisticsResponse(
        model_stats=[_model(name, version, stats) for (name, version), stats in by_version.items()]
    )


def _model(name: str, version: int, stats: ModelStats) -> ModelStatistics:
    return ModelStatistics(
        name=name,
        version=str(version),
        last_inference=int(stats.last_inference_unix_s * 1000),
        inference_count=stats.inferences,
        execution_count=stats.executions,
        inference_stats=InferStatistics(
            success=_duration(stats.success),
            fail=_duration(stats.fail),
            queue=_duration(stats.queue),
            compute_input=_duration(stats.compute_input),
            compute_infer=_duration(stats.compute_infer),
            compute_output=_duration(stats.compute_output),
        ),
        batch_stats=[
            InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(batch.input),
                compute_infer=_duration(batch.infer),
                compute_output=_duration(batch.output),
            )
            for rows, batch in sorted(stats.batches.items())
        ],
    )


def _duration(duration: Duration) -> StatisticDuration:
    return StatisticDuration(count=duration.count, ns=duration.ns)
