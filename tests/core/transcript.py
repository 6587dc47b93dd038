"""Golden transcripts: events in, the core's actions out, readable side by side.

A line that begins in the first column is an event; the indented lines below it are what the
core did and, after `next`, when it wants to be woken. `python -m tests.core.transcript`
compares; with `--write` it writes what happens now, to be read before it is kept.

    model NAME [SETTING=VALUE ...]      start REPLICA MODEL
    arrive MODEL NAME[:ROWS] ... [sig=S] [deadline=S]
    ask REPLICA [done LEASE | failed LEASE CAUSE]     hand (the same, wants nothing)
    repeat REPLICA      older REPLICA   gone REPLICA      undelivered
    at SECONDS [silent=REPLICA]         cancel NAME       drain|close|die|stop REPLICA
"""

import sys
from pathlib import Path
from typing import assert_never

from tests.core.world import START_S, World
from tideserve.server.core.actions import (
    Action,
    AnswerEmpty,
    Complete,
    Dispatch,
    Expire,
    Fail,
    FailureCause,
    RefuseCall,
    Rejection,
    ReplicaLeft,
    ReplicaLost,
    SendDrain,
)
from tideserve.server.core.outcomes import BatchDone, BatchFailed, Outcome
from tideserve.server.core.request import Request
from tideserve.server.core.settings import (
    BatchingMode,
    BatchSettings,
    LeaseSettings,
    ModelSettings,
)

FOLDER = Path(__file__).parent / "transcripts"


class Transcript:
    """Plays one script line by line."""

    def __init__(self) -> None:
        self._world = World({})
        self._names: dict[int, str] = {}
        self._requests: dict[str, Request] = {}

    def play(self, text: str) -> str:
        """The script with the actions of today in it."""
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith(" "):
                continue
            lines.append(line)
            if line and not line.startswith("#"):
                seen = len(self._world.log)
                said = self._event(line)
                lines += [f"    {word}" for word in said]
                lines += [f"    {self._word(action)}" for action in self._world.log[seen:]]
                wakeup_s = self._world.scheduler.next_wakeup_s() - START_S
                if wakeup_s != float("inf"):
                    lines.append(f"    next {wakeup_s:.4g}")
        return "\n".join(lines) + "\n"

    def _event(self, line: str) -> list[str]:  # noqa: C901  one flat table
        world = self._world
        verb, *words = line.split()
        options = dict(word.split("=") for word in words if "=" in word)
        words = [word for word in words if "=" not in word]
        match verb, *words:
            case "model", name:
                world.scheduler.add_model(name, _settings(options))
            case "start", replica, model:
                world.start(replica, model)
            case "arrive", model, *names:
                return self._arrive(model, names, options)
            case (("ask" | "hand"), replica, *result):
                world.exchange(replica, _outcomes(result), want=verb == "ask")
            case "repeat", replica:
                world.exchange(replica, step=0)
            case "older", replica:
                world.exchange(replica, step=-1)
            case "gone", replica:
                world.lose_call(
                    next(id_ for id_, who in world.open_calls.items() if who == replica)
                )
            case ("undelivered",):
                world.fail_next_delivery = True
            case "at", seconds:
                world.advance(START_S + float(seconds) - world.now_s, silent=options.values())
            case "cancel", name:
                world.cancel(self._requests[name])
            case "drain", replica:
                world.drain(replica)
            case "close", replica:
                world.close_life_line(replica)
            case (("die" | "stop"), replica):
                world.lose(replica, death=verb == "die")
            case _:
                raise ValueError(f"expected an event, got {line!r}")
        return []

    def _arrive(self, model: str, names: list[str], options: dict[str, str]) -> list[str]:
        said = []
        for name, _, rows in (word.partition(":") for word in names):
            # The World dispatches within the arrival, so that the name has to be known first.
            self._names[self._world.next_request_id] = name
            request = self._world.arrive(
                model,
                int(rows or 1),
                options.get("sig", "a"),
                deadline_in_s=float(options.get("deadline", "inf")),
            )
            if isinstance(request, Rejection):
                said.append(f"reject {name}: {request.reason.value}, limit {request.limit}")
            else:
                self._requests[name] = request
        return said

    def _word(self, action: Action) -> str:
        match action:
            case Dispatch(_, sequence, lease, dropped):
                names = " ".join(self._names[request.request_id] for request in lease.requests)
                alone = " alone" if lease.sole else ""
                return (
                    f"dispatch {lease.replica_id} #{sequence} L{lease.lease_id} [{names}] "
                    f"rows={lease.rows}{alone}{_dropped(dropped)}"
                )
            case AnswerEmpty(call_id, sequence, drain, dropped):
                leave = " drain" if drain else ""
                replica = self._world.caller_of[call_id]
                return f"empty {replica} #{sequence}{leave}{_dropped(dropped)}"
            case RefuseCall(call_id, reason):
                return f"refuse {self._world.caller_of[call_id]}: {reason}"
            case Complete(lease, answers):
                rows = " ".join(f"{self._names[who.request_id]}@{row}" for who, row in answers)
                return f"complete L{lease.lease_id} [{rows}]"
            case Expire(request):
                return f"expire {self._names[request.request_id]}"
            case Fail(request, cause, detail):
                return f"fail {self._names[request.request_id]} {cause.value} {detail}".rstrip()
            case SendDrain(replica):
                return f"send-drain {replica}"
            case ReplicaLost(replica, reason, attributed):
                return f"lost {replica}: {reason}{' (laid to a request)' if attributed else ''}"
            case ReplicaLeft(replica):
                return f"left {replica}"
            case _:
                assert_never(action)


def _settings(options: dict[str, str]) -> ModelSettings:
    return ModelSettings(
        batch=BatchSettings(
            mode=BatchingMode(options.get("mode", "eager")),
            max_batch_rows=int(options.get("max_batch_rows", "8")),
            preferred_rows=tuple(
                int(rows) for rows in options.get("preferred", "").split(",") if rows
            ),
            max_queue_delay_s=float(options.get("delay", "0")),
            preserve_ordering="ordered" in options,
        ),
        lease=LeaseSettings(
            retryable=options.get("retryable", "yes") == "yes",
            max_batch_time_s=float(options["max_batch_time"])
            if "max_batch_time" in options
            else None,
        ),
    )


def _outcomes(words: list[str]) -> list[Outcome]:
    match words:
        case []:
            return []
        case "done", lease:
            return [BatchDone(int(lease[1:]), 0.01)]
        case "failed", lease, cause:
            return [BatchFailed(int(lease[1:]), FailureCause(cause), "what the model said")]
        case _:
            raise ValueError(f"expected an outcome, got {words}")


def _dropped(lease_ids: tuple[int, ...]) -> str:
    return f" dropped={','.join(f'L{lease_id}' for lease_id in lease_ids)}" if lease_ids else ""


def scripts() -> list[Path]:
    return sorted(FOLDER.glob("*.txt"))


def main(write: bool) -> int:
    changed = 0
    for path in scripts():
        before = path.read_text()
        after = Transcript().play(before)
        if after != before:
            changed += 1
            sys.stdout.write(f"{path.name}: {'written' if write else 'differs'}\n")
            if write:
                path.write_text(after)
    return 0 if write else changed


if __name__ == "__main__":
    sys.exit(main(write="--write" in sys.argv[1:]))
