"""Draft methods by name, readable without torch. A method is a folder and one line here; trainer, metrics and evaluator never name one."""

from dataclasses import dataclass

from pydantic import BaseModel

from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.methods.peagle.config import PeagleConfig


@dataclass(frozen=True)
class Entry:
    config: type[BaseModel]  # the `draft` section of a run
    implementation: str  # module:class, imported when needed
    architecture: str  # in the config.json of its drafts


METHODS = {
    "dflash": Entry(DFlashConfig, "torchspec.methods.dflash.method:DFlash", "DFlashDraftModel"),
    "eagle3": Entry(Eagle3Config, "torchspec.methods.eagle3.method:Eagle3", "LlamaForCausalLMEagle3"),
    "peagle": Entry(PeagleConfig, "torchspec.methods.peagle.method:Peagle", "PeagleLlamaForCausalLM"),
}
ARCHITECTURES = {entry.architecture: name for name, entry in METHODS.items()}
