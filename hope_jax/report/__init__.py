"""Reports: numbers -> text, charts and pages. Imports nothing of hope_jax."""
