"""Families of targets: what each is called, which public models it has, and a tiny random model of it with all its kinds of layers.

The tests of targets run over them, and docs/targets.md is written from them.
"""

from tests.families.dense import DENSE
from tests.families.family import Family, write_family
from tests.families.hybrid import HYBRID
from tests.families.images import IMAGES
from tests.families.sparse import SPARSE

GROUPS = {"Dense": DENSE, "Mixture of experts": SPARSE, "Hybrid and recurrent": HYBRID, "Text of models that see": IMAGES}
FAMILIES: dict[str, Family] = {name: family for group in GROUPS.values() for name, family in group.items()}

# model_type -> public models that no code of Transformers runs, only code that comes with them
REMOTE = {
    "bailing_moe": "Ling, Ring",
    "baichuan": "Baichuan 2",
    "chatglm": "ChatGLM3, GLM-4 9B of 2024",
    "deepseek": "DeepSeek MoE 16B",
    "exaone": "EXAONE 3",
    "internlm2": "InternLM2, InternLM2.5",
    "kimi_vl": "Kimi-VL",
    "mimo": "MiMo 7B",
    "minicpm": "MiniCPM 1, 2, 4",
    "phi3small": "Phi-3 small",
    "qwen": "Qwen 1",
}

__all__ = ["FAMILIES", "GROUPS", "REMOTE", "Family", "write_family"]
