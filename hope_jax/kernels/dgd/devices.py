"""What the code that is being traced will run on."""

import jax


def device() -> tuple[str, str]:
  """Platform and device kind that the code being traced will run on.

  The devices of the mesh that is set, or else the default backend. Setting the
  mesh of a TPU topology is how one compiles for it without having one.
  """
  of_mesh = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
  if of_mesh is not None:
    return of_mesh.platform, of_mesh.device_kind
  first = jax.devices()[0]
  return first.platform, first.device_kind
