"""JAX's jit(vmap + scan) on what mnist1d-mlp computes; peers.py starts it in a venv that holds jax.

Arguments: runs, batch size, inner steps between statistics, how many such intervals are measured at
once. The program writes "ready VERSION". For each line that it reads it measures once and writes
inner steps per second of processor time.
"""

import functools
import itertools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

runs, batch, interval_steps, intervals = map(int, sys.argv[1:])
sizes = (40, 100, 100, 10)
keys = jax.random.split(jax.random.key(0), runs)
inputs = jax.random.normal(jax.random.key(1), (3000, 40))
targets = jax.random.randint(jax.random.key(2), (3000,), 0, 10)


def init(key: Any) -> Any:
    """Parameters, both moments, step 0 and the generator of one run."""
    pairs = itertools.pairwise(sizes)
    params = [
        (jax.random.uniform(key, (o, i), minval=-1, maxval=1) / i**0.5, jnp.zeros(o))
        for i, o in pairs
    ]
    zeros = jax.tree.map(jnp.zeros_like, params)
    return params, zeros, zeros, 0, key


def loss_of(params: Any, x: Any, y: Any) -> Any:
    """Mean cross-entropy of a minibatch."""
    for i, (w, b) in enumerate(params):
        x = x @ w.T + b
        x = jax.nn.relu(x) if i < 2 else x
    return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean()


def descend(rate: Any, param: Any, update: Any) -> Any:
    """A parameter after one step."""
    return param - rate * update


def step(state: Any, lr: Any) -> Any:
    """One step of Adam on a new minibatch."""
    params, m, v, t, key = state
    index = jax.random.randint(jax.random.fold_in(key, t), (batch,), 0, 3000)
    loss, grads = jax.value_and_grad(loss_of)(params, inputs[index], targets[index])
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
    c = 1 - 0.9 ** (t + 1), 1 - 0.999 ** (t + 1)
    update = jax.tree.map(lambda m, v: m / c[0] / (jnp.sqrt(v / c[1]) + 1e-8), m, v)
    layers = zip(lr, params, update, strict=True)
    params = [jax.tree.map(functools.partial(descend, rate), p, u) for rate, p, u in layers]
    return (params, m, v, t + 1, key), (loss, grads, update)


def interval(state: Any, lr: Any) -> Any:
    """The steps between two decisions, and the statistics at the end."""
    state, loss = jax.lax.scan(
        lambda s, _: (lambda n: (n[0], n[1][0]))(step(s, lr)), state, None, interval_steps - 1
    )
    state, (last, grads, update) = step(state, lr)
    norms = [
        sum(jnp.square(x).sum() for x in layer)
        for tree in (grads, update, *state[:3])
        for layer in tree
    ]
    return state, (loss, last, jnp.stack(norms))


state = jax.vmap(init)(keys)
lr = jnp.full((runs, 3), 1e-3)
advance = jax.jit(jax.vmap(interval), donate_argnums=0)
state, out = advance(state, lr)
jax.block_until_ready(out)
print("ready", jax.__version__, flush=True)
for _ in sys.stdin:
    start = time.process_time()
    for _ in range(intervals):
        state, out = advance(state, lr)
    jax.block_until_ready((state, out))
    print(intervals * interval_steps * runs / (time.process_time() - start), flush=True)
