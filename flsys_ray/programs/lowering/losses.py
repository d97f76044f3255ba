"""The loss of every program: sparse categorical cross-entropy, from logits, over the real examples of a batch."""

from typing import Any

import tensorflow as tf

Tensor = Any


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each example's -log p(label), [B], for logits [B, C] and labels int32 [B].

    By log-softmax, which neither overflows nor takes the logarithm of 0.
    """
    chosen = tf.one_hot(labels, logits.shape[-1], dtype=tf.float32)
    return -tf.reduce_sum(chosen * tf.nn.log_softmax(logits), -1)


def masked_mean(values: Tensor, rows: Tensor) -> Tensor:
    """Return the mean of values [B] where rows [B] is 1; 0 where no row is."""
    return tf.reduce_sum(values * rows) / tf.maximum(tf.reduce_sum(rows), 1.0)


def correct(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Return how many real examples have their label as the first class of the largest logit."""
    hit = tf.equal(tf.argmax(logits, -1, output_type=tf.int32), labels)
    return tf.reduce_sum(tf.cast(hit, tf.float32) * rows)
