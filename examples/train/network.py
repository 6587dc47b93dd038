"""The digits classifier: two convolutions, one pooling, one linear layer, 9,930 weights."""

from typing import Final

import torch
from torch import Tensor, nn

from examples.train.split import Digits

EPOCHS: Final = 30
ROWS_PER_STEP: Final = 32
LEARNING_RATE: Final = 2e-3
SEED: Final = 2
PIXEL_MAX: Final = 16.0


class DigitsNetwork(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Takes images [n, 1, 8, 8] with pixels 0 to 16, gives class probabilities [n, 10].

    Scaling and softmax are part of the network, so callers send pixels as scanned and get
    scores that add up to one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.second = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Linear(32 * 4 * 4, 10)

    def logits(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.first(image * (1.0 / PIXEL_MAX)))
        hidden = self.pool(torch.relu(self.second(hidden)))
        logits: Tensor = self.last(hidden.flatten(1))
        return logits

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.logits(image), dim=1)


def train(digits: Digits) -> DigitsNetwork:
    """Trains from a fixed seed on one thread: the same machine always gives the same weights."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(SEED)
    network = DigitsNetwork()
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    steps = EPOCHS * -(-len(images) // ROWS_PER_STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    order = torch.Generator().manual_seed(SEED)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=order).split(ROWS_PER_STEP):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network.logits(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    network.requires_grad_(requires_grad=False)
    return network
