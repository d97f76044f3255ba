"""Activations. Each brings a gradient of built-in operators.

TensorFlow's own gradients of these (`ReluGrad`, `EluGrad`, `SigmoidGrad` ...) are operators that LiteRT lacks. And a
ReLU right after a matrix product without bias is fused into BATCH_MATMUL by TensorFlow 2.21's converter, where the
runtime ignores it: so no activation here is written as RELU, RELU6 or a maximum with zero.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from flsys_ray.programs.lowering.gradients import with_gradient
from flsys_ray.programs.lowering.registry import lowers, lowers_activation, lowers_operation
from flsys_ray.programs.lowering.replay import Call

Tensor = Any


def positive_part(x: Tensor) -> Tensor:
    """Return max(x, 0) in a form that the converter does not fuse away."""
    return x - tf.minimum(x, 0.0)


def is_positive(x: Tensor) -> Tensor:
    """Return 1.0 where x > 0 and else 0.0, from operators that XNNPACK has (a comparison with a cast is not)."""
    return tf.minimum(tf.math.ceil(positive_part(x)), 1.0)


@lowers_activation(keras.activations.relu)
@with_gradient
def relu(x: Tensor) -> tuple[Tensor, Any]:
    """ReLU; its gradient at 0 is 0, as TensorFlow's."""
    y = positive_part(x)
    return y, lambda g: g * tf.minimum(tf.math.ceil(y), 1.0)


@lowers_activation(keras.activations.relu6)
@with_gradient
def relu6(x: Tensor) -> tuple[Tensor, Any]:
    """ReLU cut at 6; gradient 0 at both kinks."""
    inside = is_positive(x) * is_positive(6.0 - x)
    return tf.minimum(positive_part(x), 6.0), lambda g: g * inside


def leaky(x: Tensor, slope: float) -> Tensor:
    """x where positive, slope * x elsewhere; the gradient at 0 is the slope, as TensorFlow's."""

    @with_gradient
    def function(x: Tensor) -> tuple[Tensor, Any]:
        y = x - (1.0 - slope) * tf.minimum(x, 0.0)
        return y, lambda g: g * (slope + (1.0 - slope) * is_positive(x))

    return function(x)


@lowers_activation(keras.activations.leaky_relu)
def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with the default slope of Keras, 0.2."""
    return leaky(x, 0.2)


def exponential_linear(x: Tensor, alpha: float, scale: float = 1.0) -> Tensor:
    """scale * (x where positive, alpha * (exp(x) - 1) elsewhere)."""

    @with_gradient
    def function(x: Tensor) -> tuple[Tensor, Any]:
        negative = alpha * (tf.exp(tf.minimum(x, 0.0)) - 1.0)
        y = scale * (positive_part(x) + negative)
        slope = scale * tf.where(x > 0.0, tf.ones_like(x), negative + alpha)
        return y, lambda g: g * slope

    return function(x)


@lowers_activation(keras.activations.elu)
def elu(x: Tensor) -> Tensor:
    """ELU with alpha 1."""
    return exponential_linear(x, 1.0)


@lowers_activation(keras.activations.selu)
def selu(x: Tensor) -> Tensor:
    """SELU, constants of Klambauer et al. 2017 (arXiv 1706.02515)."""
    return exponential_linear(x, 1.6732632423543772, 1.0507009873554805)


@lowers_activation(keras.activations.sigmoid)
@with_gradient
def sigmoid(x: Tensor) -> tuple[Tensor, Any]:
    """Logistic function."""
    y = tf.sigmoid(x)
    return y, lambda g: g * y * (1.0 - y)


@lowers_activation(keras.activations.tanh)
@with_gradient
def tanh(x: Tensor) -> tuple[Tensor, Any]:
    """Hyperbolic tangent."""
    y = tf.tanh(x)
    return y, lambda g: g * (1.0 - y * y)


@lowers_activation(keras.activations.softplus)
@with_gradient
def softplus(x: Tensor) -> tuple[Tensor, Any]:
    """log(1 + exp(x)), without overflow."""
    return positive_part(x) + tf.math.log(1.0 + tf.exp(-tf.abs(x))), lambda g: g * tf.sigmoid(x)


@lowers_activation(keras.activations.softsign)
@with_gradient
def softsign(x: Tensor) -> tuple[Tensor, Any]:
    """x / (1 + |x|)."""
    below = 1.0 + tf.abs(x)
    return x / below, lambda g: g / (below * below)


@lowers_activation(keras.activations.silu)
@with_gradient
def silu(x: Tensor) -> tuple[Tensor, Any]:
    """x * sigmoid(x), called swish too."""
    gate = tf.sigmoid(x)
    return x * gate, lambda g: g * gate * (1.0 + x * (1.0 - gate))


@lowers_activation(keras.activations.mish)
def mish(x: Tensor) -> Tensor:
    """x * tanh(softplus(x)) (Misra 2019, arXiv 1908.08681)."""
    return x * tanh(softplus(x))


@lowers_activation(keras.activations.hard_sigmoid)
def hard_sigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6."""
    return relu6(x + 3.0) * (1.0 / 6.0)


