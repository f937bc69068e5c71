"""Export of checkpoints to verified engine directories: the offline half, which needs ``onnx``."""

from whisper_opt.core.errors import BackendUnavailable
from whisper_opt.core.remedies import install_hint

try:
    import onnx  # noqa: F401  # one message for a missing extra
except ImportError as error:
    raise BackendUnavailable(
        f"exporting needs the onnx package, which is not installed; {install_hint('cpu,export')}"
    ) from error

from whisper_opt.export.build import export

__all__ = ["export"]
