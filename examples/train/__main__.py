"""`python -m examples.train [REPOSITORY]`: makes every model file of the examples anew."""

import sys
from pathlib import Path

from examples.train.digits import write_digits
from examples.train.export import write_identity_onnx

REPOSITORY = Path(__file__).resolve().parents[1] / "models"


def main(arguments: list[str]) -> int:
    repository = Path(arguments[0]) if arguments else REPOSITORY
    write_identity_onnx(repository / "identity" / "1" / "model.onnx")
    accuracy = write_digits(repository)
    print(f"digits: {accuracy:.2%} of the held-out digits right; models written to {repository}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
