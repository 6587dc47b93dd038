"""`python -m benchmarks.peers.echo_server PORT`: answers ModelInfer with its request's bytes
and ModelStatistics with how often it did."""

import asyncio
import signal
import sys
from collections import Counter

import grpc.aio

from tideserve.v1.inference_pb2 import ModelStatisticsRequest, ModelStatisticsResponse


async def serve(port: int) -> None:
    answered: Counter[str] = Counter()

    async def infer(request: bytes, _: object) -> bytes:
        answered["infer"] += 1
        return request

    async def statistics(request: bytes, _: object) -> bytes:
        message = ModelStatisticsResponse()
        model = message.model_stats.add(name=ModelStatisticsRequest.FromString(request).name)
        model.inference_stats.success.count = answered["infer"]
        return message.SerializeToString()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "inference.GRPCInferenceService",
                {
                    "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
                    "ModelStatistics": grpc.unary_unary_rpc_method_handler(statistics),
                },
            )
        ]
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await server.stop(grace=1.0)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
