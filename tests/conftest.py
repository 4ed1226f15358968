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
