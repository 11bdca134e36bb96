"""Studies: many runs side by side, and the images that some of them read."""

import dataclasses
import os
from typing import Annotated, Literal

from hope_jax.config.build import folder, require, shown
from hope_jax.config.ranges import (
    LAYERS,
    SEED,
    SHARE,
    TOKENS,
    WIDTH,
    Range,
    check_ranges,
)
from hope_jax.config.train import Config


@dataclasses.dataclass(frozen=True)
class VitConfig:
  """A Vision Transformer (NL §9.7); its image size and channels are the data's.

  The paper's two, patches of 16: dim 384, heads 6, hidden 1536 (24 M), and dim
  768, heads 12, hidden 3072 (86 M). 12 layers are not given by the paper; they
  are those of ViT-S and ViT-B, which have these sizes.
  """

  patch: Annotated[int, WIDTH] = 16
  dim: Annotated[int, WIDTH] = 384
  layers: Annotated[int, LAYERS] = 12
  heads: Annotated[int, WIDTH] = 6
  hidden: Annotated[int, WIDTH] = 1536
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  # As of `ModelConfig`.
  precision: Literal['highest', 'high', 'default'] = 'highest'

  def __post_init__(self):
    check_ranges(self)
    require(
        self.dim % self.heads == 0,
        f'VitConfig.heads must divide dim; got heads={self.heads},'
        f' dim={self.dim}',
    )


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Labelled images: scikit-learn's digits, or any set of TFDS."""

  # digits: 1,797 of 8 x 8, each fifth held out. tfds: `path` and `heldout_path`
  # as `DataConfig.path`, name@split or folder@split, prepared as array_record.
  source: Literal['digits', 'tfds'] = 'digits'
  path: str = ''
  heldout_path: str = ''
  image_field: str = 'image'
  label_field: str = 'label'
  classes: Annotated[int, WIDTH] = 10
  # Others are scaled to this size, and cut where they are not square.
  image_size: Annotated[int, WIDTH] = 8
  channels: Annotated[int, WIDTH] = 1
  batch_size: Annotated[int, TOKENS] = 128

  def __post_init__(self):
    check_ranges(self)
    require(
        self.source == 'digits' or bool(self.path and self.heldout_path),
        "ImageConfig.source='tfds' needs path and heldout_path; got"
        f' {self.path!r} and {self.heldout_path!r}',
    )


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """Many runs side by side: rows x columns x seeds; see studies/runner.py."""

  # What a cell trains and scores; studies/grid.py has the table of them.
  task: str
  # The folder of the cells; `page` is beside it.
  results: str
  # The rows in order: 'name', and fields of `Config` on top of `base` and, for
  # a column that wants others, of `by_column`. Of these two, a row takes the
  # model's fields that its architecture reads; its own must all be read.
  rows: tuple[dict, ...]
  base: dict = dataclasses.field(
      default_factory=dict, metadata={'fields_of': Config}
  )
  by_column: dict = dataclasses.field(default_factory=dict)
  columns: tuple[str, ...] = ()
  seeds: Annotated[tuple[int, ...], SEED] = (0, 1, 2)
  # Learning rates tried for each row and column, with the seed 0; the seeds
  # then run at the best of them. 0: all run at the rate that the fields say.
  trials: Annotated[int, Range(0, 1000)] = 0
  # The rows and columns to run; empty: all. All that have results are shown.
  rows_run: tuple[str, ...] = ()
  columns_run: tuple[str, ...] = ()
  # The page beside that folder that is made of them, between the markers
  # '<!-- SECTION: begin -->' and '<!-- SECTION: end -->'.
  page: str = 'README.md'
  section: str = 'results'
  # Examples of each split, and lengths; what is absent is the task's own.
  counts: dict = dataclasses.field(default_factory=dict)
  lengths: dict = dataclasses.field(default_factory=dict)
  # What else the task's examples are made by, such as fill of mqar and spread
  # of mad; hope_jax/tasks/ has them.
  options: dict = dataclasses.field(default_factory=dict)
  # Formal languages from elsewhere; they take the place of the columns. A
  # language is FILE.py:NAME: the file is Python, and it is run, as the
  # experiment file is: use only files that you trust.
  data_dir: str = ''
  language: str = ''
  # The images that optimizers are compared on, and the model that reads them.
  images: ImageConfig = ImageConfig()
  vit: VitConfig = VitConfig()

  def __post_init__(self):
    object.__setattr__(self, 'results', folder(self.results, 'results'))
    check_ranges(self)
    self._require_whole('counts')
    self._require_whole('lengths')
    require(
        bool(self.rows) and all('name' in row for row in self.rows),
        f"StudyConfig.rows need a 'name' each; got {self.rows}",
    )
    require(
        bool(self.seeds) and len(set(self.seeds)) == len(self.seeds),
        f'StudyConfig.seeds must differ, one at least; got {self.seeds}',
    )
    require(
        not self.trials or 0 not in self.seeds,
        'StudyConfig.seeds: with trials, 0 is the seed of these; got'
        f' {self.seeds}',
    )
    require(
        not (self.data_dir and self.language),
        'StudyConfig: give data_dir or language, not both; got'
        f' {self.data_dir!r} and {self.language!r}',
    )

  def _require_whole(self, field: str) -> None:
    """Refuses numbers of free names that count nothing."""
    for name, value in getattr(self, field).items():
      shares = name == 'depths'  # of a text, where its needles are
      # A bin of strings may be left out; what a model learns from may not.
      some = field == 'lengths' or name in ('train', 'test')
      within = SHARE if shares else TOKENS if some else Range(0, 2**30)
      for item in value if isinstance(value, (tuple, list)) else (value,):
        is_number = type(item) is int or (shares and type(item) is float)
        require(
            is_number and item in within,
            f'StudyConfig.{field}.{name} must be '
            f'{"a share" if shares else "a whole number"} in {within};'
            f' got {shown(item)}',
        )

  @property
  def fields(self) -> dict[str, dict]:
    """Row -> its fields of `Config`."""
    return {
        row['name']: {k: v for k, v in row.items() if k != 'name'}
        for row in self.rows
    }

  @property
  def shown_columns(self) -> tuple[str, ...]:
    """The columns, or the name of the language from elsewhere."""
    if self.data_dir:
      return (os.path.basename(os.path.abspath(self.data_dir)),)
    if self.language:
      return (self.language.partition(':')[2] or self.language,)
    return self.columns

  @property
  def readme(self) -> str:
    """The path of the page that the results are rendered into."""
    return os.path.join(os.path.dirname(self.results), self.page)
