"""Docstrings as they are in the code, in the dialect that the site reads."""

import re

import griffe


class Dialect(griffe.Extension):
  """`Example:` is a section; a link of reStructuredText is one of Markdown."""

  def on_instance(self, *, obj, **kwargs):
    """Rewrites the docstring of anything that has one."""
    del kwargs
    if obj.docstring:
      text = re.sub(r'^( *)Example:$', r'\1Examples:', obj.docstring.value,
                    flags=re.MULTILINE)
      obj.docstring.value = re.sub(r'`([^`<]+) <([^>]+)>`_', r'[\1](\2)', text)
