"""Many rows as several requests, a bounded number at a time."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def split_rows(inputs: Mapping[str, Array], batch_rows: int) -> list[dict[str, Array]]:
    """The inputs in pieces of at most `batch_rows` rows, in order."""
    rows = len(next(iter(inputs.values())))
    return [
        {name: array[start : start + batch_rows] for name, array in inputs.items()}
        for start in range(0, rows, batch_rows)
    ]


def infer_all(
    infer: Callable[[Mapping[str, Array]], dict[str, Array]],
    pieces: list[dict[str, Array]],
    concurrency: int,
    done: Callable[[int], None],
) -> dict[str, Array]:
    """The outputs of all pieces, rows joined in order. `done(rows)` is called after each.

    The first error ends it: what has not been sent is not sent.
    """
    results: list[dict[str, Array]] = [{} for _ in pieces]
    with ThreadPoolExecutor(min(concurrency, len(pieces))) as pool:
        indexes = {pool.submit(infer, piece): index for index, piece in enumerate(pieces)}
        try:
            for future in as_completed(indexes):
                index = indexes[future]
                results[index] = future.result()
                done(len(next(iter(pieces[index].values()))))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if len(results) == 1:
        return results[0]
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}
