"""What only the grpcio front does: TLS, mTLS, a bound on connections, a bounded backlog."""

import datetime as dt
import ipaddress
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tideserve.server.errors import CertificateError, UnsupportedFrontError
from tideserve.server.front import Call, FrontSettings, StreamMessage, TlsFiles, event_queue
from tideserve.server.front.grpcio import GrpcioFront
from tideserve.v1.methods import Kind

UNARY, BIDI = "/test.Echo/Unary", "/test.Echo/Bidi"
METHODS = ((UNARY, Kind.UNARY), (BIDI, Kind.BIDI))
WAIT_S = 20.0
LOCAL_POOL = ("grpc.use_local_subchannel_pool", 1)


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, and where they lie as PEM."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    certificate_file: Path
    key_file: Path


def identity(folder: Path, name: str, issuer: Identity | None = None) -> Identity:
    """A CA without an issuer, else a certificate for 127.0.0.1 that the issuer signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key if issuer is None else issuer.key, hashes.SHA256())
    )
    certificate_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(_pem(key, serialization.NoEncryption()))
    return Identity(certificate, key, certificate_file, key_file)


def _pem(
    key: ec.EllipticCurvePrivateKey, protection: serialization.KeySerializationEncryption
) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
    )


@pytest.fixture
def authority(tmp_path: Path) -> Identity:
    return identity(tmp_path, "authority")


@pytest.fixture
def server(tmp_path: Path, authority: Identity) -> Identity:
    return identity(tmp_path, "server", authority)


def served(settings: FrontSettings) -> Iterator[GrpcioFront]:
    front = GrpcioFront(METHODS, settings)
    front.start()
    try:
        yield front
    finally:
        front.close()


@pytest.fixture
def tls_front(server: Identity) -> Iterator[GrpcioFront]:
    tls = TlsFiles(server.certificate_file, server.key_file)
    yield from served(FrontSettings(port=0, tls=tls))


@pytest.fixture
def mtls_front(server: Identity, authority: Identity) -> Iterator[GrpcioFront]:
    tls = TlsFiles(server.certificate_file, server.key_file, authority.certificate_file)
    yield from served(FrontSettings(port=0, tls=tls))


@pytest.fixture
def plain_front() -> Iterator[GrpcioFront]:
    yield from served(FrontSettings(port=0))


def secure(front: GrpcioFront, trusted: Identity, shown: Identity | None = None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        trusted.certificate_file.read_bytes(),
        None if shown is None else shown.key_file.read_bytes(),
        None if shown is None else shown.certificate_file.read_bytes(),
    )
    return grpc.secure_channel(f"127.0.0.1:{front.port}", credentials, options=(LOCAL_POOL,))


def answered(front: GrpcioFront, channel: grpc.Channel) -> bool:
    """Whether one unary call gets its echo; False when the channel cannot connect."""
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(UNARY)
    with channel:
        future = unary.future(b"hello", timeout=WAIT_S)
        while not future.done():
            for event in front.recv(1, 0.02):
                assert isinstance(event, Call)
                front.respond(event.call_id, event.payload)
        error = future.exception()
        if error is None:
            return future.result() == b"hello"
        assert isinstance(error, grpc.RpcError)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return False


def test_tls_answers_a_client_that_trusts_the_authority(
    tls_front: GrpcioFront, authority: Identity
) -> None:
    assert answered(tls_front, secure(tls_front, authority))


def test_tls_is_refused_by_a_client_that_trusts_another_authority(
    tls_front: GrpcioFront, tmp_path: Path
) -> None:
    assert not answered(tls_front, secure(tls_front, identity(tmp_path, "stranger")))


def test_tls_does_not_answer_plain_text(tls_front: GrpcioFront) -> None:
    plain = grpc.insecure_channel(f"127.0.0.1:{tls_front.port}", options=(LOCAL_POOL,))
    assert not answered(tls_front, plain)


def test_mtls_answers_a_client_with_a_certificate_of_the_authority(
    mtls_front: GrpcioFront, authority: Identity, tmp_path: Path
) -> None:
    client = identity(tmp_path, "client", authority)
    assert answered(mtls_front, secure(mtls_front, authority, client))


def test_mtls_refuses_a_client_without_a_certificate(
    mtls_front: GrpcioFront, authority: Identity
) -> None:
    assert not answered(mtls_front, secure(mtls_front, authority))


def test_mtls_refuses_a_client_with_a_certificate_of_another_authority(
    mtls_front: GrpcioFront, authority: Identity, tmp_path: Path
) -> None:
    stranger = identity(tmp_path, "client", identity(tmp_path, "stranger"))
    assert not answered(mtls_front, secure(mtls_front, authority, stranger))


def refusal(certificate: Path, key: Path, client_ca: Path | None = None) -> str:
    front = GrpcioFront(METHODS, FrontSettings(port=0, tls=TlsFiles(certificate, key, client_ca)))
    with pytest.raises(CertificateError) as caught:
        front.start()
    front.close()
    return str(caught.value)


def test_a_missing_certificate_is_named(tmp_path: Path, server: Identity) -> None:
    message = refusal(tmp_path / "none.crt", server.key_file)
    assert "none.crt cannot be read: No such file or directory" in message


def test_a_directory_in_place_of_a_key_is_named(tmp_path: Path, server: Identity) -> None:
    message = refusal(server.certificate_file, tmp_path)
    assert f"{tmp_path} cannot be read: Is a directory" in message


def test_a_file_that_is_no_pem_is_named_with_what_was_expected(
    tmp_path: Path, server: Identity
) -> None:
    der = tmp_path / "server.der"
    der.write_bytes(server.certificate.public_bytes(serialization.Encoding.DER))
    message = refusal(der, server.key_file)
    assert "server.der is not what it should be" in message
    assert "BEGIN CERTIFICATE" in message


def test_a_certificate_in_place_of_the_key_is_named(server: Identity) -> None:
    message = refusal(server.certificate_file, server.certificate_file)
    assert "private key file" in message


def test_a_key_of_another_certificate_is_refused(server: Identity, authority: Identity) -> None:
    message = refusal(server.certificate_file, authority.key_file)
    assert "authority.key does not belong to certificate file" in message


def test_a_key_with_a_password_is_refused_without_asking_for_it(
    tmp_path: Path, server: Identity
) -> None:
    locked = tmp_path / "locked.key"
    locked.write_bytes(_pem(server.key, serialization.BestAvailableEncryption(b"secret")))
    assert "unencrypted key" in refusal(server.certificate_file, locked)


def test_a_broken_certificate_is_refused(tmp_path: Path, server: Identity) -> None:
    broken = tmp_path / "broken.crt"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert "broken.crt" in refusal(broken, server.key_file)


def test_a_broken_client_authority_is_refused(tmp_path: Path, server: Identity) -> None:
    broken = tmp_path / "ca.crt"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    message = refusal(server.certificate_file, server.key_file, broken)
    assert "ca.crt holds no usable certificate" in message


def test_connections_over_the_limit_get_nowhere_until_one_leaves() -> None:
    front = GrpcioFront(METHODS, FrontSettings(port=0, max_connections=2))
    front.start()
    channels = [
        grpc.insecure_channel(f"127.0.0.1:{front.port}", options=(LOCAL_POOL,)) for _ in range(3)
    ]
    try:
        futures = []
        for channel in channels[:2]:
            unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(UNARY)
            futures.append(unary.future(b"", timeout=WAIT_S))
            (call,) = front.recv(1, WAIT_S)
            front.respond(call.call_id, b"")
        assert [future.result() for future in futures] == [b"", b""]
        third: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channels[2].unary_unary(UNARY)
        refused = third.future(b"", timeout=2.0)
        assert front.recv(1, 0.3) == []
        error = refused.exception()
        assert isinstance(error, grpc.RpcError)
        assert error.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )
        channels[0].close()
        admitted = third.future(b"", timeout=WAIT_S, wait_for_ready=True)
        (call,) = front.recv(1, WAIT_S)
        front.respond(call.call_id, b"late")
        assert admitted.result() == b"late"
    finally:
        for channel in channels:
            channel.close()
        front.close()


def test_calls_that_nobody_takes_up_are_refused_past_the_bound(
    plain_front: GrpcioFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_queue, "MAX_WAITING_EVENTS", 5)
    channel = grpc.insecure_channel(f"127.0.0.1:{plain_front.port}", options=(LOCAL_POOL,))
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(UNARY)
    with channel:
        done = threading.Semaphore(0)
        futures = [unary.future(b"", timeout=WAIT_S) for _ in range(8)]
        for future in futures:
            future.add_done_callback(lambda _: done.release())
        for _ in range(3):
            assert done.acquire(timeout=WAIT_S)
        for event in plain_front.recv(10, WAIT_S):
            plain_front.respond(event.call_id, b"")
        errors = [error for future in futures if (error := future.exception()) is not None]
        assert len(errors) == 3
        for error in errors:
            assert isinstance(error, grpc.RpcError)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            trailers = {entry.key: str(entry.value) for entry in error.trailing_metadata()}
            assert trailers["grpc-retry-pushback-ms"] == "100"


def test_a_stream_is_read_no_further_than_the_bound_and_loses_nothing(
    plain_front: GrpcioFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_queue, "MAX_WAITING_BYTES", 1_000_000)
    messages = 400  # 80 MB
    read = 0

    def requests() -> Iterator[bytes]:
        nonlocal read
        for n in range(messages):
            read = n
            yield n.to_bytes(4) * 50_000

    channel = grpc.insecure_channel(f"127.0.0.1:{plain_front.port}", options=(LOCAL_POOL,))
    bidi: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(BIDI)
    with channel:
        answers = bidi(requests(), timeout=WAIT_S)
        (call,) = plain_front.recv(1, WAIT_S)
        threading.Event().wait(0.5)  # nothing to wait for: nothing more may happen
        # gRPC's windows and the kernel's buffers grow to some 16 MB on a busy machine.
        assert read < messages // 2
        got: list[int] = []
        while len(got) < messages:
            got.extend(
                int.from_bytes(event.payload[:4])
                for event in plain_front.recv(10, WAIT_S)
                if isinstance(event, StreamMessage)
            )
        plain_front.end(call.call_id)
        assert list(answers) == []
    assert got == list(range(messages))


def test_a_folder_for_containers_would_lead_past_certificates(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFrontError, match="--link-folder: expected the native front"):
        GrpcioFront(METHODS, FrontSettings(link_folder=tmp_path))


def test_it_waits_in_threads_of_its_own_and_cannot_be_busy() -> None:
    with pytest.raises(UnsupportedFrontError, match="--busy-poll-us: expected the native front"):
        GrpcioFront(METHODS, FrontSettings(busy_poll_s=0.001))
