"""Counter-based random numbers out of built-in integer operators.

LiteRT has no stateless random operator, and its RANDOM_UNIFORM keeps hidden state in the interpreter: two phones, or
two threads of a simulation, would draw differently. Here a number is a hash of (key, index), as in Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3" (SC '11), with a 32-bit mixing function in the place of Philox. The mixer
is the `lowbias32` form, two multiplications and three xor-shifts, with constants of C. Wellons, "Prospecting for
hash functions" (2018). uint32 BITWISE_XOR, RIGHT_SHIFT and MUL are exact everywhere, so that the bits are
the same on every runtime. It is not for secrets.

Constants in a flatbuffer cost bytes, so an index is split in a row and a column: `mix(mix(row ^ key) ^ column)` needs
R + 256 constants for 256 R numbers.
"""

from typing import Any

import numpy as np
import tensorflow as tf

Tensor = Any

_COLUMNS = 256
_FRACTION_BITS = 23


def mix_numpy(x: Any) -> Any:
    """Mix 32 bits; the reference of `mix`, for constants and tests."""
    x = np.atleast_1d(np.asarray(x, np.uint32))  # arrays wrap around silently, scalars warn
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def mix(x: Tensor) -> Tensor:
    """Mix the 32 bits of each element: a bijection in which each input bit moves about half of the output bits."""
    x = _xor_shift(x, 16) * tf.constant(0x7FEB352D, tf.uint32)
    x = _xor_shift(x, 15) * tf.constant(0x846CA68B, tf.uint32)
    return _xor_shift(x, 16)


def _xor_shift(x: Tensor, bits: int) -> Tensor:
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(bits, tf.uint32)))


class Noise:
    """A stream of random tensors. Each draw has its own salt, so that no two draws of a program share numbers.

    Args:
        key: scalar uint32 tensor. The same key gives the same stream.
    """

    def __init__(self, key: Tensor) -> None:
        self._key = key
        self._draws = 0

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Return numbers in the open interval (0, 1): odd multiples of 2^-24."""
        return (self._bits(shape) + 0.5) * (2.0**-_FRACTION_BITS)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Return standard normal numbers, by the inverse of the distribution function."""
        return normal_quantile(self.uniform(shape))

    def truncated_normal(self, shape: tuple[int, ...]) -> Tensor:
        """Return standard normal numbers conditioned on lying within two standard deviations."""
        below = 0.022750131948179195  # the distribution function at -2
        return normal_quantile(self.uniform(shape) * (1.0 - 2.0 * below) + below)

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        """Return 23 random bits an element, as float32."""
        self._draws += 1
        size = int(np.prod(shape, dtype=np.int64))
        rows = -(-size // _COLUMNS)
        key = mix(tf.bitwise.bitwise_xor(self._key, tf.constant(int(mix_numpy(self._draws)[0]), tf.uint32)))
        row = mix(tf.bitwise.bitwise_xor(tf.constant(np.arange(rows, dtype=np.uint32)[:, None]), key))
        column = tf.constant(mix_numpy(np.arange(1, min(size, _COLUMNS) + 1, dtype=np.uint32))[None, :])
        bits = tf.reshape(mix(tf.bitwise.bitwise_xor(row, column)), [-1])
        bits = tf.reshape(tf.slice(bits, [0], [size]), shape)
        return tf.cast(tf.bitwise.right_shift(bits, tf.constant(32 - _FRACTION_BITS, tf.uint32)), tf.float32)


def key_of_seed(seed: Tensor) -> Tensor:
    """Return a key for a scalar int32 seed. Different seeds have different keys."""
    return mix(tf.bitcast(seed, tf.uint32))


def key_of_values(*values: Tensor) -> Tensor:
    """Return a key that is a fingerprint of float tensors: of their sums and sums of squares, to the bit.

    Any change that moves one of these sums gives an unrelated key; a permutation of the elements may not. It is the
    same for the same values on the same runtime; runtimes that sum in another order have other keys.
    """
    key = tf.constant(0x9E3779B9, tf.uint32)
    for value in values:
        flat = tf.reshape(value, [-1])
        for total in (tf.reduce_sum(flat), tf.reduce_sum(flat * flat)):
            key = mix(tf.bitwise.bitwise_xor(key, tf.bitcast(total, tf.uint32)))
    return key


_CENTRAL = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip


def normal_quantile(p: Tensor) -> Tensor:
    """Return the standard normal quantile of p in (0, 1).

    By the single-precision approximation of the inverse error function of M. Giles, "Approximating the erfinv function"
    (GPU Computing Gems 2, 2011), table 5: relative error below 4e-7 of erfinv.
    """
    x = 2.0 * p - 1.0
    w = -tf.math.log(4.0 * p * (1.0 - p))
    central = _polynomial(_CENTRAL, w - 2.5)
    tail = _polynomial(_TAIL, tf.sqrt(tf.maximum(w, 5.0)) - 3.0)
    return (2.0**0.5) * x * tf.where(w < 5.0, central, tail)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's rule, highest power first."""
    value: Tensor = tf.ones_like(x) * coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
