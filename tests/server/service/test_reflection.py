"""Clients without our files get them by reflection, under the protocol's real names."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from tests.server.fake_front import World
from tests.server.samples import make_request
from tideserve.server.errors import Code, InvalidRequestError
from tideserve.server.service.reflection import REFLECTION_PATHS, ReflectionService
from tideserve.v1 import inference_pb2, methods


def ask(request: ServerReflectionRequest) -> ServerReflectionResponse:
    return ServerReflectionResponse.FromString(
        ReflectionService().answer(request.SerializeToString())
    )


def services() -> list[str]:
    response = ask(ServerReflectionRequest(list_services=""))
    return [it.name for it in response.list_services_response.service]


def files_of(symbol: str) -> list[FileDescriptorProto]:
    response = ask(ServerReflectionRequest(file_containing_symbol=symbol))
    assert response.HasField("file_descriptor_response"), response.error_response
    return [
        FileDescriptorProto.FromString(it)
        for it in response.file_descriptor_response.file_descriptor_proto
    ]


def test_all_services_are_listed() -> None:
    assert set(services()) == {
        methods.INFERENCE_SERVICE,
        methods.REPLICA_SERVICE,
        methods.CONTROL_SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.parametrize("service", sorted(services()))
def test_every_listed_service_can_be_described(service: str) -> None:
    described = {f"{file.package}.{it.name}" for file in files_of(service) for it in file.service}

    assert service in described


@pytest.mark.parametrize("service", sorted(services()))
def test_every_files_dependencies_can_be_asked_for(service: str) -> None:
    known: dict[str, FileDescriptorProto] = {file.name: file for file in files_of(service)}
    waiting = [name for file in known.values() for name in file.dependency]
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        response = ask(ServerReflectionRequest(file_by_filename=name))
        assert response.HasField("file_descriptor_response"), (name, response.error_response)
        for data in response.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(data)
            known[file.name] = file
            waiting += file.dependency
    pool: Any = DescriptorPool()
    added: set[str] = set()

    def add(name: str) -> None:
        if name not in added:
            added.add(name)
            for dependency in known[name].dependency:
                add(dependency)
            pool.AddSerializedFile(known[name].SerializeToString())

    for name in known:
        add(name)
    assert pool.FindServiceByName(service).full_name == service


def test_the_protocols_files_name_nothing_of_ours() -> None:
    for symbol in ("inference.ModelInferRequest", "inference.ModelConfig"):
        for file in files_of(symbol):
            assert file.package == "inference"
            assert "tideserve" not in str(file)


def test_the_protocols_methods_are_all_there() -> None:
    (service,) = [it for file in files_of(methods.INFERENCE_SERVICE) for it in file.service]

    assert {it.name for it in service.method} == {it.name for it in methods.INFERENCE}
    assert all(it.input_type.startswith(".inference.") for it in service.method)


@pytest.mark.parametrize("symbol", ["inference.Nothing", "", "tideserve.v1.GRPCInference"])
def test_an_unknown_symbol_is_an_error_in_the_answer(symbol: str) -> None:
    response = ask(ServerReflectionRequest(file_containing_symbol=symbol))

    assert response.error_response.error_code == Code.NOT_FOUND


def test_an_empty_question_is_an_error_in_the_answer() -> None:
    assert ask(ServerReflectionRequest()).error_response.error_code == Code.INVALID_ARGUMENT


def test_garbage_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="expected a ServerReflectionRequest"):
        ReflectionService().answer(b"\xff\xff")


@pytest.mark.parametrize("path", REFLECTION_PATHS)
def test_a_call_asks_as_often_as_it_likes_until_it_half_closes(path: str) -> None:
    world = World()
    call_id = world.call(path)
    for _ in range(3):
        world.message(call_id, ServerReflectionRequest(list_services="").SerializeToString())
    world.half_close(call_id)

    assert len(world.front.sent[call_id]) == 3
    assert world.front.ended == [call_id]


def test_a_call_with_garbage_ends_with_an_error_and_is_forgotten() -> None:
    world = World()
    call_id = world.call(REFLECTION_PATHS[0])
    world.message(call_id, b"\xff\xff")

    assert world.failed(call_id).code == Code.INVALID_ARGUMENT
    assert not world.dispatcher._reflections


# --- grpcio-reflection's own client ------------------------------------------------------------


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    """A real gRPC server whose reflection is ours."""
    reflection = ReflectionService()

    def info(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        return (reflection.answer(request) for request in requests)

    handler = grpc.method_handlers_generic_handler(
        "grpc.reflection.v1alpha.ServerReflection",
        {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(info)},
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(None).wait()


def test_a_client_builds_the_protocols_messages_from_reflection_alone(
    channel: grpc.Channel,
) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    pool: Any = DescriptorPool(database)
    assert "inference.GRPCInferenceService" in database.get_services()
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    kind = GetMessageClass(service.FindMethodByName("ModelInfer").input_type)

    message = kind.FromString(make_request(2, request_id="seven"))

    assert kind.DESCRIPTOR.full_name == "inference.ModelInferRequest"
    assert (message.model_name, message.id) == ("m", "seven")  # type: ignore[attr-defined]
    assert message.SerializeToString() == make_request(2, request_id="seven")
    ours = inference_pb2.ModelInferRequest.DESCRIPTOR
    assert [(it.name, it.number) for it in kind.DESCRIPTOR.fields] == [
        (it.name, it.number) for it in ours.fields
    ]
