"""Which versions of a model are served."""

from collections.abc import Iterable

from tideserve.v1.model_config_pb2 import ModelVersionPolicy


def select_versions(policy: ModelVersionPolicy | None, available: Iterable[int]) -> tuple[int, ...]:
    """The versions of `available` that the policy wants, ascending; without one, the newest.

    As in Triton an empty policy means all, and a specific version that does not exist is
    left out.
    """
    versions = sorted(set(available))
    if policy is None:
        return tuple(versions[-1:])
    match policy.WhichOneof("policy_choice"):
        case "latest":
            count = policy.latest.num_versions
            return tuple(versions[-count:]) if count else ()
        case "specific":
            wanted = set(policy.specific.versions)
            return tuple(version for version in versions if version in wanted)
        case _:
            return tuple(versions)
