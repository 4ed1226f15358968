"""Draft methods by name, readable without torch. A method is a folder and one line here; trainer, metrics and evaluator never name one."""

from dataclasses import dataclass

from pydantic import BaseModel

from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.dflash2.config import DFlash2Config
from torchspec.methods.domino.config import DominoConfig
from torchspec.methods.dspark.config import DSparkConfig
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.methods.lilicorr.config import LiLiCorrConfig
from torchspec.methods.peagle.config import PeagleConfig
from torchspec.methods.xpress.config import XPressConfig


@dataclass(frozen=True)
class Entry:
    config: type[BaseModel]  # the `draft` section of a run
    implementation: str  # module:class, imported when needed
    architecture: str  # in the config.json of its drafts
    projector: str | None = None  # dflash_config.projector_type, where it alone tells them from another method's of that architecture


METHODS = {
    "dflash": Entry(DFlashConfig, "torchspec.methods.dflash.method:DFlash", "DFlashDraftModel"),
    "dspark": Entry(DSparkConfig, "torchspec.methods.dspark.method:DSpark", "Qwen3DSparkModel"),
    "dflash2": Entry(DFlash2Config, "torchspec.methods.dflash2.method:DFlash2", "DFlash2DraftModel"),
    "domino": Entry(DominoConfig, "torchspec.methods.domino.method:Domino", "DFlashDraftModel", projector="domino"),
    "lilicorr": Entry(LiLiCorrConfig, "torchspec.methods.lilicorr.method:LiLiCorr", "LiLiCorrDraftModel"),
    "xpress": Entry(XPressConfig, "torchspec.methods.xpress.method:XPress", "Qwen3XPressModel"),
    "eagle3": Entry(Eagle3Config, "torchspec.methods.eagle3.method:Eagle3", "LlamaForCausalLMEagle3"),
    "peagle": Entry(PeagleConfig, "torchspec.methods.peagle.method:Peagle", "PeagleLlamaForCausalLM"),
}


def method_of(config: dict) -> str:
    """The method of one of our drafts, by its config.json."""
    projector = config.get("dflash_config", {}).get("projector_type")
    names = {entry.projector: name for name, entry in METHODS.items() if entry.architecture == config["architectures"][0]}
    return names.get(projector, names[None])
