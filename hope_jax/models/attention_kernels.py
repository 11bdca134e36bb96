"""Softmax attention to a window: one function, a table of implementations."""

from collections.abc import Callable
import itertools
from typing import NamedTuple

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from hope_jax.config import ConfigError
from hope_jax.kernels.dgd.devices import device
from hope_jax.sharding import current_spec
from hope_jax.types import Array

TILE = 256  # queries
SCANS = 4  # over tiles


def _xla(
    q: Array,
    k: Array,
    v: Array,
    document: Array,
    seen: Array | None,
    window: int,
) -> Array:
  """Takes any call, on any platform.

  Queries go in tiles, each rematerialised, so that memory grows with T and not
  with T^2, and beyond the window so does time. There are a few scans, each with
  the keys that its last tile can see: in one scan, half of the keys of all
  tiles would be ahead of their queries.
  """
  length, before = q.shape[1], k.shape[1] - q.shape[1]
  tile = min(TILE, length)
  count = -(-length // tile)
  missing = count * tile - length
  most = window - 1 + tile  # keys that the queries of a tile can see

  def pad(x):
    return jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))

  k, v = pad(k), pad(v)
  seen = None if seen is None else pad(seen)

  def tiles(x):
    x = pad(x).reshape(x.shape[0], count, tile, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  queries = jnp.arange(count), tiles(q), tiles(document)

  def scan(begin, end):
    """Tiles begin to end, whose keys are `reach` at most."""
    reach = min(before + end * tile, most)

    def step(_, xs):
      """xs: index of the tile, its queries [B, C, H, K], documents [B, C]."""
      i, q, document = xs
      first = before + i * tile  # key of the first query
      start = jnp.clip(first + tile - reach, 0)

      def reached(x):
        return jax.lax.dynamic_slice_in_dim(x, start, reach, 1)

      behind = jnp.arange(tile)[:, None] - jnp.arange(reach)
      distance = first - start + behind
      mask = ((distance >= 0) & (distance < window))[None]
      if seen is not None:
        mask = mask & (document[:, :, None] == reached(seen)[:, None, :])
        # A padded query sees itself, so that its softmax is not empty.
        mask = mask | (distance == 0)
      # JAX's own promotes bfloat16, which strict promotion refuses.
      with jax.numpy_dtype_promotion('standard'):
        return None, jax.nn.dot_product_attention(
            q, reached(k), reached(v), mask=mask[:, None]
        )

    xs = jax.tree.map(lambda x: x[begin:end], queries)
    return jax.lax.scan(jax.checkpoint(step), None, xs)[1]

  ends = [-(-count * n // SCANS) for n in range(SCANS)]
  # From where the window is the limit, one scan has the rest.
  ends = [n for n in ends if before + n * tile < most]
  ends = sorted({0, *ends, count})
  o = jnp.concatenate([scan(*pair) for pair in itertools.pairwise(ends)])
  o = jnp.moveaxis(o, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])
  return o[:, :length]


def _splash_obstacle(
    q: Array, seen: Array | None, interpret: bool = False
) -> str | None:
  del seen
  length = q.shape[1]
  if length % 128:
    return f'T={length} is no multiple of 128'
  if length > 16_384:  # the mask is made tile by tile, in Python
    return f'T={length} is more than 16384'
  return None if interpret or device()[0] == 'tpu' else 'there is no TPU'


def _splash(q, k, v, document, seen, window, interpret=False):
  """The TPU kernel, which passes over tiles that are masked as a whole."""
  length, width = q.shape[1], q.shape[-1]
  size = next(n for n in (512, 256, 128) if length % n == 0)
  # Padding sees padding: a softmax over nothing would be NaN.
  ids = document if seen is None else seen

  def of_device(q, k, v, ids):
    mask = splash_mask.LocalMask((length, length), (window - 1, 0), 0)
    kernel = splash.make_splash_mha_single_device(
        splash_mask.MultiHeadMask([mask] * q.shape[2]),
        block_sizes=splash.BlockSizes(
            size, size, size, size, size, size, size, size
        ),
        interpret=interpret,
    )
    heads_first = (x.swapaxes(1, 2) for x in (q * width**-0.5, k, v))
    o = jax.vmap(kernel)(*heads_first, splash.SegmentIds(ids, ids))
    # An array alone, as no residuals are asked for.
    return o.swapaxes(1, 2)  # pyright: ignore[reportAttributeAccessIssue]

  spec = current_spec(q.shape, 'batch', 'time', 'heads', 'head_dim')
  if spec is None:
    return of_device(q, k, v, ids)
  return jax.shard_map(
      of_device,
      in_specs=(spec, spec, spec, PartitionSpec(*spec[:2])),
      out_specs=spec,
      check_vma=False,
  )(q, k, v, ids)


def _cudnn_obstacle(q: Array, seen: Array | None) -> str | None:
  width = q.shape[-1]
  if device()[0] not in ('gpu', 'cuda'):
    return 'there is no GPU'
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f'{q.dtype} is not a dtype of 16 bits'
  if width % 8 or width > 128:
    return f'a head of width {width} is no multiple of 8 up to 128'
  return None if seen is None else 'it knows one document a row'


def _cudnn(q, k, v, document, seen, window):
  """cuDNN's fused kernel."""
  del document, seen
  return jax.nn.dot_product_attention(
      q, k, v, is_causal=True, local_window_size=(window - 1, 0),
      implementation='cudnn',
  )


class Implementation(NamedTuple):
  """A way to run `attend` where no keys come from an earlier call."""

  run: Callable[..., Array]
  # (q, seen) -> why it does not take a call, in a few words; None: it does.
  obstacle: Callable[[Array, Array | None], str | None]


# 'auto' takes the first that takes the call.
IMPLEMENTATIONS = {
    'splash': Implementation(_splash, _splash_obstacle),
    'cudnn': Implementation(_cudnn, _cudnn_obstacle),
    'xla': Implementation(_xla, lambda q, seen: None),
}


def attend(
    q: Array,
    k: Array,
    v: Array,
    document: Array,
    seen: Array | None,
    window: int,
    *,
    implementation: str = 'auto',
    interpret: bool = False,
) -> Array:
  """Softmax attention of each query to the last `window` keys of its document.

  Args:
    q: [B, T, H, K]; the queries of the last T keys.
    k: [B, S, H, K], S >= T.
    v: [B, S, H, K].
    document: [B, T], the document of each query.
    seen: [B, S], the document of each key, -1 at padding; None: one document in
      each row.
    window: keys a query sees, its own among them.
    implementation: a key of `IMPLEMENTATIONS`, or 'auto': 'splash' on a TPU and
      'cudnn' on a GPU where they take the call, else 'xla'. With keys of an
      earlier call (S > T) it is always 'xla'.
    interpret: 'splash' runs emulated, for tests on any platform.

  Returns:
    [B, T, H, K]; of padding something finite.

  Raises:
    ConfigError: the implementation that is asked for does not take the call.
  """
  call = q, k, v, document, seen, window
  if k.shape[1] > q.shape[1]:
    return _xla(*call)
  if implementation == 'auto':
    fitting = (
        entry
        for entry in IMPLEMENTATIONS.values()
        if entry.obstacle(q, seen) is None
    )
    return next(fitting).run(*call)
  entry = IMPLEMENTATIONS[implementation]
  options = {'interpret': True} if interpret else {}
  obstacle = entry.obstacle(q, seen, **options)
  if obstacle:
    raise ConfigError(
        f'ModelConfig.attention_implementation={implementation!r}: {obstacle}'
    )
  return entry.run(*call, **options)
