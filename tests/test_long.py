"""A needle in a long prompt: the logits of the reference, far behind the window, at any place."""
import struct
import json

from conftest import FIXTURES, answer, read_floats, write_ids
from make_long import far_checkpoint


def integers(path, tensor):
    data = path.read_bytes()
    size, = struct.unpack_from('<Q', data)
    begin, end = json.loads(data[8:8 + size])[tensor]['data_offsets']
    return struct.unpack('<%dq' % ((end - begin) // 8), data[8 + size + begin:8 + size + end])


def test_needles(tmp_path):
    ref = FIXTURES / 'long.ref.safetensors'
    ids, positions, want = integers(ref, 'ids'), integers(ref, 'positions'), read_floats(ref, 'logits_f32')
    logits, n_vocab = tmp_path / 'logits', len(want) // len(positions)
    answer('score', '-m', far_checkpoint(tmp_path / 'far'), '--ids', write_ids(tmp_path / 'ids', ids), '--logits', logits, '--exact',
           '-c', 262144, '--summary')
    got = read_floats(logits)
    assert len(got) == len(ids) * n_vocab
    spread = max(want) - min(want)
    for i, p in enumerate(positions):
        w, g = want[i * n_vocab:(i + 1) * n_vocab], got[p * n_vocab:(p + 1) * n_vocab]
        assert max(abs(a - b) for a, b in zip(w, g)) < 1e-5 * spread