@lowers_activation(keras.activations.hard_silu)
def hard_silu(x: Tensor) -> Tensor:
    """x * relu6(x + 3) / 6, called hard swish too."""
    return x * hard_sigmoid(x)


def _normal_distribution(x: Tensor) -> Tensor:
    """The standard normal distribution function: LiteRT has no ERF.

    erf by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error below 1.5e-7.
    """
    z = tf.abs(x) * (0.5**0.5)
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    upper = 0.5 * series * tf.exp(-z * z)
    return tf.where(x >= 0.0, 1.0 - upper, upper)


@with_gradient
def gelu_exact(x: Tensor) -> tuple[Tensor, Any]:
    """x * Phi(x) (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    below = _normal_distribution(x)
    density = tf.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return x * below, lambda g: g * (below + x * density)


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation of GELU by a hyperbolic tangent."""
    return 0.5 * x * (1.0 + tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


lowers_activation(keras.activations.gelu)(gelu_exact)


@lowers_activation(keras.activations.softmax)
def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis."""
    return tf.nn.softmax(x)


@lowers_activation(keras.activations.log_softmax)
def log_softmax(x: Tensor) -> Tensor:
    """Logarithm of softmax over the last axis."""
    return tf.nn.log_softmax(x)


@lowers_activation(keras.activations.exponential)
def exponential(x: Tensor) -> Tensor:
    """exp(x)."""
    return tf.exp(x)


@lowers_activation(keras.activations.linear)
def linear(x: Tensor) -> Tensor:
    """x."""
    return x


@lowers(keras.layers.Activation)
def activation_layer(x: Tensor, call: Call) -> Tensor:
    """`Activation(f)`."""
    return call.activate(x, call.layer.activation)


@lowers(keras.layers.ReLU)
def relu_layer(x: Tensor, call: Call) -> Tensor:
    """`ReLU`, plain or cut at 6 or leaky; with a threshold it is refused."""
    layer = call.layer
    if layer.threshold:
        raise call.refuse("a threshold has no lowering")
    if layer.max_value is None:
        return leaky(x, float(layer.negative_slope)) if layer.negative_slope else relu(x)
    if layer.max_value == 6 and not layer.negative_slope:
        return relu6(x)
    raise call.refuse("max_value has a lowering only as 6 without a slope")


@lowers(keras.layers.LeakyReLU)
def leaky_relu_layer(x: Tensor, call: Call) -> Tensor:
    """`LeakyReLU(slope)`."""
    return leaky(x, float(call.layer.negative_slope))


@lowers(keras.layers.ELU)
def elu_layer(x: Tensor, call: Call) -> Tensor:
    """`ELU(alpha)`."""
    return exponential_linear(x, float(call.layer.alpha))


@lowers(keras.layers.PReLU)
def prelu_layer(x: Tensor, call: Call) -> Tensor:
    """`PReLU`: a trained slope for negative values."""
    return relu(x) - call.weight("alpha") * relu(-x)


@lowers(keras.layers.Softmax)
def softmax_layer(x: Tensor, call: Call) -> Tensor:
    """`Softmax` over the last axis."""
    if call.layer.axis not in (-1, len(x.shape) - 1) or call.mask is not None:
        raise call.refuse("softmax has a lowering over the last axis only, without a mask")
    return tf.nn.softmax(x)


@lowers_operation("Relu")
def relu_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.relu`."""
    return relu(x)


_SIMPLE = {
    "Relu6": relu6,
    "Sigmoid": sigmoid,
    "Tanh": tanh,
    "Softplus": softplus,
    "Silu": silu,
    "Selu": selu,
    "HardSigmoid": hard_sigmoid,
    "HardSilu": hard_silu,
    "Softsign": softsign,
}


@lowers_operation(*_SIMPLE)
def simple_operation(operation: Any, x: Tensor) -> Tensor:
    """An activation of `keras.ops` without options."""
    return _SIMPLE[type(operation).__name__](x)


@lowers_operation("LeakyRelu")
def leaky_relu_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.leaky_relu`."""
    return leaky(x, float(operation.negative_slope))


@lowers_operation("Elu")
def elu_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.elu`."""
    return exponential_linear(x, float(operation.alpha))


@lowers_operation("Gelu")
def gelu_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.gelu`."""
    return gelu_tanh(x) if operation.approximate else gelu_exact(x)


@lowers_operation("Softmax")
def softmax_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.softmax` over the last axis."""
    if operation.axis not in (-1, len(x.shape) - 1):
        raise NotImplementedError("softmax has a lowering over the last axis only")
    return tf.nn.softmax(x)
