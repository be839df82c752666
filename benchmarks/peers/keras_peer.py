"""A Keras model on TensorFlow, trained by `fit` on arrays in memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from benchmarks.peers.protocol import read_task, start


def main() -> None:
    """Serve slices."""
    arguments, channel = start()
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    task = read_task(arguments)
    n_pixels = task.train.shape[1]

    def dense(n: int, activation: str | None = None) -> Any:
        # torch's initial weights, U(-1, 1) / sqrt(n_in): the same curve for all (its biases are small too)
        return keras.layers.Dense(
            n, activation, kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        )

    class VAE(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.decoder_hidden = dense(task.hidden, "relu"), dense(task.hidden, "relu")
            self.mean, self.log_var, self.logits = dense(task.latent), dense(task.latent), dense(n_pixels)
            self.seed_generator = keras.random.SeedGenerator()

        def call(self, x: Any) -> tuple[Any, Any, Any]:
            h = self.hidden(x)
            mean, log_var = self.mean(h), self.log_var(h)
            noise = keras.random.normal(keras.ops.shape(mean), seed=self.seed_generator)
            z = mean + keras.ops.exp(0.5 * log_var) * noise
            return self.logits(self.decoder_hidden(z)), mean, log_var

        def compute_loss(self, x: Any, _y: Any, outputs: Any, *_: Any, **__: Any) -> Any:
            logits, mean, log_var = outputs
            distortion = keras.ops.sum(keras.ops.binary_crossentropy(x, logits, from_logits=True), axis=-1)
            kl = -0.5 * keras.ops.sum(1 + log_var - mean**2 - keras.ops.exp(log_var), axis=-1)
            return keras.ops.mean(distortion + kl)

    model = VAE()
    train = task.train.astype(np.float32) / 255
    valid = task.valid.astype(np.float32) / 255
    model(valid[:1])

    def loss() -> float:
        return float(model.compute_loss(valid, None, model(valid)))

    class Gate(keras.callbacks.Callback):
        def on_train_begin(self, *_: Any) -> None:  # what `fit` does before is start-up
            channel.ready("keras", "tensorflow", parameters=model.count_params())

        def on_epoch_begin(self, *_: Any) -> None:
            channel.wait_for_train(loss)

        def on_epoch_end(self, *_: Any) -> None:
            channel.trained(task.epoch_steps * task.batch)

    model.compile(optimizer=keras.optimizers.Adam(task.lr, epsilon=1e-8))
    model.fit(train, batch_size=task.batch, epochs=10**9, verbose=0, callbacks=[Gate()])


if __name__ == "__main__":
    main()
