"""From traced functions to a flatbuffer."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from flsys_ray.errors import NotLowerable


def to_flatbuffer(functions: Mapping[str, Any]) -> bytes:
    """Convert the functions of the signatures to one flatbuffer of built-in operators only.

    Raises:
        NotLowerable: an operator has no built-in form; its name and the layer, as far as the converter tells.
    """
    concrete = {name: function.get_concrete_function() for name, function in functions.items()}
    with tempfile.TemporaryDirectory() as folder:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        with quiet():
            tf.saved_model.save(tf.Module(), folder, signatures=concrete, options=options)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(concrete))
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            try:
                return bytes(converter.convert())
            except Exception as error:  # the converter's own error type is private, and changes between releases
                raise _translate(error) from error


def _translate(error: Exception) -> NotLowerable:
    text = str(error)
    found = re.search(r"'tf\.(\w+)' op|TF Select ops: (\w+)|Custom ops: (\w+)", text)
    operator = next((group for group in found.groups() if group), "") if found else ""
    layer = re.search(r'"\w+:", "([^"@]+)/[^"/@]*@', text)
    where = layer.group(1) if layer else ""
    what = f"operator {operator!r}" if operator else text.splitlines()[0][:200]
    return NotLowerable(f"layer {where or '?'!r}: {what} has no built-in LiteRT form", operator, where)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the native converter's chatter off standard error: what matters of it is in the exception."""
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
