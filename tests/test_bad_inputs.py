"""Bad input, as it reaches `main`: one line, exit code 2, nothing written."""

import json
import os
import pathlib

import pytest

from hope_jax import main

NUMBERS = {
    'data.align': ('0', '-16', '1.5', 'nan', '99999999999'),
    'data.batch_size': ('0', 'many', '1e30', '-inf'),
    'data.holdout': ('0', '1', 'nan', '1e400', '-0.1'),
    'data.interleave': ('0', '3', 'inf'),
    'data.sequence_length': ('0', '-1', '2.5', '9' * 400),
    'data.seed': ('0.5', '9' * 20, 'one'),
    'mesh.data': ('0', '-2', '1.5', '9' * 40),
    'model.attention_window': ('0', '9' * 20, 'nan'),
    'model.continuum.periods': ('0', '(1,0)', '(2,3)', '()', '(1,4294967296)'),
    'model.dim': ('0', '-8', '1e400', '9' * 400, 'wide'),
    'model.heads': ('0', '3', '-1', 'inf'),
    'model.layers': ('0', '1e9', '-1'),
    'model.mlp_expansion': ('0', 'inf', '-1', '1e400'),
    'model.titans.chunk': ('0', '-1', '9' * 30),
    'model.titans.conv_width': ('1', '0', '1e9'),
    'model.titans.eta_init': ('0', '1', 'nan'),
    'model.titans.eta_max': ('-1', 'nan', 'inf', '3'),
    'model.titans.momentum_init': ('0', '1'),
    'model.titans.plain_heads': ('-1', '100'),
    'model.titans.projection_chunk': ('0', '7'),
    'model.titans.projection_eta': ('0', '-0.1', 'nan'),
    'model.titans.retention_init': ('0.4', '1', 'nan'),
    'model.vocab_size': ('0', '9' * 12),
    'optimizer.accumulate': ('0', '3', '1.5'),
    'optimizer.b1': ('1.5', '1', '-0.1', 'nan'),
    'optimizer.b2': ('1', 'inf'),
    'optimizer.clip_norm': ('0', '-1', 'nan'),
    'optimizer.eps': ('0', '1e-60', 'nan'),
    'optimizer.final_learning_rate': ('1e400', '-1', 'nan'),
    'optimizer.learning_rate': ('0', '-1', 'nan', 'inf', '9' * 400),
    'optimizer.level_power': ('-1', '2'),
    'optimizer.warmup_steps': ('-1', '1.5', '9' * 20),
    'optimizer.weight_decay': ('-0.1', 'nan', 'inf'),
    'train.checkpoint_every': ('0', '-5'),
    'train.eval_batches': ('0', 'all'),
    'train.keep_checkpoints': ('0', '-1'),
    'train.log_every': ('0', '0.1'),
    'train.max_seconds': ('-1', 'nan', 'inf'),
    'train.seed': ('-1', '9' * 20, '1.5'),
    'train.steps': ('0', '-1', '9' * 12, '9' * 5000),
}
# Overrides, and what the line must name.
OTHERS = (
    (('model.dmi=8',), 'dim'),
    (('modle.dim=8',), 'model'),
    (('model=8',), 'model'),
    (('model.dim.x=8',), 'dim'),
    (('model.architecture=hopee',), 'hope'),
    (('model.architecture=',), 'architecture'),
    (('model.titans.memory=tensor',), 'memory'),
    (('model.titans.target=none',), 'target'),
    (('model.titans.objective=l2', 'model.titans.eigenvalues=signed'),
     'eigenvalues'),
    (('model.titans.implementation=fast',), 'fast'),
    (('model.titans.implementation=pallas_tpu',), 'pallas_tpu'),
    (('model.dtype=float64',), 'dtype'),
    (('model.precision=low',), 'precision'),
    (('model.remat=all',), 'remat'),
    (('model.tie_embeddings=perhaps',), 'tie_embeddings'),
    (('model.rope_base=0',), 'rope_base'),
    (('model.continuum.variant=nested',), 'nested'),
    (('model.continuum.regime=in_context', 'model.continuum.periods=(1,4)'),
     'periods'),
    (('model.continuum.learning_rates=(0.1,0.2)',), 'learning_rates'),
    (('optimizer.name=adamm',), 'adam'),
    (('optimizer.name=m3', 'optimizer.b1=0.9'), 'b1'),
    (('optimizer.name=m3', 'optimizer.options.perod=3'), 'period'),
    (('optimizer.name=m3', 'optimizer.options.period=0'), 'period'),
    (('optimizer.name=m3', 'optimizer.options.b2=1.5'), 'b2'),
    (('optimizer.name=muon', 'optimizer.options.ns_steps=-1'), 'ns_steps'),
    (('optimizer.options.b1=0.9',), 'b1'),
    (('optimizer.warmup_steps=1000000',), 'warmup_steps'),
    (('data.source=web',), 'source'),
    (('data.source=files',), 'path'),
    (('data.source=files', 'data.path=nowhere/*.txt'), 'nowhere'),
    (('data.source=tfds', 'data.path=nowhere'), 'data.path'),
    (('data.source=array_record', 'data.path=nowhere'), 'nowhere'),
    (('data.source=files', 'data.path=notes.jsonl'), 'notes.jsonl'),
    (('data.source=files', 'data.path=notes.parquet'), 'notes.parquet'),
    (('data.source=files', 'data.path=empty.txt'), 'empty.txt'),
    (('data.mixture=empty.txt',), 'mixture'),
    (('data.mixture=empty.txt=nan',), 'mixture'),
    (('data.mixture=empty.txt=1', 'data.path=empty.txt'), 'mixture'),
    (('data.tokenizer=nowhere.json',), 'nowhere.json'),
    (('data.tokenizer=notes.jsonl',), 'notes.jsonl'),
    (('data.tokenizer=.',), 'tokenizer'),
    (('data.control_tokens=both',), 'control_tokens'),
    (('model.titans.grid=aligned', 'data.align=1'), 'align'),
    (('train.not_finite=ignore',), 'not_finite'),
    (('mesh.data=2', 'mesh.fsdp=3'), 'mesh'),
)
LINES = (
    (('tarin', '--config=tiny'), 'train'),
    (('train', '--config=tinny'), 'tiny'),
    (('train', '--config=nowhere.py'), 'nowhere.py'),
    (('train', '--config=broken.py'), 'broken.py'),
    (('train', '--config=mqar'), 'study'),
    (('train', '--confg=tiny'), 'confg'),
    (('train', 'tiny'), 'tiny'),
    (('train', '--config=tiny', '--tokens=3'), 'tokens'),
    (('train', '--config=tiny', '--config.train.steps'), 'train.steps'),
    (('train', '--config=tiny', '--workdir=gs://bucket/run'), 'gs://'),
    (('train', '--config=tiny', '--workdir=~nobody-of-us/run'), 'nobody'),
    (('train', '--config=tiny', '--workdir=a\0b'), 'workdir'),
    (('eval', '--workdir=nowhere'), 'nowhere'),
    (('eval', '--workdir=a\0b'), 'workdir'),
    (('eval', '--workdir=deep'), 'deep/config.json'),
    (('eval', '--workdir=endless'), 'endless/config.json'),
    (('study', '--config=mqar:tiny', '--workdir=endless', '--render'),
     'endless/config.json'),
    (('eval',), 'workdir'),
    (('generate', '--workdir=nowhere', '--tokens=0'), 'tokens'),
    (('generate', '--workdir=nowhere', '--temperature=nan'), 'temperature'),
    (('generate', '--workdir=nowhere', '--temperature=1e-45'), 'temperature'),
    (('generate', '--workdir=nowhere', '--temperature=hot'), 'temperature'),
    (('generate', '--workdir=nowhere', '--seed=-1'), 'seed'),
    (('generate', '--workdir=here', '--prompt=x'), 'dmi'),
    (('study', '--config=tiny'), 'tiny'),
    (('study',), 'config'),
    (('study', '--config=mqar:huge'), 'huge'),
    (('study', '--config=mqar:tiny', '--workdir=planted', '--render'),
     'planted/x.json'),
    (('study', '--config=mqar:tiny', '--workdir=empty.txt'), 'empty.txt'),
    (('study', '--config=mqar:tiny', '--config.language=a.py:f'), 'language'),
    (('study', '--config=formal_languages:tiny', '--config.language=a.py:f'),
     'a.py'),
    (('study', '--config=formal_languages:tiny',
      '--config.language=broken.py:get_config'), 'broken.py:get_config failed'),
    (('study', '--config=formal_languages:tiny', '--config.data_dir=nowhere'),
     'nowhere'),
    (('study', '--config=optimizers/digits:tiny',
      '--config.base.optimizer.b1=0.9'), 'b1'),
    (('study', '--config=mqar:tiny', '--workdir=gs://b/r'), 'gs://'),
    (('study', '--config=mqar:tiny', '--config.rows_run=Mamba'), 'Mamba'),
    (('study', '--config=mqar:tiny', '--config.columns_run=5'), "'5'"),
    (('study', '--config=mqar:tiny', '--config.seeds=-1'), 'seeds'),
    (('study', '--config=mqar:tiny', '--config.seeds=1,1'), 'seeds'),
    (('study', '--config=mqar:tiny', '--config.counts.train=nan'), 'train'),
    (('study', '--config=mqar:tiny', '--config.lengths.length=0'), 'length'),
    (('study', '--config=mqar:tiny', '--config.trials=-1'), 'trials'),
)
CASES = [
    *(
        ((f'{field}={value}',), field.rpartition('.')[2])
        for field, values in NUMBERS.items() for value in values
    ),
    *OTHERS,
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder with files that are not what they are taken for."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'notes.jsonl').write_text('{"text": 3}\n{"text"\n')
  (tmp_path / 'notes.parquet').write_bytes(b'PAR1 no more')
  (tmp_path / 'empty.txt').write_bytes(b'')
  (tmp_path / 'broken.py').write_text('def get_config(): return 1 / 0\n')
  (tmp_path / 'deep').mkdir()
  (tmp_path / 'deep' / 'config.json').write_text('[' * 10**5)
  (tmp_path / 'endless').mkdir()
  (tmp_path / 'endless' / 'config.json').symlink_to('/dev/zero')
  (tmp_path / 'planted').mkdir()
  (tmp_path / 'planted' / 'x.json').write_text('{"row": 3, "column": "4"}')
  here = tmp_path / 'here'
  here.mkdir()
  (here / 'config.json').write_text(json.dumps({'model': {'dmi': 3}}))
  return tmp_path


def contents(folder):
  return {
      str(path.relative_to(folder)): path.read_bytes()
      for path in pathlib.Path(folder).rglob('*') if path.is_file()
  }


def complaint(args, folder, capfd):
  """Runs a command; what it says, after looking that nothing has changed."""
  before = contents(folder)
  assert main.main(args) == 2, args
  said = capfd.readouterr().err
  assert said.count('\n') == 1 and said.startswith('error: '), said
  assert len(said) < 1000 and 'Traceback' not in said
  assert contents(folder) == before
  assert os.listdir(folder / 'here') == ['config.json']
  return said


def test_there_are_enough():
  """If it fails, cases went missing."""
  assert len(CASES) + len(LINES) >= 200


@pytest.mark.parametrize(
    ('overrides', 'name'), CASES, ids=[' '.join(c[0])[:50] for c in CASES]
)
def test_a_field(overrides, name, folder, capfd):
  """If it fails, a slip costs a traceback, or runs as something else."""
  args = ['train', '--config=tiny', '--workdir=run', '--config.train.steps=9']
  said = complaint(
      [*args, *(f'--config.{x}' for x in overrides)], folder, capfd
  )
  assert name in said


@pytest.mark.parametrize(
    ('args', 'name'), LINES, ids=[' '.join(line[0])[:60] for line in LINES]
)
def test_a_line(args, name, folder, capfd):
  """If it fails, a slip costs a traceback, or runs as something else."""
  assert name in complaint(args, folder, capfd)
