"""What SGLang's server lacks on a CPU without sgl-kernel and triton, put in at import time.

Python imports a module of this name at start-up, in the server and in every process that it
spawns. Nothing here computes anything that a result depends on: kernels of triton are only
defined on the CPU path, never run.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types


class _Class:
    """Base of every class that the stand-in for triton makes up."""

    def __init__(self, *args, **fields):
        self.__dict__.update(fields)


class _StandIn(types.ModuleType):
    """A module in which everything is found: classes by a capital letter, else modules.

    Called, it is a decorator that changes nothing (`@triton.jit`, `@triton.jit(...)`).
    """

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []
        self.__file__ = __file__
        self.__spec__ = importlib.machinery.ModuleSpec(name, _Loader(), is_package=True)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            base = Exception if name.endswith(("Error", "Resources")) else _Class
            value = type(name, (base,), {})
        else:
            full = f"{self.__name__}.{name}"
            value = sys.modules.setdefault(full, _StandIn(full))
        setattr(self, name, value)
        return value

    def __call__(self, *args, **options):
        if len(args) == 1 and callable(args[0]) and not options:
            return args[0]
        return lambda function: function

    def __bool__(self):
        return False

    def __contains__(self, item):
        return False

    def __iter__(self):
        return iter(())


class _Loader(importlib.abc.Loader):
    def create_module(self, spec):
        return sys.modules.get(spec.name) or _StandIn(spec.name)

    def exec_module(self, module):
        if module.__name__ == "triton":
            module.__version__ = "3.0.0"
            module.cdiv = lambda a, b: -(a // -b)
            module.next_power_of_2 = lambda n: 1 << (n - 1).bit_length() if n > 0 else 1
        if module.__name__ == "triton.language":
            module.constexpr = type("constexpr", (), {"__init__": _keep_value})


def _keep_value(self, value=None):
    self.value = value


class _Triton(importlib.abc.MetaPathFinder):
    """Finds `triton` and all below it."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "triton":
            return None
        return importlib.machinery.ModuleSpec(name, _Loader(), is_package=True)


class _Torchvision(importlib.abc.MetaPathFinder):
    """Declares the operators that a torchvision built for CUDA looks for when imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                try:
                    torch.library.define(f"torchvision::{operator}", signature)
                except RuntimeError:
                    continue  # it is there: a build for the CPU
        return


def _allow_torch_native(module):
    """Seeds of branches count only in deterministic mode, which does not list this backend."""
    module.DETERMINISTIC_ATTENTION_BACKEND_CHOICES.append("torch_native")
    module.RADIX_SUPPORTED_DETERMINISTIC_ATTENTION_BACKEND.append("torch_native")


def _without_kernels(module):
    """The mode's batch-invariant kernels are triton's; float32 on a CPU does without."""
    module.enable_batch_invariant_mode = lambda *args, **options: None


class _Deterministic(importlib.abc.MetaPathFinder):
    """Changes two modules of SGLang right after they are loaded."""

    def __init__(self):
        self.left = {
            "sglang.srt.arg_groups.choices": _allow_torch_native,
            "sglang.srt.batch_invariant_ops": _without_kernels,
        }

    def find_spec(self, name, path=None, target=None):
        change = self.left.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_change(module):
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change
        return spec


sys.meta_path[:0] = [_Deterministic(), _Triton(), _Torchvision()]
