"""Stands in for torchvision, which text models never call: any name can be imported from any of its modules."""

import importlib.abc
import importlib.machinery
import sys
import types

__version__ = "0.28.0"


class Absent:
    def __init__(self, *args, **kwargs):
        raise NotImplementedError("torchvision is not installed here")


class InterpolationMode:
    NEAREST, NEAREST_EXACT, BILINEAR, BICUBIC, BOX, HAMMING, LANCZOS = range(7)


class Module(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return InterpolationMode if name == "InterpolationMode" else Absent


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("torchvision.") else None

    def create_module(self, spec):
        return Module(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Finder())
