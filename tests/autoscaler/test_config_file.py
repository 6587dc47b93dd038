"""What is in an autoscaler file and what is wrong with it."""

import json
from datetime import UTC
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.autoscaler.key_table import keys
from tideserve.autoscaler.config import AutoscalerFile, DockerLauncherSection
from tideserve.autoscaler.config_file import MAX_BYTES, parse_config, read_config
from tideserve.autoscaler.core.settings import (
    Device,
    ModelPolicy,
    QueueTarget,
    Schedule,
    StepLimits,
    Trigger,
)
from tideserve.autoscaler.errors import ConfigError
from tideserve.autoscaler.quantity import bytes_of, cores_of, seconds_of


def parse(text: str) -> AutoscalerFile:
    return parse_config(text.encode(), "file.yaml")


@pytest.mark.parametrize("text", ["", "{}", "models: {}", "# nothing", "models: {a: null}"])
def test_a_short_file_is_a_good_one(text: str) -> None:
    scaling = parse(text).scaling()
    assert scaling.default == ModelPolicy()
    assert scaling.policy_of("a") == ModelPolicy()
    assert scaling.standby == 0


def test_every_key_reaches_the_core() -> None:
    scaling = parse(
        """
        standby: 2
        prepared: 3
        prometheus: {url: "http://p:9090/"}
        devices:
          - {name: "gpu:1", slots: 2, memory: 8GiB, threads: 3, cores: ["0-1", "2,3"]}
        models:
          m:
            min: 0
            max: 9
            queue_latency: {quantile: 0.9, target: 20ms}
            latency_target: 0.25
            hold: 1m
            growth_quantile: 0.7
            hold_factor: 4
            idle: 2h
            steps: {up: 3, down: 1, per: 5s}
            schedules:
              - {cron: "0 8 * * 1-5", duration: 10h, min: 4, timezone: Europe/Berlin}
            triggers: [{name: jobs, query: sum(jobs), target: 10}]
            priority: 5
            cost_per_replica_second: 0.5
            memory: 512MiB
        """
    ).scaling()
    assert scaling.models["m"] == ModelPolicy(
        min_replicas=0,
        max_replicas=9,
        queue_target=QueueTarget(0.9, 0.02),
        latency_target_s=0.25,
        growth_quantile=0.7,
        hold_factor=4.0,
        hold_s=60.0,
        idle_s=7200.0,
        steps=StepLimits(3, 1, 5.0),
        schedules=(Schedule("0 8 * * 1-5", 36_000.0, 4, ZoneInfo("Europe/Berlin")),),
        triggers=(Trigger("jobs", "sum(jobs)", 10.0),),
        priority=5,
        cost_per_replica_s=0.5,
        memory_bytes=512 * 2**20,
    )
    assert scaling.devices == (
        Device("gpu:1", 2, 8 * 2**30, 3, (frozenset({0, 1}), frozenset({2, 3}))),
    )
    assert (scaling.standby, scaling.prepared) == (2, 3)
    assert Schedule("* * * * *", 1.0, 1).zone is UTC


def test_a_model_takes_from_defaults_what_it_leaves_out() -> None:
    file = parse("defaults: {max: 3, hold: 7s}\nmodels: {a: {max: 5}, b: {}}")
    assert (file.models["a"].max, file.models["a"].hold) == (5, 7.0)
    assert (file.models["b"].max, file.models["b"].hold) == (3, 7.0)
    assert file.scaling().policy_of("c").max_replicas == 3


def test_a_section_that_is_given_in_part_takes_the_rest_from_defaults() -> None:
    file = parse(
        "defaults: {queue_latency: {quantile: 0.5, target: 1s}, steps: {up: 2}}\n"
        "models: {a: {queue_latency: {target: 2s}, steps: {down: 1}}}"
    )
    model = file.models["a"]
    assert (model.queue_latency.quantile, model.queue_latency.target) == (0.5, 2.0)
    assert (model.steps.up, model.steps.down) == (2, 1)


