from pathlib import Path

import pytest
from filelock import FileLock

from torchspec.target.fetch import fetch_smollm2


@pytest.fixture(scope="session")
def target_folder() -> Path:
    folder = Path(__file__).parents[1] / "outputs/targets/smollm2-135m-instruct"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # several processes test side by side, one of them fetches
        return fetch_smollm2(folder)


@pytest.fixture(scope="session")
def small_folder(target_folder, tmp_path_factory) -> Path:
    """Of a tiny target that is only read: its tokenizer loads in 10 ms."""
    from tests.tiny import write_tiny_target  # not above: tests/cuda pretends a card before anything loads Transformers

    return write_tiny_target(tmp_path_factory.mktemp("small") / "target", target_folder)
