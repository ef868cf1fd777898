"""model.onnx: the network for onnxruntime and what else reads ONNX, with free batch, height and width."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from acla_nas.errors import AclaError
from acla_nas.formats.descriptor import Descriptor
from acla_nas.formats.program import example_of, fixes_its_sizes
from acla_nas.network import Backbone

_KEY = "acla_nas.descriptor"


def write(
    network: nn.Module, descriptor: Descriptor, path: Path, *, backbone: Backbone | None = None
) -> None:
    """Write a network as ONNX: one input, "image", one output, "restored".

    Raises:
        AclaError: the packages for it are not installed, or the network fixes its sizes when exported.
    """
    _need("onnxscript", "onnxruntime")
    example, sizes = example_of(descriptor)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells that torchvision is not installed
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exported = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                dynamic_shapes=sizes,
                input_names=["image"],
                output_names=["restored"],
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise fixes_its_sizes(error.__cause__ or error) from error
    finally:
        log.setLevel(level)
    assert exported is not None
    exported.model.metadata_props[_KEY] = descriptor.model_dump_json()
    exported.save(path, external_data=False)


class OnnxModel(nn.Module):
    """Runs an ONNX file by onnxruntime, on the CPU, as a module.

    Args:
        path: of the file.

    Raises:
        AclaError: onnxruntime is not installed, or it cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        _need("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Its threads would keep cores busy after a run, in which PyTorch has work to do.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise AclaError(f"cannot read {path}: {str(error).splitlines()[0]}; give an ONNX file") from None

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored images."""
        [output] = self.session.run(None, {self.session.get_inputs()[0].name: x.cpu().numpy()})
        return torch.from_numpy(output)


def read(path: Path, backbone: Backbone | None = None) -> tuple[nn.Module, Descriptor]:
    """Return what runs the file, and its descriptor."""
    model = OnnxModel(path)
    metadata = model.session.get_modelmeta().custom_metadata_map
    return model, Descriptor.parse(metadata.get(_KEY), path)


def _need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise AclaError(f"ONNX needs the package {package}: pip install 'acla-nas[export]'")
