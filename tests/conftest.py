from pathlib import Path

import pytest

from torchspec.fetch import fetch_smollm2


@pytest.fixture(scope="session")
def target_folder() -> Path:
    return fetch_smollm2(Path(__file__).parents[1] / "outputs/targets/smollm2-135m-instruct")
