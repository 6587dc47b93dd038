"""The names of gRPC's status codes."""

import grpc

from tideserve.replica.status import Code


def test_codes_are_those_of_grpc() -> None:
    assert {code.name: code.value for code in Code} == {
        code.name: code.value[0] for code in grpc.StatusCode
    }


def test_a_code_that_grpc_does_not_have_is_unknown() -> None:
    assert Code(17) is Code.UNKNOWN