def test_the_docker_launcher_and_prometheus_are_chosen_by_their_sections() -> None:
    file = parse(
        "launcher: {docker: {frontend_address: 'f:1', models_source: /m, memory: 1GB}}\n"
        "source: {prometheus: {url: 'http://p:9090', interval: 2s}}"
    )
    assert isinstance(file.launcher, DockerLauncherSection)
    assert file.launcher.docker.memory == 10**9
    assert file.prometheus_server is not None
    assert file.prometheus_server.interval == 2.0


def test_merge_keys_are_yaml_like_any_other() -> None:
    file = parse("defaults: &d {max: 3, hold: 7s}\nmodels: {a: {<<: *d, max: 5}}")
    assert (file.models["a"].max, file.models["a"].hold) == (5, 7.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modles: {}", "modles: unknown key, did you mean models?"),
        ("models: {a: {mni: 1}}", "models.a.mni: unknown key, did you mean min?"),
        ("models: {a: {steps: {upp: 1}}}", "models.a.steps.upp: unknown key, did you mean up?"),
        ("defaults: {zzz: 1}", "defaults.zzz: unknown key; there are: cost_per_replica_second,"),
        ("devices: [{name: cpu, slot: 1}]", "devices.0.slot: unknown key, did you mean slots?"),
        (
            "launcher: {docker: {frontend_address: f, models_source: m, imag: x}}",
            "launcher.docker.imag: unknown key, did you mean image?",
        ),
        ("launcher: {docker: {}}", "launcher.docker.models_source: expected, and missing"),
        ("launcher: dokcer", "launcher: expected 'process' or a mapping, got 'dokcer'"),
        ("source: prom", "source: expected 'frontend' or a mapping, got 'prom'"),
        ("source: {prometheus: {url: p}}", "source.prometheus.url: expected a URL such as"),
        ("prometheus: {url: 'http://h:notaport'}", "prometheus.url: expected a URL such as"),
        ("prometheus: {url: 'http://'}", "prometheus.url: expected a URL such as"),
        (
            "devices: [{cores: ['3-1']}]",
            "cores: expected CPU numbers such as 0-3 or 0,2,4-5, up to",
        ),
        ("devices: [{cores: ['0-99999999999']}]", "cores: expected CPU numbers such as 0-3"),
        ("models: {a: {min: yes}}", "models.a.min: expected a number, text or keys, got true"),
        (
            "server: {address: frontend}",
            "server.address: expected HOST:PORT such as 127.0.0.1:8001",
        ),
        ("server: {address: 'h:0'}", "server.address: expected HOST:PORT"),
        ("server: {address: '::1:8001'}", "server.address: expected HOST:PORT"),
        ("server: {address: 'unix:relative'}", "server.address: expected HOST:PORT"),
        (
            "launcher: {docker: {frontend_address: 'unix:/s', models_source: ''}}",
            "launcher.docker.frontend_address: expected HOST:PORT",
        ),
        (
            "launcher: {docker: {frontend_address: 'f:1', models_source: ''}}",
            "launcher.docker.models_source: expected a path from the root, or a volume's name",
        ),
        ("standby: -1", "standby: input should be greater than or equal to 0, got -1"),
        ("standby: 65", "less than or equal to 64, got 65"),
        ("standby: many", "standby: input should be a valid integer"),
        ("models: {a: {min: 9}}", "models.a: expected min to be at most max, got min 9, max 8"),
        (
            "models: {a: {max: 2, schedules: [{cron: '* * * * *', duration: 1h, min: 3}]}}",
            "models.a: schedules: expected min to be at most max, got min 3, max 2",
        ),
        (
            "devices: [{memory: 1KB}, {name: 'gpu:0', memory: 2KB}]\nmodels: {a: {memory: 3KB}}",
            "memory of a: expected at most 2000 bytes, the most that a device has, got 3000",
        ),
        ("models: {a: {max: 5000}}", "models.a.max: input should be less than or equal to 4096"),
        ("models: {a: {hold: .nan}}", "models.a.hold: input should be a finite number"),
        ("models: {a: {hold: .inf}}", "models.a.hold: input should be a finite number"),
        ("models: {a: {hold: 5 parsecs}}", "models.a.hold: expected seconds, or a duration such"),
        ("models: {a: {memory: lots}}", "models.a.memory: expected bytes, or a size such as"),
        ("models: {a: {queue_latency: {target: 0}}}", "target: input should be greater than 0"),
        ("models: {a: {queue_latency: {quantile: 1}}}", "quantile: input should be less than 1"),
        ("models: {a: 3}", "models.a: expected keys and values, got 3"),
        ("models: [a]", "models: expected keys and values, got ['a']"),
        (
            "models: {a: {queue_latency: 50ms}}",
            "models.a.queue_latency: expected keys and values, got '50ms'",
        ),
        ("server: 'h:1'", "server: expected keys and values, got 'h:1'"),
        ("devices: [cpu]", "devices.0: expected keys and values, got 'cpu'"),
        ("devices: {name: cpu}", "devices: expected a list, got {'name': 'cpu'}"),
        ("launcher: [docker]", "launcher: expected 'process' or a mapping, got ['docker']"),
        ("devices: []", "devices: tuple should have at least 1 item"),
        ("devices: [{name: tpu}]", "devices.0.name: string should match pattern"),
        ("devices: [{name: cpu}, {name: cpu}]", "devices: expected different names, got cpu, cpu"),
        ("devices: [{cores: ['3-1']}]", "devices.0.cores: expected CPU numbers such as 0-3"),
        (
            "models: {a: {schedules: [{cron: x, duration: 1h, min: 2}]}}",
            "models.a.schedules.0: cron: expected five fields such as '0 8 * * 1-5'",
        ),
        (
            "models: {a: {schedules: [{cron: '* * * * *', duration: 1h, min: 2, timezone: Mars}]}}",
            "timezone: expected a name such as Europe/Berlin, got 'Mars'",
        ),
        (
            "models: {a: {triggers: [{name: q, query: up, target: 1}]}}",
            "triggers of a: expected a Prometheus server to ask",
        ),
        (
            (
                "prometheus: {url: 'http://p'}\n"
                "defaults: {triggers: [{name: q, query: up, target: 1},"
                " {name: q, query: up, target: 2}]}"
            ),
            "defaults: expected triggers of different names, got q, q",
        ),
        (
            "prometheus: {url: 'http://p'}\nsource: {prometheus: {url: 'http://q'}}",
            "prometheus: expected one Prometheus server, got another one in source.prometheus",
        ),
        ("a: 1\na: 2", "the key 'a' is given twice (line 2, column 1)"),
        ("models: {a: {min: 1, min: 2}}", "the key 'min' is given twice"),
        ("[1, 2]", "expected keys and values, got list"),
        ("text", "expected keys and values, got str"),
        ("{", "expected YAML: "),
        ("a: &a [*a, *a]", "a: unknown key"),
        ("models: !!python/object/apply:os.system [true]", "expected YAML: could not determine"),
        ("? [a]\n: 1", "expected YAML"),
        (f"models: {{a: {{hold: {'9' * 400}}}}}", "hold: input should be a finite number, got inf"),
        (f"models: {{a: {{memory: {'9' * 400}GB}}}}", "models.a.memory: expected at most"),
        (f"models: {{a: {{memory: {'9' * 400}}}}}", "models.a.memory: expected at most"),
        (f"standby: 0x{'f' * 6000}", "standby: input should be less than or equal to 64"),
        (
            (
                "models: {a: {schedules: [{cron: '* * * * *', duration: 1h, min: 2, "
                f"timezone: {'a' * 300}}}]}}}}"
            ),
            "timezone: expected a name such as Europe/Berlin, got 'aaa",
        ),
        ("defaults: &d {steps: *d}\nmodels: {a: *d}", "expected sections that end, got one within"),
        ("devices: [{name: 'gpu:0'}, {name: 'gpu:00'}]", "devices.1.name: string should match"),
        (
            "launcher: {docker: {frontend_address: 'f:1', models_source: ./m, models_path: m}}",
            "models_source: expected a path from the root, or a volume's name, got './m'",
        ),
        (
            "launcher: {docker: {frontend_address: 'f:1', models_source: m, models_path: m}}",
            "models_path: expected a path from the root such as /models, got 'm'",
        ),
        (
            "launcher: {docker: {frontend_address: 'f:1', models_source: m, link_source: ../m}}",
            "link_source: expected a path from the root, or a volume's name, got '../m'",
        ),
        (
            "launcher: {docker: {frontend_address: 'f:1', models_source: m, image: ''}}",
            "launcher.docker.image: string should have at least 1 character",
        ),
        (
            "launcher: {docker: {frontend_address: 'f:1', models_source: m, cpus: 1.0e+300}}",
            "launcher.docker.cpus: input should be less than or equal to 8192",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert all(line.startswith("file.yaml: ") for line in str(caught.value).splitlines())


def test_what_is_wrong_is_not_told_at_its_full_length() -> None:
    # A hundred million words, from aliases.
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    with pytest.raises(ConfigError) as caught:
        parse("\n".join([*lines, "standby: *a7"]))
    (line,) = (line for line in str(caught.value).splitlines() if ": standby: " in line)
    assert len(line) < 200


def test_every_mistake_is_a_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("standby: -1\nprepared: 99\nmodels: {a: {mni: 1}}")
    assert len(str(caught.value).splitlines()) == 3


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none.yaml: No such file"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        read_config(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="expected at most 1048576 bytes"):
        read_config(large)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\xd8\x01")
    with pytest.raises(ConfigError, match="expected YAML"):
        read_config(binary)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_file_or_a_config_error(data: bytes) -> None:
    try:
        assert isinstance(parse_config(data, "f"), AutoscalerFile)
    except ConfigError as error:
        assert str(error).startswith("f: ")  # noqa: PT017 - either outcome is right


PATHS = [path for path, _ in keys(AutoscalerFile)]
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [10**400, "1e400", "9" * 400, "9" * 400 + "GB", "50ms", "-1", "0x1F", "../m"]
    ),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.sampled_from(PATHS), ODD)
