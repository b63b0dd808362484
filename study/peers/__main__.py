"""Train and test one of the networks with one seed, to share the work of the step `peers` among processes.

    python -m study.peers --network nnunet --seed 0

Networks: ours, smp, nnunet. What is there is not done again; an interrupted training goes on. `doit` makes the tables.
smp takes a package of its own: `pip install -c requirements.txt segmentation-models-pytorch`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts")]


def peer(network: str, seed: int, runs: Path = ROOT / "runs") -> None:
    """Train, unless the weights are there, and note the answers at both sites, unless they are.

    Args:
        network: ours, smp or nnunet.
        seed: of the training.
        runs: folder of the prepared sets and of the trainings.
    """
    from study.peers.comparison import train_and_score

    train_and_score(network, seed, runs.resolve())


if __name__ == "__main__":
    from tools.cli import run

    run(peer)
