"""ModelStatistics shows each version's own numbers, once."""

from tests.server.samples import make_config, make_found, serve
from tideserve.server.models import ModelTable
from tideserve.server.statistics import statistics


def test_every_number_is_in_its_place() -> None:
    models = ModelTable()
    (key,) = serve(models, make_found())
    stats = models.entries[key].stats
    stats.on_batch(rows=3, requests=2, input_s=0.001, infer_s=0.002, output_s=0.003, unix_s=1.5)
    stats.on_answers(11.0, 10.5, [10.0, 10.25])
    stats.on_failure("model_error", 0.25)

    (model,) = statistics(models.entries.values()).model_stats

    assert (model.name, model.version, model.last_inference) == ("m", "1", 1500)
    assert (model.inference_count, model.execution_count) == (3, 1)
    numbers = model.inference_stats
    assert (numbers.success.count, numbers.success.ns) == (2, 1_750_000_000)
    assert (numbers.queue.count, numbers.queue.ns) == (2, 750_000_000)
    assert (numbers.fail.count, numbers.fail.ns) == (1, 250_000_000)
    assert (numbers.compute_input.count, numbers.compute_input.ns) == (2, 2_000_000)
    assert (numbers.compute_infer.count, numbers.compute_infer.ns) == (2, 4_000_000)
    assert (numbers.compute_output.count, numbers.compute_output.ns) == (2, 6_000_000)
    (batch,) = model.batch_stats
    assert (batch.batch_size, batch.compute_infer.count) == (3, 1)
    assert batch.compute_infer.ns == 2_000_000


def test_two_generations_of_a_version_are_one_entry_with_one_count() -> None:
    models = ModelTable()
    (old,) = serve(models, make_found(versions=[(1, "a")]))
    models.load(make_found(versions=[(1, "b")]))
    models.entries[old].stats.arrivals = 5

    assert len(models.entries) == 2
    assert len({id(entry.stats) for entry in models.entries.values()}) == 1
    assert len(statistics(models.entries.values()).model_stats) == 1


def test_numbers_outlive_a_reload() -> None:
    models = ModelTable()
    (old,) = serve(models, make_found(versions=[(1, "a")]))
    models.entries[old].stats.on_answers(1.0, 0.5, [0.0])
    (new,) = serve(models, make_found(versions=[(1, "b")], config=make_config()))
    models.remove(old)

    (model,) = statistics([models.entries[new]]).model_stats
    assert model.inference_stats.success.count == 1