def test_whatever_a_key_has_is_a_file_or_an_error_in_words(path: str, value: object) -> None:
    for part in reversed(path.replace("[]", ".[]").split(".")):
        value = [value] if part == "[]" else {part: value}
    try:
        assert isinstance(parse_config(json.dumps(value).encode(), "f"), AutoscalerFile)
    except ConfigError as error:
        assert str(error).startswith("f: ")  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (0.5, 0.5),
        ("250ms", 0.25),
        ("1.5m", 90.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("3", 3.0),
    ],
)
def test_durations(value: object, expected: float) -> None:
    assert seconds_of(value) == pytest.approx(expected)


@pytest.mark.parametrize("value", [True, None, [], "", "5 parsecs", "-1s", "1e3", "ms"])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="expected seconds, or a duration"):
        seconds_of(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7), ("1KB", 1000), ("1KiB", 1024), ("1.5 GiB", 3 * 2**29), ("9B", 9)],
)
def test_sizes(value: object, expected: int) -> None:
    assert bytes_of(value) == expected


@pytest.mark.parametrize("value", [True, 1.5, "1XB", "-1", ""])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="expected bytes, or a size"):
        bytes_of(value)


def test_cores_are_numbers_and_ranges() -> None:
    assert cores_of("0-2, 5") == {0, 1, 2, 5}
    with pytest.raises(ValueError, match="expected CPU numbers"):
        cores_of("a")


def test_sections_with_nothing_in_them_are_as_if_they_were_not_there() -> None:
    assert parse("models:\ndefaults:\nlauncher:\nsource:") == parse("")
    assert parse("models: {a: }").models == parse("models: {a: {}}").models


@pytest.mark.parametrize("address", ["frontend:8001", "[::1]:1", "unix:/run/s", "10.0.0.1:65535"])
def test_addresses_are_as_clients_take_them(address: str) -> None:
    assert parse(f"server: {{address: '{address}'}}").server.address == address


def test_a_list_is_not_called_short_of_what_is_wrong_in_it() -> None:
    with pytest.raises(ConfigError) as raised:
        parse("devices: [{name: tpu}]")
    assert str(raised.value).count("\n") == 0
    assert "devices.0.name: string should match" in str(raised.value)
