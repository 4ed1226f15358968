from pathlib import Path

import pytest
import torch

from tests.unit.chats import chat_format, other_target, write_jsonl  # noqa: F401 - fixtures
from tests.unit.tiny import EAGLE3_LAYERS, LAYERS, make_eagle3, make_method, write_target
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.methods.dflash.method import DFlash
from torchspec.methods.eagle3.method import Eagle3
from torchspec.target.frozen import FrozenTarget


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return write_target(tmp_path_factory.mktemp("tiny") / "target")


@pytest.fixture(scope="session")
def tiny_target(tiny_folder) -> FrozenTarget:
    return FrozenTarget.load(tiny_folder, torch.float32)


@pytest.fixture(scope="session")
def tiny_oracle(tiny_folder) -> HFCapture:
    return HFCapture(CaptureSpec(tiny_folder, LAYERS, torch.float32))


@pytest.fixture(scope="session")
def tiny_method(tiny_target) -> DFlash:
    return make_method(tiny_target)


@pytest.fixture(scope="session")
def eagle3_oracle(tiny_folder) -> HFCapture:
    return HFCapture(CaptureSpec(tiny_folder, EAGLE3_LAYERS, torch.float32))


@pytest.fixture(scope="session")
def tiny_eagle3(tiny_target) -> Eagle3:
    return make_eagle3(tiny_target)
