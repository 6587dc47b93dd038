"""Classifies the held-out digits on a running server: `python -m examples.try_digits`.

Start the server first with `make serve`; needs scikit-learn for the digits
(`pip install -e '.[examples]'`). `--model digits_torch` asks the TorchScript one.
"""

import argparse
import sys

import numpy as np

from examples.train.split import split
from tideserve.client import Client


def main() -> int:
    parser = argparse.ArgumentParser(description="Classifies held-out digits on a running server.")
    parser.add_argument("--address", default="127.0.0.1:8001", help="HOST:PORT of its gRPC port")
    parser.add_argument("--model", default="digits_onnx", help="digits_onnx or digits_torch")
    options = parser.parse_args()
    held_out = split().held_out
    right = 0
    with Client(options.address) as client:
        for image, label in zip(held_out.images, held_out.labels, strict=True):
            scores = client.infer(options.model, {"image": image[None]})["scores"]
            right += int(np.argmax(scores) == label)
    accuracy = right / len(held_out.labels)
    print(f"{right} of {len(held_out.labels)} held-out digits right: {accuracy:.2%}")
    return 0 if accuracy >= 0.97 else 1


if __name__ == "__main__":
    sys.exit(main())
