"""Server reflection, for tools such as grpcurl: version 1, and the older v1alpha, which has the same messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

SERVICE_NAMES: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


class _Reflection(ReflectionServicer):  # type: ignore[misc]
    """Finds methods by their full names, too: grpcio-reflection finds services and messages only."""

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        service, _, method = fully_qualified_name.rpartition(".")
        try:
            found = self._pool.FindServiceByName(service)
        except KeyError:
            return super()._file_containing_symbol(request, fully_qualified_name)
        known = method in found.methods_by_name
        return super()._file_containing_symbol(request, service if known else fully_qualified_name)


def enable(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Serve reflection of `services`, and of itself."""
    servicer = _Reflection((*services, *SERVICE_NAMES))
    for name in SERVICE_NAMES:
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )
