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

__all__ = ["FAMILIES", "GROUPS", "Family", "write_family"]
